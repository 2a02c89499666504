"""A process that has imported everything and forks batches: `python batch_harness.py FOLDER TASK`.

Starting Python with torch takes two seconds, a fork none. The parent never computes with several threads, as
those do not survive a fork. Prints what happened as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

torch.set_num_threads(1)

import pycocotools.mask  # noqa: E402, F401 - before the fork
from conftest import make_small_segmenter, make_swift_segmenter  # noqa: E402

import diffseg_cli.batch.pipeline  # noqa: E402
import diffseg_cli.batch.session  # noqa: E402
import diffseg_cli.batch.sizing  # noqa: E402, F401
from diffseg_cli import assembly  # noqa: E402
from diffseg_cli.batch import runner as runner_module  # noqa: E402
from diffseg_cli.cli import main  # noqa: E402

PICTURES, ROUNDS, KILLS = 10, 6, 6
HW = (48, 64)


def make_pictures(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for index in range(PICTURES):
        path = folder / "photos" / f"day{index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (*HW, 3), dtype=np.uint8)).save(path)
    (folder / "photos" / "day0" / "bad.png").write_bytes(b"no picture")
    mask = np.zeros(HW, dtype=np.uint8)
    mask[10:35, 20:50] = 255
    Image.fromarray(mask).save(folder / "mask.png")


def start(folder: Path, out: str, *more: str) -> tuple[int, int]:
    """Fork a batch. Returns its process, and a pipe that says when it begins to work on pictures."""
    begun, begins = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(begins)
        return child, begun
    code = 1
    try:
        os.chdir(folder)
        log = os.open(folder / f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        find = runner_module.Runner.fetch

        def fetch(*arguments: object) -> object:
            os.write(begins, b".")
            return find(*arguments)  # type: ignore[arg-type]

        runner_module.Runner.fetch = fetch  # type: ignore[assignment, method-assign]
        arguments = ["-s", "photos/day0/0.png", "-m", "mask.png", "-q", "photos", "--recursive", "-o", out]
        formats = ["-f", "mask", "-f", "overlay", "-f", "score", "-f", "coco", "-f", "json", "-f", "labelme"]
        main.app(["batch", *arguments, *formats, *more], prog_name="diffseg")
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Exit code; minus the signal where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(out: Path) -> dict[str, bytes]:
    """Everything but the manifests, whose seconds differ."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith("manifest")
    }


def kill(folder: Path) -> dict[str, object]:
    """Batches that are killed and started again, and three parts of one at once, against one left alone."""
    began = time.monotonic()
    child, begun = start(folder, "undisturbed")
    os.read(begun, 1)
    working = time.monotonic()
    code = wait(child)
    lasts = time.monotonic() - working
    expected = files(folder / "undisturbed")
    draw, kills, same, codes = random.Random(0), 0, [], {code}
    for number in range(ROUNDS):
        out, left = f"out{number}", KILLS
        while left:
            child, begun = start(folder, out, "--workers", str(1 + left % 3))
            if draw.random() < 0.8:
                os.read(begun, 1)  # else it dies in its preparations, perhaps
            time.sleep(draw.uniform(0, lasts / KILLS * 2))
            os.kill(child, signal.SIGKILL)
            kills += wait(child) == -signal.SIGKILL  # else it was faster
            os.close(begun)
            left -= 1
        codes.add(wait(start(folder, out)[0]))
        same.append(files(folder / out) == expected)
    for child in [start(folder, "parts", "--part", f"{part}/3")[0] for part in (1, 2, 3)]:
        wait(child)
    same.append(files(folder / "parts") == expected)
    return {
        "kills": kills,
        "same": same,
        "codes": sorted(codes),
        "files": len(expected),
        "seconds": time.monotonic() - began,
    }


def slow_model(seconds: float) -> None:
    find: Callable[..., object] = runner_module.Runner.find

    def slowly(*arguments: object) -> object:
        time.sleep(seconds)
        return find(*arguments)

    runner_module.Runner.find = slowly  # type: ignore[assignment, method-assign]


def interrupt(folder: Path) -> dict[str, object]:
    """One signal finishes what is in hand, two end at once."""
    child, _ = start(folder, "undisturbed")
    wait(child)
    slow_model(0.4)
    child, begun = start(folder, "once", "--workers", "1")
    os.read(begun, 1)
    time.sleep(0.3)
    os.kill(child, signal.SIGINT)
    once = wait(child)
    rows = (folder / "once" / "manifest.jsonl").read_bytes().count(b'"key"')
    again = wait(start(folder, "once")[0])
    slow_model(60)
    child, begun = start(folder, "twice")
    os.read(begun, 1)
    time.sleep(0.3)
    before = time.monotonic()
    os.kill(child, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(child, signal.SIGINT)
    twice = wait(child)
    return {
        "codes": [once, again, twice],
        "rows": rows,
        "same": files(folder / "once") == files(folder / "undisturbed"),
        "seconds": time.monotonic() - before,
        "log": (folder / "once.log").read_text(),
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    make_pictures(place)
    answer = make_swift_segmenter(make_small_segmenter())
    torch.set_num_threads(2)  # a child that computes has one thread a picture, and two pictures at once
    assembly.load_segmenter = lambda **_: answer
    print(json.dumps({"kill": kill, "interrupt": interrupt}[sys.argv[2]](place)))
