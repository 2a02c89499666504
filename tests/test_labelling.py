"""A labelling project on disk: states, decisions that cannot overwrite each other, kills, and exports."""

import json
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from diffseg_cli.batch.search import SearchNote
from diffseg_cli.cli import main
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.labelling import project as project_module
from diffseg_cli.labelling.doubt import by_doubt, doubt_of
from diffseg_cli.labelling.export import exported
from diffseg_cli.labelling.project import HIDDEN, Project, open_project
from diffseg_cli.labelling.review_log import Outdated, Review, ReviewLog, State

HW = (30, 40)
KEYS = ["a.jpg", "b.jpg", "day1/c.jpg"]


def box(left: int = 5) -> NDArray[np.bool_]:
    mask = np.zeros(HW, dtype=bool)
    mask[5:20, left : left + 15] = True
    return mask


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "day1").mkdir(parents=True)
    for seed, key in enumerate(KEYS):
        noise = np.random.default_rng(seed).integers(0, 256, (*HW, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / key)
    return folder


@pytest.fixture
def project(photos: Path, tmp_path: Path) -> Project:
    return Project(photos, tmp_path / "labels", ["bird"])


def again(project: Project) -> Project:
    """The same project in another process, or after a restart."""
    return Project(project.images, project.out)


def states(project: Project) -> list[str]:
    return [review.state.value for review in project.reviews()]


# --- states --------------------------------------------------------------------------------------------


def test_every_decision_is_there_after_a_restart(project: Project) -> None:
    assert project.keys == KEYS and states(project) == ["untouched"] * 3
    for key in KEYS:
        project.propose(key, 0, [box()], {"bird": 0.9}, 0.2)
    project.accept("a.jpg", 1)
    project.correct("b.jpg", 1, [box(20)])
    project.say_nothing("day1/c.jpg", 1)
    later = again(project)
    assert later.classes == ["bird"] and states(later) == ["accepted", "corrected", "nothing here"]
    found = [later.masks(key) for key in KEYS]
    for masks, expected in zip(found, (box(), box(20), np.zeros(HW, dtype=bool)), strict=True):
        assert masks is not None
        np.testing.assert_array_equal(masks[0], expected)
    assert later.review("a.jpg").doubt == 0.2 and later.review("a.jpg").presence == {"bird": 0.9}
    assert np.unique(np.asarray(Image.open(later.out / "day1" / "c_mask.png"))).tolist() == [0]


def test_masks_of_a_batch_are_proposals(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    out.mkdir()
    Image.fromarray(box().astype(np.uint8) * 255).save(out / "a_mask.png")
    project = Project(photos, out)
    assert project.classes == ["object"] and states(project) == ["proposed", "untouched", "untouched"]
    assert project.accept("a.jpg", 0).state is State.ACCEPTED


def test_the_model_never_changes_what_a_person_decided(project: Project) -> None:
    project.correct("a.jpg", 0, [box()])
    with pytest.raises(Outdated):
        project.propose("a.jpg", 1, [box(20)], {}, 0.1)
    with pytest.raises(Outdated):
        project.fail("a.jpg", 1, "unreadable")
    masks = again(project).masks("a.jpg")
    assert masks is not None and (masks[0] == box()).all()
    project.reopen("a.jpg", 1)
    assert project.propose("a.jpg", 2, [box(20)], {}, 0.1).revision == 3


def test_an_empty_mask_says_that_nothing_is_there(project: Project) -> None:
    empty = np.zeros(HW, dtype=bool)
    project.propose("a.jpg", 0, [empty], {"bird": 0.1}, 0.1)
    assert project.accept("a.jpg", 1).state is State.NOTHING
    assert project.correct("b.jpg", 0, [empty]).state is State.NOTHING


def test_classes_have_the_values_of_a_label_map(photos: Path, tmp_path: Path) -> None:
    project = Project(photos, tmp_path / "labels", ["bird", "nest"])
    project.correct("a.jpg", 0, [box(2), box(22)])
    later = open_project(tmp_path / "labels")
    assert later.classes == ["bird", "nest"]
    masks = later.masks("a.jpg")
    assert masks is not None and (masks[0] == box(2)).all() and (masks[1] == box(22)).all()


def test_a_class_can_be_added_but_not_swapped(project: Project) -> None:
    project.correct("a.jpg", 0, [box()])
    more = Project(project.images, project.out, ["bird", "nest"])
    masks = more.masks("a.jpg")
    assert masks is not None and (masks[0] == box()).all() and not masks[1].any()
    for names in (["nest", "bird"], ["nest"]):
        with pytest.raises(UsageError, match="has the classes bird, nest"):
            Project(project.images, project.out, names)


def test_another_folder_of_images_is_refused(project: Project, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    with pytest.raises(UsageError, match="holds labels of the images in"):
        Project(tmp_path / "others", project.out)


def test_wrong_masks_and_keys_are_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another size or number"):
        project.correct("a.jpg", 0, [box()[:10]])
    with pytest.raises(InputError, match="No image of this project is called"):
        project.say_nothing("../labels/review.jsonl", 0)
    with pytest.raises(UsageError, match="no mask that could be accepted"):
        project.accept("a.jpg", 0)
    outside = tmp_path / "outside.jpg"
    Image.fromarray(np.zeros((*HW, 3), dtype=np.uint8)).save(outside)
    (project.images / "link.jpg").symlink_to(outside)
    with pytest.raises(InputError, match="leads out of"):
        again(project).say_nothing("link.jpg", 0)


def test_no_mask_is_written_through_a_planted_link(project: Project, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (project.out / "day1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="leads out of"):
        project.correct("day1/c.jpg", 0, [box()])
    assert not list((tmp_path / "elsewhere").iterdir())
    assert project.review("day1/c.jpg").revision == 0


# --- two people, and kills -----------------------------------------------------------------------------


def test_the_second_of_two_people_is_told(project: Project) -> None:
    other = again(project)
    project.correct("a.jpg", 0, [box()])
    with pytest.raises(Outdated, match=r"a\.jpg is corrected at revision 1, not at 0 any more"):
        other.say_nothing("a.jpg", 0)
    other.refresh()
    assert other.review("a.jpg").state is State.CORRECTED
    assert other.say_nothing("a.jpg", 1).revision == 2
    project.refresh()
    assert project.review("a.jpg").state is State.NOTHING


def _decide_often(images: Path, out: Path, left: int, times: int) -> None:
    project = Project(images, out)
    done = 0
    while done < times:
        project.refresh()
        try:
            project.correct("a.jpg", project.review("a.jpg").revision, [box(left)])
            done += 1
        except Outdated:
            continue


def test_no_decision_of_two_processes_is_lost(project: Project) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_decide_often, args=(project.images, project.out, left, 15))
        for left in (0, 20)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    lines = [json.loads(line) for line in (project.out / "review.jsonl").read_text().splitlines()]
    revisions = [line["revision"] for line in lines if "revision" in line]
    assert revisions == list(range(1, 31))
    later = again(project)
    masks = later.masks("a.jpg")
    last = later.review("a.jpg")
    assert masks is not None and masks[0].any()
    assert last.mask_sha256 == project_module._sha256_of(later.mask_path("a.jpg"))


def test_a_kill_at_any_byte_of_the_log_keeps_what_was_decided(project: Project) -> None:
    project.correct("a.jpg", 0, [box()])
    whole = project.out / "review.jsonl"
    before = whole.read_bytes()
    project.correct("a.jpg", 1, [box(20)])
    after = whole.read_bytes()
    for end in range(len(before), len(after) + 1):
        whole.write_bytes(after[:end])
        log = ReviewLog(whole)
        expected = 2 if end == len(after) else 1
        assert log.get("a.jpg").revision == expected, end
        with log.writing():
            log.append(Review("b.jpg", 1, State.NOTHING))
        later = ReviewLog(whole)
        assert later.get("a.jpg").revision == expected and later.get("b.jpg").revision == 1
        assert later.project["classes"] == ["bird"]


def test_a_kill_between_the_line_and_the_mask_is_made_good(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    empty = np.zeros(HW, dtype=bool)
    project.correct("b.jpg", 0, [empty])  # a mask of the same bytes that is in its place
    with monkeypatch.context() as patched:
        patched.setattr(Project, "_publish", kill)
        with pytest.raises(Killed):
            project.correct("a.jpg", 0, [empty])
    assert not project.mask_path("a.jpg").exists()
    later = again(project)
    masks = later.masks("a.jpg")
    assert masks is not None and not masks[0].any() and later.review("a.jpg").state is State.NOTHING
    assert not list((project.out / HIDDEN / "staged").iterdir())


def test_a_kill_before_the_line_changes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.correct("a.jpg", 0, [box()])

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ReviewLog, "append", kill)
        with pytest.raises(KeyboardInterrupt):
            project.correct("a.jpg", 1, [box(20)])
    later = again(project)
    masks = later.masks("a.jpg")
    assert later.review("a.jpg").revision == 1 and masks is not None and (masks[0] == box()).all()


def test_lines_somebody_edited_are_read_or_left(project: Project) -> None:
    project.correct("a.jpg", 0, [box()])
    log = project.out / "review.jsonl"
    edited = (
        log.read_text()
        + 'not json\n{"image": 3}\n'
        + '{"image": "b.jpg", "revision": 1, "state": "accepted"}\n'
    )
    log.write_text(edited)
    project.refresh()
    assert states(project) == ["corrected", "accepted", "untouched"]
    project.say_nothing("b.jpg", 1)
    assert [review.revision for review in again(project).reviews()] == [1, 2, 0]


@pytest.mark.parametrize(
    "line",
    [
        '{"project": {"images": 5}}',
        '{"project": {"classes": "bird"}}',
        '{"project": {"classes": [1, 2]}}',
        '{"image": "a.jpg", "revision": 2.5, "state": "accepted"}',
        '{"image": "a.jpg", "revision": true, "state": "accepted"}',
        '{"image": "a.jpg", "revision": -5, "state": "accepted"}',
        '{"image": "a.jpg", "revision": 9, "state": "proposed", "doubt": Infinity}',
        '{"image": "a.jpg", "revision": 9, "state": "proposed", "presence": {"bird": NaN}}',
        '{"image": "a.jpg", "revision": 9, "state": "failed", "error": "\\ud800"}',
    ],
)
def test_a_line_that_no_page_could_show_is_left(project: Project, line: str) -> None:
    project.correct("a.jpg", 0, [box()])
    with (project.out / "review.jsonl").open("a") as log:
        log.write(f"{line}\n")
    later = open_project(project.out)
    assert later.review("a.jpg").revision == 1 and later.classes == ["bird"]


def test_an_image_whose_name_is_no_text_is_left_out_by_name(photos: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(photos) + b"/\xff.jpg"))
    odd.write_bytes((photos / "a.jpg").read_bytes())
    with pytest.warns(SearchNote, match="was left out: its name is no text"):
        assert Project(photos, tmp_path / "labels").keys == KEYS


def test_a_mask_of_another_size_is_not_exported(project: Project) -> None:
    project.correct("a.jpg", 0, [box()])
    Image.new("L", (5, 6), 255).save(project.mask_path("a.jpg"))
    with pytest.raises(InputError, match=r"a_mask\.png has 5 x 6 pixels, and its image 40 x 30"):
        list(exported(project, "coco", project.out))


def test_a_batch_does_not_run_over_corrections(project: Project) -> None:
    bird = Path(__file__).parents[1] / "examples" / "bird"
    supports = ["--support", str(bird / "support.jpg"), "--mask", str(bird / "support_mask.png")]
    paths = ["--queries", str(project.images), "--out", str(project.out)]
    result = CliRunner().invoke(main.app, ["batch", *supports, *paths])
    assert result.exit_code == 2 and "is a labelling project" in result.stderr


# --- doubt ---------------------------------------------------------------------------------------------


def test_doubt_is_the_expected_loss_of_iou() -> None:
    mask, flat = box(), np.zeros(HW, dtype=np.float32)
    certain = mask.astype(np.float32)
    assert doubt_of(mask, certain, 1.0) == pytest.approx(0)
    assert doubt_of(mask, certain, None) == pytest.approx(0)
    assert doubt_of(mask, certain, 0.6) == pytest.approx(0.4)
    assert doubt_of(mask, certain * np.float32(0.6), 1.0) == pytest.approx(0.4)
    assert doubt_of(np.zeros(HW, dtype=bool), flat, 0.3) == pytest.approx(0.3)
    assert doubt_of(np.zeros(HW, dtype=bool), flat + np.float32(0.2), None) == pytest.approx(0.2)


def test_doubtful_proposals_come_first() -> None:
    reviews = [
        Review("sure", 1, State.PROPOSED, doubt=0.1),
        Review("done", 2, State.ACCEPTED, doubt=0.9),
        Review("unsure", 1, State.PROPOSED, doubt=0.6),
        Review("new"),
    ]
    assert [review.image for review in by_doubt(reviews)] == ["unsure", "sure", "new", "done"]


# --- from the shell ------------------------------------------------------------------------------------


def test_review_prints_the_state_of_a_folder(project: Project) -> None:
    project.propose("a.jpg", 0, [box()], {"bird": 0.9}, 0.25)
    project.correct("b.jpg", 0, [box()])
    result = CliRunner().invoke(main.app, ["review", str(project.out)])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    for row in (["proposed", "1"], ["corrected", "1"], ["untouched", "1"], ["accepted", "0"]):
        assert row in rows
    assert ["a.jpg", "doubt", "0.25"] in rows
    result = CliRunner().invoke(main.app, ["review", str(project.out), "--json"])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line["image"]: line["state"] for line in lines} == dict(
        zip(KEYS, ("proposed", "corrected", "untouched"), strict=True)
    )


def test_review_of_another_folder_says_how_to_begin(tmp_path: Path) -> None:
    result = CliRunner().invoke(main.app, ["review", str(tmp_path)])
    assert result.exit_code == 3 and "is no labelling project" in result.stderr
    assert "diffseg serve --queries" in result.stderr


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("mask", {"a_mask.png", "day1/c_mask.png"}),
        (
            "voc",
            {
                "SegmentationClass/a.png",
                "SegmentationClass/day1/c.png",
                "labelmap.txt",
                "ImageSets/Segmentation/train.txt",
            },
        ),
        ("yolo", {"labels/a.txt", "labels/day1/c.txt", "data.yaml"}),
        ("labelme", {"a_labelme.json", "day1/c_labelme.json"}),
        ("coco", {"coco.json"}),
    ],
)
def test_export_writes_what_was_decided(project: Project, form: str, names: set[str]) -> None:
    project.correct("a.jpg", 0, [box()])
    project.propose("b.jpg", 0, [box()], {}, 0.5)
    project.say_nothing("day1/c.jpg", 0)
    result = CliRunner().invoke(main.app, ["export", str(project.out), "--format", form])
    assert result.exit_code == 0, result.output
    place = Path(result.stdout.strip())
    assert {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()} == names


def test_an_export_holds_the_very_masks(project: Project, tmp_path: Path) -> None:
    project.correct("a.jpg", 0, [box()])
    project.propose("b.jpg", 0, [box(20)], {}, 0.5)
    arguments = ["export", str(project.out), "--format", "coco", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(main.app, arguments).exit_code == 0
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.jpg"]
    (only,) = content["annotations"]
    assert (coco_mask.decode(only["segmentation"]) == box()).all() and only["score"] == 1
    assert CliRunner().invoke(main.app, [*arguments, "--all"]).exit_code == 0
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [each["score"] for each in content["annotations"]] == [1, 0.5]


@pytest.mark.parametrize("form", ["coco", "yolo", "labelme"])
def test_instances_are_exported_apart(photos: Path, tmp_path: Path, form: str) -> None:
    """By the setting of the project, and against it."""

    def objects(*flags: str) -> int:
        arguments = ["export", str(out), "--format", form, "--out", str(tmp_path / "export"), *flags]
        assert CliRunner().invoke(main.app, arguments).exit_code == 0
        if form == "yolo":
            return len((tmp_path / "export" / "labels" / "a.txt").read_text().splitlines())
        name, rows = {"coco": ("coco.json", "annotations"), "labelme": ("a_labelme.json", "shapes")}[form]
        return len(json.loads((tmp_path / "export" / name).read_text())[rows])

    out, touching = tmp_path / "labels", np.zeros(HW, dtype=np.uint8)
    for x in (11, 26):
        cv2.circle(touching, (x, 14), 8, 1, cv2.FILLED)
    Project(photos, out, ["bird"]).correct("a.jpg", 0, [touching > 0])
    assert not open_project(out).instances and objects() == 1 and objects("--instances") == 2
    Project(photos, out, instances=True)
    assert open_project(out).instances and objects() == 2 and objects("--no-instances") == 1


def test_an_export_of_nothing_is_refused(project: Project) -> None:
    result = CliRunner().invoke(main.app, ["export", str(project.out), "--format", "mask"])
    assert result.exit_code == 3 and "export proposals as well with --all" in result.stderr
    assert not (project.out / "export").exists()
