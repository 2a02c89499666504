"""How time, memory and operations grow: with shots, batch, image size, noise levels, images in a folder.

    python -m benchmarks.growth --axis shots --axis batch --out out/
    python -m benchmarks.growth --axis timesteps --kandinsky tiny

Each axis is walked up with everything else at its default. A slope is that of the last half of the points on
logarithmic axes; the law beside it is what the method should cost.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.curves import draw_curves
from diffseg_cli.bench.chart import form_flop, form_seconds
from diffseg_cli.bench.measure import describe_machine, write_predictions
from diffseg_cli.bench.meters import count_flop, read_peak
from diffseg_cli.bench.random_kandinsky import FULL_SIZE, TINY
from diffseg_cli.bench.subject import draw_images, prepare_segmenter, random_segmenter
from diffseg_cli.choices import ModelChoice
from diffseg_cli.compute import limit_threads, read_time, resolve_device, resolve_dtype
from diffseg_cli.segmenter import Segmenter

WHAT = ("time", "flop", "memory")
SMALL_WH = (160, 120)  # images of the folder axis
BATCH = """
import sys
from diffseg_cli.cli.main import app
app(["batch", *sys.argv[1:]], standalone_mode=False)
words = open("/proc/self/status").read().split()
print(words[words.index("VmHWM:") + 1], file=sys.stderr)
"""


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        values: of it, ascending.
        law: what is expected.
    """

    values: tuple[int, ...]
    law: str


AXES = {
    "shots": Axis((1, 2, 3, 5, 10, 20), "a query of k supports: a + b k (keys of PAM and look)"),
    "supports": Axis((1, 2, 3, 5, 10, 20), "encoding k supports: k"),
    "batch": Axis((1, 2, 4, 8, 16, 32), "b queries: b"),
    "size": Axis((256, 384, 512, 640, 768, 1024), "a S^2 (convolutions) + b S^4 (attention)"),
    "timesteps": Axis((1, 2, 4, 8), "a + b T (the look alone is repeated)"),
    "folder": Axis((10, 100, 1000), "a (start) + b N, memory does not grow"),
}


@dataclass(frozen=True)
class Point:
    """One measurement: seconds of a whole run, FLOP of it, and the peak in bytes."""

    value: int
    seconds: float
    flop: float
    peak_bytes: float | None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope of the last half of points (at least two) on logarithmic axes."""
    kept = [(math.log(x), math.log(y)) for x, y in points[-max(2, len(points) // 2) :]]
    mean_x, mean_y = (statistics.fmean(values) for values in zip(*kept, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in kept)
    return sum((x - mean_x) * (y - mean_y) for x, y in kept) / spread


def measure_point(
    value: int, work: Callable[[], object], device: torch.device, repeats: int, *, processor: bool = False
) -> Point:
    """Median time of a few runs after one to warm up; `processor` as of `read_time`."""
    work()
    peak = read_peak(device)
    read, times = read_time(device, processor=processor), []
    for _ in range(repeats):
        read()
        work()
        times.append(read())
    peak_bytes = peak() if peak else None
    return Point(value, statistics.median(times), count_flop(work), peak_bytes)


def walk(
    axis: str, segmenter: Segmenter, values: Sequence[int], repeats: int, *, processor: bool = False
) -> Iterator[Point]:
    """Measure an axis from small to large; the backbone's size is changed and changed back."""
    own_size = segmenter.backbone.image_size
    for value in values:
        with tempfile.TemporaryDirectory() as folder:
            if axis == "folder":
                yield _measure_folder(value, Path(folder), segmenter.device)
                continue
            if axis == "size":
                segmenter.backbone.image_size = value
            if axis == "timesteps":
                levels = tuple(50 + 10 * index for index in range(value))
                segmenter = replace(segmenter, settings=replace(segmenter.settings, timesteps=levels))
            work = _work(axis, value, segmenter, Path(folder))
            yield measure_point(value, work, segmenter.device, repeats, processor=processor)
    segmenter.backbone.image_size = own_size


def _work(axis: str, value: int, segmenter: Segmenter, folder: Path) -> Callable[[], object]:
    """One whole run: of supports, or of queries from their files to their results' files."""
    shots = value if axis in ("shots", "supports") else 1
    batch_size = value if axis == "batch" else 1
    pairs, queries = draw_images(folder, shots=shots, batch_size=batch_size)
    if axis == "supports":
        return lambda: segmenter.encode_support(pairs)
    support = segmenter.encode_support(pairs)

    def query() -> None:
        encoded = segmenter.encode_queries(queries)
        found = segmenter.segment_encoded(encoded, support)
        write_predictions(queries, encoded.images, found, folder / "out")

    return query


def _measure_folder(count: int, folder: Path, device: torch.device) -> Point:
    """`diffseg batch` on copies of one small image, from the start of the process to its end."""
    ((support, mask),), (query,) = draw_images(folder, shots=1, batch_size=1)
    (folder / "queries").mkdir()
    small = folder / "small.jpg"
    Image.open(query).resize(SMALL_WH).save(small)
    for index in range(count):
        shutil.copy(small, folder / "queries" / f"{index:05}.jpg")
    command = [sys.executable, "-c", BATCH, "--support", str(support), "--mask", str(mask)]
    command += ["--queries", str(folder / "queries"), "--out", str(folder / "out"), "--format", "mask"]
    start = time.perf_counter()
    done = subprocess.run([*command, "--device", str(device)], capture_output=True, text=True, check=True)
    return Point(count, time.perf_counter() - start, 0, float(done.stderr.split()[-1]) * 1024)


def measure_axis(
    axis: str, segmenter: Segmenter, values: Sequence[int], repeats: int, *, processor: bool = False
) -> dict[str, Any]:
    """The record of one axis: its points, slopes, and the law they are held against."""
    points = list(walk(axis, segmenter, values, repeats, processor=processor))
    figures: dict[str, Any] = {"law": AXES[axis].law, "points": [asdict(point) for point in points]}
    figures["time_slope"] = slope([(p.value, p.seconds) for p in points])
    if all(p.peak_bytes for p in points):
        figures["memory_slope"] = slope([(p.value, p.peak_bytes or 0) for p in points])
    if all(p.flop for p in points):
        figures["flop_slope"] = slope([(p.value, p.flop) for p in points])
    return {"axis": axis, "model": segmenter.model, "image_size": segmenter.backbone.image_size, **figures}


def table(record: dict[str, Any]) -> str:
    """An axis as Markdown."""
    lines = [f"| {record['axis']} | time | FLOP | peak |", "|---|---|---|---|"]
    for point in record["points"]:
        flop = form_flop(point["flop"]) if point["flop"] else ""
        peak = f"{point['peak_bytes'] / 2**20:.0f} MiB" if point["peak_bytes"] else ""
        lines.append(f"| {point['value']} | {form_seconds(point['seconds'])} | {flop} | {peak} |")
    slopes = [f"{record[f'{what}_slope']:.2f}" if f"{what}_slope" in record else "" for what in WHAT]
    lines.append(f"| slope | {' | '.join(slopes)} |")
    return "\n".join([f"{record['model']}, expected: {record['law']}", "", *lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axis", action="append", choices=list(AXES), help="default all but folder")
    parser.add_argument("--values", help="comma separated, instead of the axis's own")
    parser.add_argument("--kandinsky", choices=["tiny", "full"], help="random weights instead of compact")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true", help="as of diffseg bench")
    parser.add_argument("--out", type=Path, help="folder of growth.json and one image per axis")
    chosen = parser.parse_args(arguments)
    limit_threads()
    device = resolve_device(chosen.device)
    dtype = resolve_dtype(chosen.dtype, device)
    if chosen.kandinsky:
        configs = TINY if chosen.kandinsky == "tiny" else FULL_SIZE
        segmenter = random_segmenter("kandinsky-2-2", device=device, dtype=dtype, configs=configs)
    else:
        segmenter = prepare_segmenter(ModelChoice(device=chosen.device, dtype=chosen.dtype))
    records = []
    for axis in chosen.axis or [name for name in AXES if name != "folder"]:
        values = [int(v) for v in chosen.values.split(",")] if chosen.values else AXES[axis].values
        records.append(measure_axis(axis, segmenter, values, chosen.repeats, processor=chosen.processor_time))
        print(table(records[-1]), flush=True)
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        about = {"format": "diffseg-growth-1", **describe_machine(device)}
        content = json.dumps({**about, "axes": records}, indent=2) + "\n"
        (chosen.out / "growth.json").write_text(content)
        Image.fromarray(draw_curves(records)).save(chosen.out / "growth.png")


if __name__ == "__main__":
    main()
