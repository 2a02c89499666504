"""Resident memory, pace and processor time of a long batch: `python tools/measure_batch.py PHOTOS [COUNT]`.

Repeats the pictures of a folder (JPEG, with all its folders) until there are COUNT, 2000 by default, and
segments them with the bird of `examples/` in a temporary folder.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

from diffseg_cli.batch.job import Job
from diffseg_cli.batch.pipeline import Pipeline
from diffseg_cli.batch.plan import Item
from diffseg_cli.batch.runner import load_runner
from diffseg_cli.batch.store import Store
from diffseg_cli.choices import AdaptChoice, AnswerChoice, MaskChoice, SupportChoice
from diffseg_cli.cli.inputs import read_concepts

BIRD = Path(__file__).parents[1] / "examples" / "bird"
EVERY = 200


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(photos: Path, count: int) -> None:
    paths = sorted(photos.rglob("*.jpg"))
    items = [Item(paths[index % len(paths)], f"{index:06}.jpg") for index in range(count)]
    supports = SupportChoice((BIRD / "support.jpg",), (BIRD / "support_mask.png",))
    job = Job(
        read_concepts(supports, MaskChoice(), AdaptChoice()), AnswerChoice(), ["mask", "heatmap", "overlay"]
    )
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(load_runner(job, Store(Path(folder))), workers=os.cpu_count() or 1, batch_size=1)
        wall, processor = time.perf_counter(), time.process_time()
        for number, _ in enumerate(pipeline.run(items), start=1):
            if number % EVERY == 0:
                spent = time.process_time() - processor
                pace = number / (time.perf_counter() - wall)
                print(
                    f"{number} pictures: {resident_mib():.0f} MiB resident, {pace:.1f} a second, "
                    f"{spent / number:.3f} s of processor each",
                    flush=True,
                )


if __name__ == "__main__":
    measure(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
