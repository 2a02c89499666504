"""`diffseg watch`: pictures that arrive slowly, by a rename, broken, or before it began."""

import errno
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result
from watchdog.observers.api import BaseObserver

from diffseg_cli import assembly
from diffseg_cli.batch.arrivals import PATIENCE, Arrivals
from diffseg_cli.batch.plan import Item
from diffseg_cli.cli import main
from diffseg_cli.segmenter import Segmenter

SETTLE = 0.25
QUICK = ("--settle", str(SETTLE), "--rescan", "0.5", "--workers", "1", "-f", "mask")


def picture(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def until(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> Path:
    """A working folder with a support and an empty inbox; the model is a small one."""
    monkeypatch.chdir(tmp_path)
    backbone, trained = small_segmenter.backbone, small_segmenter.trained
    finder = Segmenter(backbone=backbone, trained=trained, hed=None, head="attention")
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: finder)
    Path("a.png").write_bytes(picture(0))
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[10:35, 20:50] = 255
    Image.fromarray(mask).save("a_m.png")
    Path("inbox").mkdir()
    return tmp_path


def watch_while(work: Callable[[], None], *more: str, number: signal.Signals = signal.SIGINT) -> Result:
    """Run the verb, do something meanwhile, then stop it as Ctrl-C does."""
    failures = []

    def helper() -> None:
        before = signal.getsignal(number)
        try:
            until(lambda: signal.getsignal(number) is not before)
            work()
        except AssertionError as error:
            failures.append(error)
        finally:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=helper)
    thread.start()
    options = ("--support", "a.png", "--mask", "a_m.png", "--out", "out", *QUICK, *more)
    result = CliRunner().invoke(main.app, ["watch", "inbox", *options])
    thread.join()
    assert not failures, (failures, result.output)
    return result


def there(*names: str) -> Callable[[], bool]:
    return lambda: all(Path("out", name).exists() for name in names)


def states(result: Result) -> dict[str, list[str]]:
    """What --json says became of each picture."""
    found: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        row = json.loads(line)
        found.setdefault(Path(row["query"]).name, []).append(row["state"])
    return found


def test_what_is_there_what_comes_slowly_and_what_is_moved_in_is_done_once() -> None:
    Path("inbox/early.png").write_bytes(picture(1))
    content = picture(2)

    def work() -> None:
        with Path("inbox/slow.png").open("wb", buffering=0) as file:
            for at in range(0, len(content), len(content) // 6):
                file.write(content[at : at + len(content) // 6])
                time.sleep(SETTLE / 2)
        Path("elsewhere.png").write_bytes(picture(3))
        os.utime("elsewhere.png", (1, 1))  # as old as a picture can be
        Path("elsewhere.png").rename("inbox/moved.png")
        Path("inbox/.hidden.png").write_bytes(picture(4))
        Path("inbox/.hidden.png").rename("inbox/unhidden.png")  # how careful programs write
        Path("inbox/notes.md").write_text("no picture")
        until(there("early_mask.png", "slow_mask.png", "moved_mask.png", "unhidden_mask.png"))

    result = watch_while(work, "--json")
    assert result.exit_code == 130
    assert states(result) == {
        name: ["done"] for name in ("early.png", "slow.png", "moved.png", "unhidden.png")
    }
    assert "Watching inbox; Ctrl-C ends it." in result.stderr and "Stopped; what is finished" in result.stderr
    assert Path("out/index.html").exists()


def test_a_start_over_does_only_what_is_new_as_batch_would() -> None:
    Path("inbox/one.png").write_bytes(picture(1))
    first = watch_while(lambda: until(there("one_mask.png")), number=signal.SIGTERM)
    assert first.exit_code == 0 and first.stdout == "out/one_mask.png\n"
    Path("inbox/two.png").write_bytes(picture(2))
    again = watch_while(lambda: until(there("two_mask.png")), "--json")
    assert states(again) == {"one.png": ["skipped"], "two.png": ["done"]}
    options = ("--support", "a.png", "--mask", "a_m.png", "--out", "out", "-f", "mask", "--json")
    batch = CliRunner().invoke(main.app, ["batch", "--queries", "inbox", *options])
    assert batch.exit_code == 0 and states(batch) == {"one.png": ["skipped"], "two.png": ["skipped"]}
    assert CliRunner().invoke(main.app, ["batch", "--verify", "--out", "out"]).exit_code == 0


def test_a_broken_picture_is_given_up_and_taken_when_it_is_mended() -> None:
    broken = picture(1)[:-40]

    def work() -> None:
        Path("inbox/good.png").write_bytes(picture(2))
        Path("inbox/bad.png").write_bytes(broken)
        until(
            lambda: (
                Path("out/manifest.jsonl").exists() and "damaged" in Path("out/manifest.jsonl").read_text()
            )
        )
        assert there("good_mask.png")() and not there("bad_mask.png")()
        Path("inbox/bad.png").write_bytes(picture(1))
        until(there("bad_mask.png"))
        time.sleep(0.05)
        Path("inbox/good.png").write_bytes(broken)  # replaced by something that cannot be read
        until(lambda: not there("good_mask.png")())

    result = watch_while(work, "--json")
    assert states(result)["bad.png"] == ["failed", "done"]
    assert "failed: inbox/bad.png: inbox/bad.png is damaged" in result.stderr


def test_a_pause_in_the_middle_of_a_picture_is_no_failure() -> None:
    """Longer than the settling time, shorter than the patience; and a last try when nothing more comes."""
    content = picture(5)
    with Arrivals(Path("inbox"), recursive=False, out=Path("out"), settle=0.4, rescan=60) as arrivals:

        def next_item() -> Item:
            items: list[Item] = []
            until(lambda: items.extend(arrivals.take()) or items)
            return items[0]

        with Path("inbox/paused.png").open("wb", buffering=0) as file:
            file.write(content[:500])
            assert arrivals.expects(next_item())
            file.write(content[500:])
            whole = next_item()
            assert whole.path.stat().st_size == len(content)
        assert arrivals.expects(whole)
        asked = time.monotonic()
        assert not arrivals.expects(next_item()) and time.monotonic() - asked > PATIENCE * 0.4 / 2
        assert arrivals.take() == []


def test_folders_that_come_are_searched_and_results_among_them_are_not() -> None:
    Path("inbox/found").mkdir()
    Path("inbox/found/old_mask.png").write_bytes(picture(9))

    def work() -> None:
        Path("ready/deep").mkdir(parents=True)
        Path("ready/deep/x.png").write_bytes(picture(1))
        shutil.move("ready", "inbox/day1")
        until(lambda: Path("inbox/found/day1/deep/x_mask.png").exists())

    result = watch_while(work, "--recursive", "--out", "inbox/found", "--json")
    assert states(result) == {"x.png": ["done"]}


def test_two_pictures_with_one_result_are_not_mixed_up() -> None:
    Path("inbox/same.jpg").write_bytes(picture(1))

    def work() -> None:
        until(there("same_mask.png"))
        Path("inbox/same.png").write_bytes(picture(2))
        until(lambda: "would both be written" in Path("out/manifest.jsonl").read_text())
        assert there("same_mask.png")()

    assert states(watch_while(work, "--json")) == {"same.jpg": ["done"], "same.png": ["failed"]}


def test_without_events_the_folder_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: BaseObserver) -> None:
        raise OSError("inotify watch limit reached")

    monkeypatch.setattr(BaseObserver, "start", refuse)

    def work() -> None:
        Path("inbox/late.png").write_bytes(picture(1))
        until(there("late_mask.png"))

    result = watch_while(work)
    assert "The system does not report changes here; listing the folder every 0.5 s." in result.stderr
    assert result.stdout == "out/late_mask.png\n"


def test_without_instances_to_watch_with_the_folder_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "inotify instance limit reached")

    monkeypatch.setattr(BaseObserver, "schedule", refuse)
    Path("inbox/x.png").write_bytes(picture(1))
    with Arrivals(Path("inbox"), recursive=False, out=Path("out"), settle=0.05, rescan=60) as arrivals:
        assert not arrivals.listens
        items: list[Item] = []
        until(lambda: items.extend(arrivals.take()) or items)
        assert [item.key for item in items] == ["x.png"]


def test_what_vanishes_before_it_is_read_is_forgotten() -> None:
    with Arrivals(Path("inbox"), recursive=False, out=Path("out"), settle=0.05, rescan=60) as arrivals:
        Path("inbox/gone.png").write_bytes(picture(1))
        items = []
        until(lambda: items.extend(arrivals.take()) or items)
        assert [item.key for item in items] == ["gone.png"] and arrivals.take() == []
        Path("inbox/gone.png").unlink()
        assert arrivals.expects(items[0])
        time.sleep(0.1)
        assert arrivals.take() == []


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("nowhere", "-o", "out"), 3, "nowhere is not a folder."),
        (("inbox", "-o", "inbox"), 2, "inbox is the watched folder itself."),
    ],
)
def test_a_folder_that_cannot_be_watched_is_refused(options: tuple[str, ...], code: int, text: str) -> None:
    result = CliRunner().invoke(main.app, ["watch", *options, "-s", "a.png", "-m", "a_m.png"])
    assert result.exit_code == code and text in result.stderr


def test_without_watchdog_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchdog.observers", None)
    result = CliRunner().invoke(main.app, ["watch", "inbox", "-s", "a.png", "-m", "a_m.png"])
    assert result.exit_code == 2 and "pip install 'diffseg[watch]'" in result.stderr
