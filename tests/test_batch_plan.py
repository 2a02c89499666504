"""Which pictures a batch takes, where their results go, and what is refused before anything runs."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffseg_cli.batch.plan import Item, Part, check_outputs, masks_among, without
from diffseg_cli.batch.search import SearchNote, find_items
from diffseg_cli.errors import InputError, UsageError

PATTERNS = {"mask": "*_mask.png"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        *("photos/b.jpg", "photos/a.PNG", "photos/day1/c.webp", "photos/day1/deep/d.jpeg"),
        *("photos/notes.md", "photos/.hidden.jpg", "photos/.thumbs/e.jpg", "other/f.jpg"),
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    return tmp_path


def keys(*sources: str, recursive: bool = False, out: str = "out", stdin: bytes = b"") -> list[str]:
    items = find_items(sources, recursive=recursive, out=Path(out), read_stdin=lambda: stdin)
    assert all(item.path.exists() for item in items)
    return [item.key for item in items]


def test_folders_are_mirrored_and_hidden_things_passed_over() -> None:
    assert keys("photos") == keys("photos/") == ["a.PNG", "b.jpg"]
    assert keys("photos", recursive=True) == ["a.PNG", "b.jpg", "day1/c.webp", "day1/deep/d.jpeg"]
    assert keys("photos", "photos/b.jpg", "other") == ["a.PNG", "b.jpg", "f.jpg"]


def test_masks_beside_images_are_noticed_and_can_be_left_out() -> None:
    names = (
        "a.jpg",
        "a_mask.png",
        "b_mask.png",
        "d/c.tif",
        "d/c_mask.tif",
        "_mask.png",
        "e_mask.jpg",
        "d/e.jpg",
    )
    items = [Item(Path("photos", name), name) for name in names]
    assert [item.key for item in masks_among(items)] == ["a_mask.png", "d/c_mask.tif"]
    assert [item.key for item in without(items, ["*_mask.*", "d/e*"])] == ["a.jpg", "d/c.tif"]
    assert "d/c.tif" not in [item.key for item in without(items, ["c.*"])]  # the name alone, in any folder
    assert without(items, []) == items
    with pytest.raises(InputError, match="--exclude leaves no image"):
        without(items, ["*"])


def test_patterns_start_at_their_first_wildcard() -> None:
    assert keys("photos/*.jpg") == ["b.jpg"]
    assert keys("photos/**/*.*e*") == ["day1/c.webp", "day1/deep/d.jpeg"]
    assert keys("*/day?/*") == ["photos/day1/c.webp"]


def test_lists_keep_the_folders_they_name(tmp_path: Path) -> None:
    Path("list.txt").write_text("photos/day1/c.webp\r\n\nother/f.jpg\n")
    assert keys("list.txt") == ["other/f.jpg", "photos/day1/c.webp"]
    assert keys("-", stdin=b"photos/b.jpg\0./other/f.jpg\0") == ["other/f.jpg", "photos/b.jpg"]
    os.chdir("other")
    assert keys("-", stdin=b"../photos/b.jpg\n../photos/day1/c.webp\n") == ["b.jpg", "day1/c.webp"]
    assert keys("-", stdin=f"{tmp_path}/other/f.jpg\n".encode()) == ["f.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_lists_of_windows_are_read(encoding: str) -> None:
    Path("photos/caf\u00e9.jpg").write_bytes(b"")
    content = "photos/caf\u00e9.jpg\r\nother/f.jpg\r\n".encode(encoding)
    assert keys("-", stdin=content) == ["other/f.jpg", "photos/caf\u00e9.jpg"]


@pytest.mark.parametrize("out", ["link", "photos/day1/../out", "photos/out", "alias/out"])
@pytest.mark.parametrize("source", ["photos", "alias", "photos/**/*", "other/../photos"])
def test_results_are_not_searched_whatever_their_folder_is_called(source: str, out: str) -> None:
    Path("photos/out/day1").mkdir(parents=True)
    Path("photos/out/b_mask.png").write_bytes(b"")
    Path("photos/out/day1/c_mask.png").write_bytes(b"")
    Path("photos/one.png").symlink_to("out/b_mask.png")
    Path("link").symlink_to("photos/out")
    Path("alias").symlink_to("photos")
    assert keys(source, recursive=True, out=out) == ["a.PNG", "b.jpg", "day1/c.webp", "day1/deep/d.jpeg"]


@pytest.mark.parametrize("source", ["photos", "photos/*.jpg", "alias"])
@pytest.mark.parametrize("out", ["photos", "alias", "photos/day1/.."])
def test_results_among_the_images_are_refused(source: str, out: str) -> None:
    Path("alias").symlink_to("photos")
    with pytest.raises(UsageError, match="is the searched folder itself"):
        keys(source, out=out)


def test_results_may_lie_above_the_images() -> None:
    assert keys("photos", out=".") == keys("photos/*.*", out=".") == ["a.PNG", "b.jpg"]


def test_what_cannot_be_entered_or_is_no_file_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos/loop").symlink_to("loop")
    os.mkfifo("photos/pipe.jpg")
    Path("photos/zero.png").symlink_to("/dev/zero")
    Path("photos/lost+found").mkdir()
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "lost+found":  # root may list everything
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(SearchNote) as notes:
        found = keys("photos", recursive=True)
    assert found == ["a.PNG", "b.jpg", "day1/c.webp", "day1/deep/d.jpeg"]
    assert sorted(str(note.message) for note in notes) == [
        "photos/loop was left out: Too many levels of symbolic links.",
        "photos/lost+found was left out: Permission denied.",
        "photos/pipe.jpg was left out: not a regular file.",
        "photos/zero.png was left out: not a regular file.",
    ]


def test_a_link_that_leads_nowhere_is_no_silent_loss(tmp_path: Path) -> None:
    (tmp_path / "photos" / "gone.jpg").symlink_to("nowhere")
    items = find_items(["photos"], recursive=False, out=Path("out"), read_stdin=bytes)
    assert [item.key for item in items] == ["a.PNG", "b.jpg", "gone.jpg"]


def test_a_bracket_in_a_name_is_told_how_to_be_written() -> None:
    Path("p[2024] trip").mkdir()
    Path("p[2024] trip/x.jpg").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        keys("p[2024] trip/*.jpg")
    assert "[[]" in str(caught.value.hint)
    assert keys("p[[]2024] trip/*.jpg") == ["p[2024] trip/x.jpg"]


def test_results_of_an_earlier_run_are_not_searched() -> None:
    Path("photos/out/sub").mkdir(parents=True)
    Path("photos/out/sub/x_mask.png").write_bytes(b"")
    assert keys("photos", recursive=True, out="photos/out") == keys("photos/**/*", out="photos/out")
    assert "out/sub/x_mask.png" in keys("photos", recursive=True)


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (("none",), "none is no folder, image, pattern or list."),
        (("empty.txt",), "empty.txt cannot be read"),
        (("photos/*.gif",), "There are no images in photos/*.gif."),
        (("-",), "There are no images in -."),
    ],
)
def test_nothing_to_do_is_an_error(sources: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError) as raised:
        keys(*sources)
    assert raised.value.message.startswith(says)


def test_one_key_for_two_pictures_is_refused() -> None:
    Path("other/b.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"would both be written as b\.jpg"):
        keys("photos", "other")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a.jpg", "a.png"), "a.jpg and a.png would both be written to"),
        (("x/A.jpg", "x/a.JPG"), "would both be written to"),
        (("caf\u00e9.jpg", "cafe\u0301.png"), "would both be written to"),
        (("index.jpg",), None),
        (("manifest.jpg",), "the run itself and manifest.jpg would both"),
    ],
)
def test_results_that_would_meet_are_refused(names: tuple[str, ...], says: str | None) -> None:
    items = [Item(Path("photos", name), name) for name in names]
    patterns = PATTERNS | ({"odd": "*.jsonl"} if "manifest.jpg" in names else {})
    taken = ["manifest.jsonl", "index.html"]
    if says is None:
        check_outputs(items, patterns, Path("out"), taken=taken, read=[])
        return
    with pytest.raises(UsageError, match=says):
        check_outputs(items, patterns, Path("out"), taken=taken, read=[])


def test_a_result_never_replaces_what_is_read() -> None:
    items = [Item(Path("photos/b.jpg"), "b.jpg"), Item(Path("photos/b_mask.png"), "b_mask.png")]
    with pytest.raises(UsageError, match="would be overwritten"):
        check_outputs(items, PATTERNS, Path("photos"), taken=[], read=[])
    with pytest.raises(UsageError, match="would be overwritten"):
        check_outputs(items[:1], PATTERNS, Path("out"), taken=[], read=[Path("out/b_mask.png")])


@given(st.lists(st.text(min_size=1), unique=True), st.integers(1, 9))
def test_parts_share_a_plan_without_gap_or_overlap(names: list[str], count: int) -> None:
    items = [Item(Path("photos", "x"), name) for name in names]
    shares = [[item for item in items if Part(k, count).takes(item)] for k in range(1, count + 1)]
    assert sorted(item.key for share in shares for item in share) == sorted(names)


@pytest.mark.parametrize(
    ("key", "of_four", "of_seven"),
    [("a.jpg", 3, 5), ("day1/b.png", 4, 2), ("Käfer.tif", 3, 6), ("\udcff.jpg", 1, 7)],
)
def test_every_version_puts_a_picture_into_the_same_part(key: str, of_four: int, of_seven: int) -> None:
    """Machines with two versions would do a picture twice or not at all; these numbers must never change."""
    item = Item(Path("x"), key)
    for count, expected in ((4, of_four), (7, of_seven)):
        assert [k for k in range(1, count + 1) if Part(k, count).takes(item)] == [expected]


def test_parts_are_about_equal_and_stay_when_pictures_are_added() -> None:
    items = [Item(Path("x"), f"day{index % 7}/{index:05}.jpg") for index in range(4000)]
    sizes = [sum(Part(k, 8).takes(item) for item in items) for k in range(1, 9)]
    assert min(sizes) > 400 and max(sizes) < 600
    assert (Part().tag, Part(3, 8).tag) == ("", "-3-of-8") and all(Part().takes(item) for item in items)
