"""diffseg batch: what it writes, how it goes on, and what breaks without losing anything."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_swift_segmenter
from PIL import Image
from typer.testing import CliRunner, Result

from diffseg_cli import assembly
from diffseg_cli import files as files_module
from diffseg_cli.batch import pipeline, sizing, store
from diffseg_cli.batch import runner as runner_module
from diffseg_cli.batch.index_page import LABELLING
from diffseg_cli.batch.manifest import ManifestReader, ManifestWriter, Row
from diffseg_cli.batch.runner import Content, Runner, exact_threads
from diffseg_cli.choices import AdaptChoice, AnswerChoice, MaskChoice, SupportChoice
from diffseg_cli.cli import batch_progress, main
from diffseg_cli.cli.inputs import read_concepts
from diffseg_cli.segmenter import Segmenter

HW = (48, 64)
THING = ("-s", "support.png", "-m", "support_m.png")
NAMES = ["a", "b", "day1/c", "day1/d"]


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main.app, ["batch", *THING, *arguments])


def batch(*arguments: str, out: str = "out", code: int = 0) -> Result:
    result = run("-q", "photos", "--recursive", "-o", out, *arguments)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def rows(result: Result) -> dict[str, dict[str, Any]]:
    parsed = [json.loads(line) for line in result.stdout.splitlines()]
    return {Path(row["query"]).stem: row for row in parsed}


def states(result: Result) -> dict[str, str]:
    return {name: row["state"] for name, row in rows(result).items()}


def files(out: str = "out") -> dict[str, bytes]:
    """Everything but the manifests, whose seconds differ."""
    found = {path.relative_to(out).as_posix(): path for path in Path(out).rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(found.items()) if "manifest" not in name}


def save(path: str, seed: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(HW[::-1], Image.Resampling.BICUBIC).save(path)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> Path:
    monkeypatch.chdir(tmp_path)
    save("support.png", 90)
    mask = np.zeros(HW, dtype=np.uint8)
    mask[10:35, 20:50] = 255
    Image.fromarray(mask).save("support_m.png")
    for seed, name in enumerate(NAMES):
        save(f"photos/{name}.png", seed)
    swift = make_swift_segmenter(small_segmenter)
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: swift)
    return tmp_path


# --- results -------------------------------------------------------------------------------------------


def test_results_mirror_the_tree_and_are_those_of_segment() -> None:
    result = batch("-f", "mask", "-f", "score", "-f", "coco", "-f", "yolo")
    assert result.stdout.splitlines() == ["out/coco.json", "out/data.yaml", "out/index.html"]
    assert "4 done, 0 skipped, 0 failed, " in result.stderr
    assert "seconds of all threads together" not in result.stderr
    written = files()
    expected = {f"{name}{ending}" for name in NAMES for ending in ("_mask.png", "_score.npy")}
    expected |= {f"labels/{name}.txt" for name in NAMES}
    expected |= {f"index_thumbnails/{name}.png.jpg" for name in NAMES}
    assert set(written) == expected | {"coco.json", "data.yaml", "index.html"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = CliRunner().invoke(
            main.app, ["segment", *THING, "-q", "photos/day1/c.png", "-f", "mask", "-f", "score", "-o", "one"]
        )
    finally:
        torch.set_num_threads(threads)
    assert alone.exit_code == 0
    for ending in ("_mask.png", "_score.npy"):
        assert Path(f"one/c{ending}").read_bytes() == written[f"day1/c{ending}"]
    coco = json.loads(written["coco.json"])
    assert [image["file_name"] for image in coco["images"]] == [f"{name}.png" for name in NAMES]
    assert len(coco["annotations"]) == 4


def test_json_streams_a_line_a_picture() -> None:
    lines = rows(batch("--json", "-f", "mask", "-f", "json"))
    assert set(lines) == {"a", "b", "c", "d"}
    row = lines["c"]
    assert row["query"] == "photos/day1/c.png" and row["state"] == "done" and row["error"] is None
    assert row["outputs"] == {
        "mask": "out/day1/c_mask.png",
        "thumbnail": "out/index_thumbnails/day1/c.png.jpg",
    }
    assert row["size_hw"] == list(HW) and 0 < row["mask_area"] < 1 and 0 < row["presence"] < 1
    assert {"read", "decode", "model", "draw", "write"} == set(row["seconds"])
    record = json.loads(Path("out/run.json").read_text())
    assert [image["query"] for image in record["images"]] == [f"{name}.png" for name in NAMES]
    assert record["concepts"][0]["supports"][0]["image"] == "support.png" and record["seed"] == 0


def test_concepts_share_a_label_map() -> None:
    for name in ("one", "two"):
        made = CliRunner().invoke(main.app, ["concept", "make", f"{name}.dsc", *THING, "--name", name])
        assert made.exit_code == 0, made.output
    arguments = ["batch", "-c", "one.dsc", "-c", "two.dsc", "-q", "photos", "-o", "out", "--json"]
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == 0
    assert [found["name"] for found in rows(result)["a"]["concepts"]] == ["one", "two"]
    with Image.open("out/a_mask.png") as mask:
        assert mask.mode == "P"
    assert {"a_heatmap_one.png", "a_heatmap_two.png"} <= set(files())


# --- the same bytes ------------------------------------------------------------------------------------


def test_nothing_depends_on_batches_workers_parts_or_order(folder: Path) -> None:
    formats = ("-f", "mask", "-f", "score", "-f", "overlay", "-f", "json", "-f", "coco")
    batch(*formats)
    expected = files()
    batch(*formats, "--workers", "5", "--batch-size", "3", out="more")
    assert files("more") == expected
    for part in ("3/3", "1/3", "2/3"):
        batch(*formats, "--part", part, out="parts")
    assert files("parts") == expected
    assert len(list(Path("parts").glob("manifest-?-of-3.jsonl"))) == 3
    assert set(states(batch(*formats, "--json", out="parts")).values()) == {"skipped"}
    items = runner_module.Item  # in another order, without the pipeline
    with ManifestReader(folder / "none") as reader:
        runner = Runner(
            assembly.load_segmenter(), _job_of(folder), store.Store(folder / "alone"), reader.rows
        )
        with exact_threads(runner.segmenter):
            for name in NAMES[::-1]:
                content = runner.fetch(items(Path("photos", f"{name}.png"), f"{name}.png"))
                assert isinstance(content, Content)
                decoded = runner.decode(content)
                runner.write(decoded, runner.find([decoded])[0])
    alone = files("alone")
    assert alone and all(expected[name] == content for name, content in alone.items())


def _job_of(folder: Path) -> Any:
    from diffseg_cli.batch.job import Job

    supports = SupportChoice((folder / "support.png",), (folder / "support_m.png",))
    return Job(read_concepts(supports, MaskChoice(), AdaptChoice()), AnswerChoice(), ["mask", "score"])


def test_a_batch_size_is_used_only_if_no_bit_changes(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    runner = Runner(assembly.load_segmenter(), _job_of(folder), store.Store(folder / "x"))
    sizes: list[int] = []
    find = Runner.find

    def one_by_one(self: Runner, pictures: Any) -> Any:
        return [find(self, [picture])[0] for picture in pictures]

    def inexact(self: Runner, pictures: Any) -> Any:
        sizes.append(len(pictures))
        answers = one_by_one(self, pictures)
        if len(pictures) > 2:
            answers[-1].scene.found[0].probability[0, 0] += np.float32(1e-3)
        return answers

    monkeypatch.setattr(Runner, "find", one_by_one)
    assert sizing.choose_batch_size(runner, 3, 100) == 3
    assert sizing.choose_batch_size(runner, 3, 1) == sizing.choose_batch_size(runner, None, 5) == 1
    monkeypatch.setattr(sizing, "_pace", lambda _, size: 1 / size)
    monkeypatch.setattr(sizing, "LARGEST", 6)
    assert sizing.choose_batch_size(runner, None, 30) == 4
    monkeypatch.setattr(Runner, "find", inexact)
    assert sizing.choose_batch_size(runner, 4, 100) == 1
    assert sizing.choose_batch_size(runner, None, 100) == 2
    assert max(sizes) == 4
    monkeypatch.setattr(sizing, "_pace", lambda *_: 1.0)
    assert sizing.choose_batch_size(runner, None, 100) == 1


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    find, sizes = Runner.find, []

    def hungry(self: Runner, pictures: Any) -> Any:
        sizes.append(len(pictures))
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("no memory")
        return find(self, pictures)

    runner = Runner(assembly.load_segmenter(), _job_of(folder), store.Store(folder / "x"))
    monkeypatch.setattr(Runner, "find", hungry)
    monkeypatch.setattr(pipeline, "shares_a_cpu", lambda _: False)
    items = [runner_module.Item(Path("photos", f"{name}.png"), f"{name}.png") for name in NAMES]
    outcomes = list(pipeline.Pipeline(runner, workers=1, batch_size=4).run(items))
    assert sorted(outcome.item.key for outcome in outcomes) == [f"{name}.png" for name in NAMES]
    assert all(outcome.row.error is None for outcome in outcomes) and sizes.count(1) == 4


@pytest.mark.parametrize("refused", ["read 0", "model 0", "write 0", "read 1", "write 1"])
def test_a_system_without_threads_gets_fewer_or_an_error_and_never_waits(
    monkeypatch: pytest.MonkeyPatch, folder: Path, refused: str
) -> None:
    start = threading.Thread.start

    def scarce(self: threading.Thread) -> None:
        if self.name == refused:
            raise RuntimeError("can't start new thread")
        start(self)

    runner = Runner(assembly.load_segmenter(), _job_of(folder), store.Store(folder / "x"))
    items = [runner_module.Item(Path("photos", f"{name}.png"), f"{name}.png") for name in NAMES]
    monkeypatch.setattr(threading.Thread, "start", scarce)
    running = pipeline.Pipeline(runner, workers=2, batch_size=1).run(items)
    if refused.endswith("1"):
        assert sorted(outcome.item.key for outcome in running) == [f"{name}.png" for name in NAMES]
    else:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            list(running)


# --- going on ------------------------------------------------------------------------------------------


def test_what_agrees_is_skipped_and_anything_else_done_again() -> None:
    formats = ("--json", "-f", "mask", "-f", "overlay")
    assert set(states(batch(*formats)).values()) == {"done"}
    before = files()
    assert set(states(batch(*formats)).values()) == {"skipped"}
    Path("out/a_mask.png").unlink()
    Path("out/b_overlay.png").write_bytes(b"something else")
    save("photos/day1/c.png", 77)
    now = states(batch(*formats))
    assert now == {"a": "done", "b": "done", "c": "done", "d": "skipped"}
    after = files()
    assert {name for name in before if after[name] != before[name]} == {
        *("day1/c_mask.png", "day1/c_overlay.png", "index_thumbnails/day1/c.png.jpg", "index.html")
    }
    assert set(states(batch(*formats)).values()) == {"skipped"}
    assert set(states(batch(*formats, "--no-resume")).values()) == {"done"}
    assert set(states(batch(*formats, "--threshold", "0.4")).values()) == {"done"}
    assert set(states(batch(*formats, "--threshold", "0.4", "-f", "coco")).values()) == {"done"}
    Image.fromarray(np.full(HW, 255, np.uint8)).save("support_m.png", "BMP")
    Image.fromarray(np.tri(*HW, dtype=np.uint8) * 255).save("support_m.png")
    assert set(states(batch(*formats)).values()) == {"done"}


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"presence": None}, "done"),
        ({"mask_gamma": 0.5}, "done"),
        ({"knowledge": "cross"}, "done"),
        ({"source": "the same, moved"}, "skipped"),
    ],
)
def test_whatever_was_trained_otherwise_does_everything_again(
    monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter, change: dict[str, Any], state: str
) -> None:
    batch()
    swift = make_swift_segmenter(small_segmenter)
    other = swift.with_trained(replace(swift.trained, **change))
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: other)
    assert set(states(batch("--json")).values()) == {state}


def test_folders_can_move_together() -> None:
    batch("-f", "labelme")
    Path("elsewhere").mkdir()
    Path("photos").rename("elsewhere/photos")
    Path("out").rename("elsewhere/out")
    again = run("-q", "elsewhere/photos", "--recursive", "-o", "elsewhere/out", "-f", "labelme", "--json")
    assert set(states(again).values()) == {"skipped"}


def test_a_torn_manifest_and_leftovers_are_mended() -> None:
    batch("-f", "mask")
    before = files()
    path = Path("out/manifest.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"{damaged}\n", b"\0\0\0\n", *lines[1:-2], lines[-2][:50]]))
    for name in (".diffseg-batch-all-99-1.partial", "day1/.diffseg-batch-all-99-2.partial"):
        Path("out", name).write_bytes(b"half")
    for name in ("out/.diffseg-batch-1-of-2-99-1.partial", "out/.diffseg-batch-2-of-2-99-1.partial"):
        Path(name).write_bytes(b"of another machine")
    os.utime("out/.diffseg-batch-2-of-2-99-1.partial", (0, 0))
    now = states(batch("-f", "mask", "--json"))
    assert sorted(now.values()) == ["done", "skipped", "skipped", "skipped"]
    after = files()
    assert after.pop(".diffseg-batch-1-of-2-99-1.partial") and after == before
    assert all(
        json.loads(line)
        for line in path.read_bytes().splitlines()
        if b"amaged" not in line and line[:1] != b"\0"
    )


@pytest.mark.parametrize(
    "changes",
    [
        *({"key": 5}, {"input": []}, {"input": {}}, {"outputs": {"mask": "a_mask.png"}}, {"outputs": [1]}),
        *({"found": {}}, {"found": {"mask_area": "all"}}, {"time": "now"}, {"unknown": 1}, {"seconds": None}),
        {"shapes": 3},
    ],
)
def test_lines_that_somebody_edited_are_done_again(changes: dict[str, Any]) -> None:
    batch("-f", "mask", "-f", "coco")
    path = Path("out/manifest.jsonl")
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    edited = [line | (changes if line.get("key") == "a.png" else {}) for line in lines]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in [*edited, [], 7, "text"]))
    now = states(batch("-f", "mask", "-f", "coco", "--json"))
    assert now == {"a": "done", "b": "skipped", "c": "skipped", "d": "skipped"}


def test_a_clock_that_is_ahead_does_not_outlive_what_was_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Path("photos/b.png").read_bytes()
    Path("photos/b.png").write_bytes(b"spoiled")
    with monkeypatch.context() as patch:
        ahead = time.time() + 86400
        patch.setattr(time, "time", lambda: ahead)
        batch("-f", "mask", "-f", "coco", "--part", "1/1", code=5)
        Path("out/manifest.jsonl").rename("out/manifest-1-of-1.jsonl")  # as a machine with a part leaves it
    Path("photos/b.png").write_bytes(good)
    batch("-f", "mask", "-f", "coco")
    coco = json.loads(Path("out/coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [f"{name}.png" for name in NAMES]
    result = run("--verify", "-o", "out")
    assert result.exit_code == 0, result.output


def test_there_may_be_more_manifests_than_open_files(tmp_path: Path) -> None:
    for number in range(200):
        with ManifestWriter(tmp_path, f"-{number}-of-200") as writer:
            writer.add(Row(f"{number % 150}", {"path": "x"}, "s", "w", order=number, error="bad"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, limits[1]))
    try:
        with ManifestReader(tmp_path) as reader:
            assert len(reader.keys()) == 150
            assert [row.order for row in reader.rows("7")] == [7, 157]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_second_run_of_the_same_part_is_refused(folder: Path) -> None:
    with ManifestWriter(folder / "out"):
        result = batch(code=2)
        assert "Another run is writing out/manifest.jsonl." in result.stderr
        batch("--part", "1/2")
    batch()


def test_a_manifest_without_locks_is_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files_module.fcntl, "flock", unsupported)
    batch()
    monkeypatch.setattr(files_module, "fcntl", None)
    assert set(states(batch("--json")).values()) == {"skipped"}


# --- what breaks ---------------------------------------------------------------------------------------


def test_a_bad_picture_stops_no_other() -> None:
    Path("photos/bad.jpg").write_bytes(Path("photos/a.png").read_bytes()[:-40])
    Path("photos/text.jpg").write_text("no picture")
    result = batch(code=5)
    assert "4 done, 0 skipped, 2 failed" in result.stderr
    assert re.search(r"failed: photos/bad.jpg: photos/bad.jpg is damaged or cut short", result.stderr)
    assert "error: 2 images failed of 6." in result.stderr
    again = batch("--json", code=5)
    assert states(again) == {**dict.fromkeys("abcd", "skipped"), "bad": "failed", "text": "failed"}
    assert rows(again)["text"]["error"].startswith("photos/text.jpg is not an image")
    for name in ("bad", "text"):
        save(f"photos/{name}.png", 8)
        Path(f"photos/{name}.jpg").unlink()
    assert sorted(states(batch("--json")).values()) == ["done"] * 2 + ["skipped"] * 4


def test_pipes_and_devices_are_refused_instead_of_waited_for() -> None:
    os.mkfifo("photos/pipe.png")
    Path("list.txt").write_text("photos/pipe.png\nphotos/a.png\n")
    result = batch("-f", "mask", code=0)
    assert "photos/pipe.png was left out: not a regular file." in result.stderr
    listed = run("-q", "list.txt", "-o", "listed", "-f", "mask")
    assert listed.exit_code == 5 and "photos/pipe.png is not a regular file." in listed.stderr
    for arguments in (("-q", "photos/pipe.png"), ("-q", "photos/a.png", "-s", "photos/pipe.png", "-m", "x")):
        alone = CliRunner().invoke(main.app, ["segment", *THING, *arguments])
        assert alone.exit_code in (2, 3), alone.output


def test_on_error_stop_ends_early_and_loses_nothing() -> None:
    for index in range(30):
        save(f"photos/more/{index:02}.png", index)
    Path("photos/a.png").write_bytes(b"")
    result = batch("--on-error", "stop", "--workers", "1", code=5)
    assert "error: Stopped: 1 image failed." in result.stderr and not Path("out/index.html").exists()
    save("photos/a.png", 0)
    now = list(states(batch("--json")).values())
    assert now.count("done") > 0 and len(now) == 34


def test_a_picture_that_vanishes_or_spoils_leaves_no_old_results(monkeypatch: pytest.MonkeyPatch) -> None:
    batch("-f", "mask")
    Path("photos/b.png").write_bytes(b"spoiled")
    fetch = Runner.fetch

    def vanish(self: Runner, item: Any) -> Any:
        if item.key == "a.png":
            item.path.unlink()
        return fetch(self, item)

    monkeypatch.setattr(Runner, "fetch", vanish)
    result = batch("-f", "mask", "--json", code=5)
    assert states(result) == {"a": "failed", "b": "failed", "c": "skipped", "d": "skipped"}
    assert rows(result)["a"]["error"] == "photos/a.png does not exist any more."
    assert not {"a_mask.png", "b_mask.png", "index_thumbnails/a.png.jpg"} & set(files())


def breaking(number: int, code: int, name: str = "") -> Callable[..., None]:
    """`replace_file` that fails from its n-th file on, or for one name."""
    real, lock, count = store.replace_file, threading.Lock(), [0]

    def replace(path: Path, content: bytes, prefix: str) -> None:
        with lock:
            count[0] += 1
        if (name and path.name == name) or (not name and count[0] >= number):
            raise OSError(code, os.strerror(code))
        real(path, content, prefix)

    return replace


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("number", [1, 4, 9])
def test_a_full_disk_ends_the_run_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, code: int, number: int
) -> None:
    batch("-f", "mask", "-f", "score", out="whole")
    with monkeypatch.context() as patch:
        patch.setattr(store, "replace_file", breaking(number, code))
        result = batch("-f", "mask", "-f", "score", code=3)
    assert os.strerror(code) in result.stderr and "the same command again" in result.stderr
    now = list(states(batch("-f", "mask", "-f", "score", "--json")).values())
    assert now.count("skipped") <= number // 3 and files() == files("whole")


def test_one_file_that_cannot_be_written_is_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "replace_file", breaking(0, errno.EACCES, "c_overlay.png"))
    result = batch("--json", code=5)
    assert states(result) == {"a": "done", "b": "done", "c": "failed", "d": "done"}
    assert "c_overlay.png cannot be written: Permission denied" in rows(result)["c"]["error"]
    assert not [name for name in files() if "day1/c" in name]


def test_a_manifest_that_cannot_grow_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = files_module.LineLog.add, [0]

    def full(self: files_module.LineLog, record: Any) -> None:
        count[0] += 1
        if count[0] > 2:
            raise files_module.unwritable(self.path, OSError(errno.ENOSPC, "No space left on device"))
        real(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(files_module.LineLog, "add", full)
        assert "manifest.jsonl cannot be written: No space left" in batch(code=3).stderr
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith(("read", "model", "write"))
    ]
    assert sorted(states(batch("--json")).values()) == ["done", "done", "done", "skipped"]


def test_a_model_that_breaks_on_a_picture_is_a_failure_of_that_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = Runner.find

    def broken(self: Runner, pictures: Any) -> Any:
        if any(picture.source.item.key == "a.png" for picture in pictures):
            raise RuntimeError("a bug\nwith details")
        return find(self, pictures)

    monkeypatch.setattr(Runner, "find", broken)
    result = batch("--json", code=5)
    assert rows(result)["a"]["error"] == "RuntimeError: a bug" and states(result)["b"] == "done"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("-q", "none"), 3, "none is no folder, image, pattern or list."),
        ((), 2, "There is nothing to search."),
        (("-q", "photos", "--part", "3/2"), 2, "is not k/n"),
        (("-q", "photos", "--batch-size", "0"), 2, "is not auto or a number"),
        (("-q", "photos", "--matting"), 2, "--matting is for cut-outs."),
        (("-q", "photos", "-o", "support.png"), 3, "cannot be written"),
        (("--verify", "-o", "photos"), 3, "photos holds no manifest of a batch."),
    ],
)
def test_refused_before_anything_runs(arguments: tuple[str, ...], code: int, says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code and says in " ".join(result.stderr.split())
    assert not Path("diffseg_out").exists()


def test_names_that_meet_are_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "load_segmenter", None)
    save("photos/A.jpg", 3)
    assert "would both be written to out/" in batch(code=2).stderr and not Path("out").exists()


def test_min_presence_without_a_score_is_refused_once(
    monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter
) -> None:
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: small_segmenter)
    assert "there is no presence score" in batch("--min-presence", "0.5", code=2).stderr


# --- looking -------------------------------------------------------------------------------------------


def test_dry_run_lists_and_writes_nothing() -> None:
    batch("-f", "mask")
    save("photos/new.png", 30)
    before = files()
    result = batch("-f", "mask", "--dry-run")
    assert result.stdout.splitlines()[0].startswith("skip  photos/a.png -> out/a_mask.png")
    assert result.stdout.splitlines()[-1].startswith("todo  photos/new.png -> out/new_mask.png")
    told = states(batch("-f", "mask", "--dry-run", "--json"))
    assert told == {**dict.fromkeys("abcd", "skip"), "new": "todo"} and files() == before
    batch("-f", "mask", "--dry-run", out="fresh")
    assert not Path("fresh").exists()


def test_verify_names_what_is_wrong() -> None:
    Path("photos/bad.jpg").write_bytes(b"")
    batch("-f", "mask", "-f", "coco", code=5)
    Path("photos/bad.jpg").unlink()
    batch("-f", "mask", "-f", "coco")
    verify = ("--verify", "-o", "out")
    found = run(*verify)
    assert found.exit_code == 5 and found.stdout.splitlines() == [
        "bad.jpg: failed: photos/bad.jpg is empty (0 bytes)."
    ]
    path = Path("out/manifest.jsonl")
    path.write_bytes(
        b"".join(line for line in path.read_bytes().splitlines(True) if b'"bad.jpg"' not in line)
    )
    right = run(*verify)
    assert right.exit_code == 0 and right.stderr == "out: all 10 files are as they were written.\n"
    Path("out/a_mask.png").unlink()
    Path("out/coco.json").write_text("{}")
    save("photos/b.png", 55)
    Path("photos/day1/c.png").unlink()
    wrong = run(*verify)
    assert wrong.exit_code == 5 and wrong.stdout.splitlines() == [
        "a.png: out/a_mask.png is missing",
        "b.png: has changed since its results were made",
        "coco.json: out/coco.json is not what was written",
    ]


def test_the_sheet_holds_every_picture() -> None:
    Path("photos/<script>&amp; \u00fc#1.jpg").write_bytes(b"")
    save("photos/day1/100% <b>.png", 5)
    batch("-f", "overlay", code=5)
    page = Path("out/index.html").read_text(encoding="utf-8")
    assert "src=" not in page.replace("image.src", "").replace(".src = ", "")
    assert "http" not in page.replace(LABELLING, "")
    listed = re.search(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)
    assert listed is not None
    cards = {card[0]: card for card in json.loads(listed[1])}
    assert len(cards) == 6
    name, small, large, presence, area, found, error, count, image, *cut = cards["day1/100% <b>.png"]
    assert Path("out/index_thumbnails", f"{name}.jpg").exists() and "<" not in small and "%25" in small
    assert large == "day1/100%25%20%3Cb%3E_overlay.png" and 0 < presence < 1 and 0 < area < 1
    assert (found, error, count, image, cut) == ("", None, None, "", [[], 0.5])
    assert cards["<script>&amp; \u00fc#1.jpg"][6].endswith("is empty (0 bytes).")
    for name in NAMES:
        with Image.open(f"out/index_thumbnails/{name}.png.jpg") as thumbnail:
            assert thumbnail.size == HW[::-1]


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_progress, "LINE_SECONDS", 0)
    lines = [line for line in batch().stderr.splitlines() if " per second, " in line]
    assert len(lines) == 3 and re.fullmatch(r"1/4 images, \d+\.\d per second, \d+ s left", lines[0])


# --- killing and memory --------------------------------------------------------------------------------


def harness(place: Path, task: str) -> dict[str, Any]:
    here = Path(__file__).parent
    place.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"}
    done = subprocess.run(
        [sys.executable, here / "batch_harness.py", place, task],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_killed_at_any_moment_it_ends_with_the_files_of_an_undisturbed_run(folder: Path) -> None:
    result = harness(folder / "kill", "kill")
    assert result["kills"] >= 30 and all(result["same"]) and result["codes"] == [5]  # its parts at once, too
    assert result["files"] == 10 * 5 + 3


def test_interrupts_end_gently_and_then_at_once(folder: Path) -> None:
    result = harness(folder / "stop", "interrupt")
    assert result["codes"] == [130, 5, 130] and result["same"] and result["rows"] < 9
    assert result["seconds"] < 20
    assert "Finishing what is in hand" in result["log"] and "to go on." in result["log"]


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own figure")
def test_memory_stays_flat_over_many_pictures(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The model itself looks at every eighth picture, to be done in seconds; the rest of the way all go."""
    find, count = Runner.find, [0]
    known: list[Any] = []

    def mostly_known(self: Runner, pictures: Any) -> Any:
        count[0] += 1
        if count[0] % 8 == 1 or not known:
            known[:] = find(self, pictures)
        (answer,) = known
        found = [replace(t, probability=t.probability.copy()) for t in answer.scene.found]
        return [replace(answer, scene=replace(answer.scene, found=found))]

    monkeypatch.setattr(Runner, "find", mostly_known)
    runner = Runner(assembly.load_segmenter(), _job_of(folder), store.Store(folder / "x"))
    names = [NAMES[index % 4] for index in range(2000)]
    items = [runner_module.Item(Path("photos", f"{n}.png"), f"{i:04}.png") for i, n in enumerate(names)]
    sizes = {}
    outcomes = pipeline.Pipeline(runner, workers=2, batch_size=1).run(items)
    for number, outcome in enumerate(outcomes, start=1):
        assert outcome.row.error is None
        if number in (200, 2000):
            sizes[number] = _resident()
    assert sizes[2000] < 1.1 * sizes[200]
