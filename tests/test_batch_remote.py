"""diffseg batch with pictures and results elsewhere: URLs of fsspec, in memory and on this disk."""

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_swift_segmenter
from PIL import Image
from typer.testing import CliRunner, Result

from diffseg_cli import assembly, remote
from diffseg_cli.batch import manifest_pieces
from diffseg_cli.batch.manifest import ManifestReader, Row
from diffseg_cli.batch.store import Store
from diffseg_cli.cli import main
from diffseg_cli.errors import InputError, MissingDependency
from diffseg_cli.segmenter import Segmenter

UPath = pytest.importorskip("upath").UPath
HW = (48, 64)


def run(*arguments: str, code: int = 0) -> Result:
    words = ["batch", "-s", "support.png", "-m", "support_m.png", *arguments]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main.app, words)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def batch(queries: str, out: str, *arguments: str, code: int = 0) -> Result:
    formats = ["-f", "mask", "-f", "score", "-f", "coco", "-f", "json"]
    return run("-q", queries, "--recursive", "-o", out, *formats, *arguments, code=code)


def states(result: Result) -> dict[str, str]:
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {Path(line["query"]).stem: line["state"] for line in lines}


def files(out: str) -> dict[str, bytes]:
    """Everything but the manifests, whose seconds differ."""
    found = {str(path.relative_to(remote.to_path(out))): path for path in remote.to_path(out).glob("**/*")}
    whole = {name: path.read_bytes() for name, path in sorted(found.items()) if path.is_file()}
    return {name: content for name, content in whole.items() if "manifest" not in name}


def save(path: Any, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    with path.open("wb") as stream:
        Image.fromarray(coarse).resize(HW[::-1], Image.Resampling.BICUBIC).save(stream, "PNG")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> Iterator[str]:
    """A folder in memory with the pictures that lie on the disk too."""
    monkeypatch.chdir(tmp_path)
    url = f"memory://{uuid.uuid4()}"
    save(Path("support.png"), 90)
    mask = np.zeros(HW, dtype=np.uint8)
    mask[10:35, 20:50] = 255
    Image.fromarray(mask).save("support_m.png")
    Path("photos/day1").mkdir(parents=True)
    for seed, name in enumerate(["a", "b", "day1/c", "day1/d #1 %"]):
        save(Path(f"photos/{name}.png"), seed)
        save(UPath(f"{url}/photos/{name}.png"), seed)
    UPath(f"{url}/photos/.hidden.png").write_bytes(b"")
    UPath(f"{url}/photos/notes.md").write_bytes(b"")
    swift = make_swift_segmenter(small_segmenter)
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: swift)
    yield url
    UPath(url).fs.rm(UPath(url).path, recursive=True)


def test_places_give_the_bytes_of_the_disk_and_go_on(store: str, tmp_path: Path) -> None:
    batch("photos", "out")
    expected = files("out")
    first = batch(f"{store}/photos", f"{store}/out", "--json")
    assert set(states(first).values()) == {"done"} and files(f"{store}/out") == expected
    assert first.stdout.splitlines()[0].count(f"{store}/out/") == 3
    assert set(states(batch(f"{store}/photos", f"{store}/out", "--json")).values()) == {"skipped"}
    UPath(f"{store}/out/a_mask.png").unlink()
    UPath(f"{store}/photos/b.png").write_bytes(b"spoiled")
    now = states(batch(f"{store}/photos", f"{store}/out", "--json", code=5))
    assert now == {"a": "done", "b": "failed", "c": "skipped", "d #1 %": "skipped"}
    assert not UPath(f"{store}/out/b_mask.png").exists()
    with ManifestReader(remote.to_path(f"{store}/out")) as reader:
        assert str(reader.rows("b.png")[-1].error).startswith(f"{store}/photos/b.png is not an image")
    batch(f"{store}/photos/day1", f"file://{tmp_path}/mixed", "-f", "labelme")
    assert json.loads(Path("mixed/c_labelme.json").read_text())["imagePath"].startswith(f"{store}/photos/")
    batch("photos", f"{store}/other")
    assert files(f"{store}/other") == expected


def test_verify_reads_elsewhere(store: str) -> None:
    batch(f"{store}/photos", f"{store}/out")
    assert "all 15 files" in run("--verify", "-o", f"{store}/out").stderr
    UPath(f"{store}/out/a_mask.png").write_bytes(b"other")
    save(UPath(f"{store}/photos/b.png"), 50)
    assert run("--verify", "-o", f"{store}/out", code=5).stdout.splitlines() == [
        f"a.png: {store}/out/a_mask.png is not what was written",
        "b.png: has changed since its results were made",
    ]
    assert "holds no manifest" in run("--verify", "-o", f"{store}/photos", code=3).stderr


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ("photos", ["a.png", "b.png"]),
        ("photos/*.png", ["a.png", "b.png"]),
        ("photos/day?/c*", ["day1/c.png"]),
        ("photos/day1/c.png", ["c.png"]),
        ("list.txt", ["b.png", "day1/c.png"]),
    ],
)
def test_sources_are_those_of_the_disk(store: str, queries: str, expected: list[str]) -> None:
    UPath(f"{store}/list.txt").write_text(f"{store}/photos/b.png\n{store}/photos/day1/c.png\n")
    told = run("-q", f"{store}/{queries}", "-o", f"{store}/photos/out", "-f", "mask", "--dry-run")
    listed = [line.split(" -> ")[0].removeprefix("todo  ") for line in told.stdout.splitlines()]
    keys = [line.removeprefix(f"{store}/photos/") for line in listed]
    assert keys == (["day1/c.png"] if queries.endswith("c.png") else expected)
    assert not UPath(f"{store}/photos/out").exists()


def test_names_in_a_store_may_hold_two_slashes(store: str) -> None:
    fs, folder = UPath(store).fs, UPath(f"{store}/odd").path
    for seed, name in enumerate(["//a.png", "/day//b.png"]):
        fs.pipe_file(folder + name, UPath(f"{store}/photos/a.png").read_bytes() + bytes(seed))
    UPath(f"{store}/odd.txt").write_text(f"{store}/odd//a.png\n{store}/odd/day//b.png\n")
    for queries, out in (("odd", "out1"), ("odd/**", "out2"), ("odd.txt", "out3")):
        assert states(batch(f"{store}/{queries}", f"{store}/{out}", "--json")) == {"a": "done", "b": "done"}
        assert {"a_mask.png", "day/b_mask.png"} <= files(f"{store}/{out}").keys()
    batch(f"{store}/odd", "here")
    assert Path("here/a_mask.png").is_file() and Path("here/day/b_mask.png").is_file()
    fs.pipe_file(folder + "/a.png", b"other")
    said = batch(f"{store}/odd", f"{store}/out", code=2).stderr
    assert "odd//a.png and" in said or "odd/a.png and" in said


def test_a_place_that_cannot_be_reached_is_named_by_verify_and_dry_run(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise RuntimeError("The specified bucket does not exist")

    monkeypatch.setattr(type(UPath(store)), "glob", gone)
    for words in (["--verify"], ["--dry-run", "-q", "photos"]):
        said = run(*words, "-o", f"{store}/out", code=3).stderr
        assert f"{store}/out cannot be reached: The specified bucket does not exist." in said


def test_results_are_never_taken_for_pictures(store: str) -> None:
    batch(f"{store}/photos", f"{store}/photos/out")
    assert len(states(batch(f"{store}/photos", f"{store}/photos/out", "--json"))) == 4


def test_a_manifest_grows_by_pieces(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = remote.to_path(f"{store}/pieces")
    monkeypatch.setattr(manifest_pieces, "MOST_BYTES", 400)
    with manifest_pieces.open_writer(out, "-1-of-2") as writer:
        for number in range(7):
            writer.add(Row(f"{number}", {"path": "x"}, "s", "w", time=number, error="bad"))
        sent = len(list(out.glob("manifest-1-of-2-*.jsonl")))
        assert 2 <= sent < 7
    with manifest_pieces.open_writer(out, "") as writer:
        writer.add(Row("3", {"path": "x"}, "s", "w", time=9.0, error="bad"))
    with ManifestReader(out) as reader:
        assert reader.keys() == [f"{number}" for number in range(7)]
        assert [row.time for row in reader.rows("3")] == [3, 9.0]


def test_what_shows_half_files_gets_a_temporary_name(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "OBJECT_STORES", set())
    out = Store(remote.to_path(f"{store}/half"))
    out.write("day/a.bin", b"one")
    out.write("day/a.bin", b"two")
    assert files(f"{store}/half") == {"day/a.bin": b"two"}
    file_system = type(UPath(store).fs)

    def breaks(*_: Any, **__: Any) -> None:
        raise OSError("the line is cut")

    monkeypatch.setattr(file_system, "mv", breaks)
    with pytest.raises(InputError, match="cannot be written: the line is cut"):
        out.write("day/a.bin", b"three")
    assert files(f"{store}/half") == {"day/a.bin": b"two"}


def test_stores_that_cannot_be_used_are_named(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "There is no file system for nowhere://." in run("-q", "nowhere://x", code=2).stderr
    with pytest.raises(MissingDependency) as caught:
        remote.to_path("gs://bucket/photos")
    assert "gcsfs" in caught.value.message and "'diffseg[cloud]'" in str(caught.value.hint)
    said = run("-q", f"{store}/none", code=3).stderr
    assert f"{store}/none is no folder, image, pattern or list." in said
    Path("list.txt").write_text(f"{store}/photos/b.png\nphotos/a.png\n")
    assert "several file systems" in run("-q", "list.txt", code=2).stderr
    said = run("-q", f"{store}/photos", "-o", f"{store}/out", "--engine", "ray", code=2).stderr
    assert f"No other process sees {store}/out." in said

    def denied(*_: Any, **__: Any) -> None:
        raise RuntimeError("no credentials\nin a long story")

    monkeypatch.setattr(type(UPath(store).fs), "pipe_file", denied)
    said = run("-q", f"{store}/photos", "-o", f"{store}/out", code=3).stderr
    assert f"{store}/out cannot be reached: no credentials." in said
    monkeypatch.setitem(sys.modules, "upath", None)
    remote._check.cache_clear()
    with pytest.raises(MissingDependency, match="A package for s3:// is not"):
        remote.to_path("s3://bucket/photos")
    remote._check.cache_clear()
