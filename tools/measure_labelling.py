"""How long a person waits in a labelling project: opening it, a click, a correction.

    python -m tools.measure_labelling [--images 3000] [--megapixels 0.4 12]

Makes a project of copies of an example image in a temporary folder, asks its server without a network in
between, and prints a table; `cpu` is the processor time of all threads, which other processes do not change.
Wall time says something where the load is low: a click should take less than 300 ms on two idle cores.
"""

import argparse
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.labelling.project import Project
from diffseg_cli.serve.app import create_app

EXAMPLE = Path("examples/bird/query.jpg")
RUNS = 7


def measure(title: str, ask: Callable[[], Any], runs: int = RUNS) -> None:
    """Print wall and processor time in ms, medians."""
    walls, cpus = [], []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        ask()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    print(f"{title:48} {1000 * median(walls):>7.0f} {1000 * median(cpus):>7.0f}", flush=True)


def begin(folder: Path, images: int, megapixels: float) -> Project:
    """A project of copies of one image of a size."""
    photos = folder / "photos"
    photos.mkdir()
    with Image.open(EXAMPLE) as image:
        scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        image.resize((round(image.width * scale), round(image.height * scale))).save(photos / "0000.jpg")
    for number in range(1, images):
        shutil.copy(photos / "0000.jpg", photos / f"{number:04}.jpg")
    return Project(photos, folder / "labels", ["bird"])


def measure_project(client: TestClient, images: int, megapixels: float) -> None:
    """All of one project."""

    def ask(method: str, route: str, **form: Any) -> Any:
        where = {"params": form} if method == "GET" else {"data": form, "files": form.pop("files", None)}
        answer = client.request(method, f"/v1/project{route}", **where)
        assert answer.is_success, answer.text
        return answer

    size, numbers = f"{megapixels:g} MP", iter(range(images))

    def correct() -> None:
        image = f"{next(numbers):04}.jpg"
        ask("POST", "/decide", image=image, revision="0", decision="correct", files={"mask": ("m.png", mask)})

    if images > 100:
        measure(f"open: the list of {images} images", lambda: (ask("GET", ""), ask("GET", "/images")))
        measure("what changed since", lambda: ask("GET", "/images", since="0"))
    measure(f"an image of {size} to the editor", lambda: ask("GET", "/image", image="0000.jpg"))
    looked = iter(range(images))
    measure(f"look at an image of {size}", lambda: ask("POST", "/look", image=f"{next(looked):04}.jpg"))
    click = {"image": "0000.jpg", "x": "0.5", "y": "0.5"}
    mask = ask("POST", "/click", **click).content
    with Image.open(io.BytesIO(mask)) as grown:
        stream = io.BytesIO()
        grown.point(lambda value: value // 255).save(stream, "PNG")
        mask = stream.getvalue()
    measure(f"a click in an image of {size}", lambda: ask("POST", "/click", **click))
    box = {"image": "0000.jpg", "x": "0.3", "y": "0.3", "width": "0.5", "height": "0.5"}
    measure(f"a box in an image of {size}", lambda: ask("POST", "/box", **box))
    for number in range(RUNS):  # it was open in the editor
        ask("GET", "/image", image=f"{number:04}.jpg")
    measure(f"a correction of an image of {size}", correct)
    ask("POST", "/learn")  # from those corrections, for longer than this takes
    measure(f"a click in {size} while the model learns", lambda: ask("POST", "/click", **click))
    measure(
        f"look at {size} while the model learns", lambda: ask("POST", "/look", image=f"{next(looked):04}.jpg")
    )
    assert ask("DELETE", "/learn").json()["stage"] == "cancelled"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[0.4, 12])
    arguments = parser.parse_args()
    segmenter = load_segmenter()
    print(
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores".ljust(48), f"{'wall ms':>7} {'cpu ms':>7}"
    )
    for index, megapixels in enumerate(arguments.megapixels):
        with tempfile.TemporaryDirectory() as folder:
            images = arguments.images if index == 0 else 2 * RUNS
            project = begin(Path(folder), images, megapixels)
            with TestClient(create_app(segmenter, project=project), base_url="http://localhost") as client:
                measure_project(client, images, megapixels)


if __name__ == "__main__":
    main()
