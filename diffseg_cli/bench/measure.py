"""A whole measurement: stages, the undivided run beside them, the ceiling, and the record of it all."""

import importlib.metadata
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffseg_cli.bench.meters import (
    FlopCounter,
    count_flop,
    measure_ceiling,
    process_peak,
    read_peak,
)
from diffseg_cli.bench.subject import IMAGE_HW, draw_images
from diffseg_cli.compute import describe_device, read_time
from diffseg_cli.files import write_whole
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.prediction import Prediction
from diffseg_cli.results.formats import DEFAULT, encode_image, image_name, image_patterns
from diffseg_cli.results.outputs import ConceptResult, Scene
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.timing import Stage, Stages, unmetered
from diffseg_cli.version import __version__

FORMAT = "diffseg-bench-1"

# Stages of `Segmenter.encode_support`: files to arrays; to the object and the model frame (CLIP's own crop is
# part of embed); to latents; to the prompt.
SUPPORT_STAGES = ("read", "crop", "encode", "embed")
# Stages of `encode_queries` and `segment_encoded`, and the files `diffseg segment` writes by default. SCM is
# charged its part on edges and inside the look, the look without it.
QUERY_STAGES = (
    *("read", "frame", "edges", "encode", "look", "SCM", "score map", "PAM", "decode", "presence"),
    *("resize", "refine", "specks", "write"),
)

Pairs = Sequence[tuple[Path, Path]]


@dataclass(frozen=True)
class Half:
    """Supports or queries.

    Attributes:
        name: "support" or "query".
        pictures: how many one run works on.
        stages: in their order.
        run: the work, telling a meter of its stages.
    """

    name: str
    pictures: int
    stages: tuple[str, ...]
    run: Callable[[Stage], object]

    def whole(self) -> None:
        """Run it undivided."""
        self.run(unmetered)


def measure(
    segmenter: Segmenter,
    *,
    shots: int = 1,
    batch_size: int = 1,
    repeats: int = 10,
    random_weights: bool = False,
    processor_time: bool = False,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Measure a segmenter on pictures drawn for it.

    Args:
        segmenter: from `prepare_segmenter`.
        shots: supports.
        batch_size: queries at once.
        repeats: of support and query each, after one run to warm up.
        random_weights: for the record.
        processor_time: see `read_time`.
        folder: for the pictures and results, kept; default one that is removed.

    Returns:
        The record, plain enough for JSON. Seconds and FLOP are those of one picture: of a run divided by its
        pictures. Bytes are those of the whole run.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return measure(
                segmenter,
                shots=shots,
                batch_size=batch_size,
                repeats=repeats,
                random_weights=random_weights,
                processor_time=processor_time,
                folder=Path(temporary),
            )
    pairs, queries = draw_images(folder, shots=shots, batch_size=batch_size)
    ceiling = measure_ceiling(segmenter.device, segmenter.dtype, processor=processor_time)
    clock = partial(read_time, segmenter.device, processor=processor_time)
    best = max(ceiling.values())
    support = segmenter.encode_support(pairs)
    halves = {
        half.name: _measure_half(half, segmenter.device, clock, best, repeats)
        for half in (
            _support_half(segmenter, pairs),
            _query_half(segmenter, queries, support, folder / "out"),
        )
    }
    return {
        "format": FORMAT,
        **describe(segmenter),
        "random_weights": random_weights,
        "image_hw": list(IMAGE_HW),
        "shots": shots,
        "batch_size": batch_size,
        "repeats": repeats,
        "clock": "processor" if processor_time else "wall",
        "ceiling": {"flop_per_second": best, "by_side": {str(side): rate for side, rate in ceiling.items()}},
        **halves,
        "peak_bytes": max([half["whole"]["peak_bytes"] or process_peak() for half in halves.values()]),
    }


def describe(segmenter: Segmenter) -> dict[str, Any]:
    """Model, machine and versions, for a record."""
    return {
        **segmenter.record(),
        "offload": bool(getattr(segmenter.backbone, "offload", False)),
        **describe_machine(segmenter.device),
    }


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device and versions, for a record."""
    packages = ("torch", "diffusers", "transformers")
    return {
        "device": describe_device(device),
        "processor": _processor(),
        "versions": {
            "diffseg": __version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
            "cuda": torch.version.cuda,
        },
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _support_half(segmenter: Segmenter, pairs: Pairs) -> Half:
    return Half(
        "support",
        len(pairs),
        SUPPORT_STAGES,
        lambda stage: replace(segmenter, stage=stage).encode_support(pairs),
    )


def _query_half(segmenter: Segmenter, queries: list[Path], support: SupportFeatures, out: Path) -> Half:
    def run(stage: Stage) -> None:
        metered = replace(segmenter, stage=stage)
        encoded = metered.encode_queries(queries)
        predictions = metered.segment_encoded(encoded, support)
        with stage("write"):
            write_predictions(queries, encoded.images, predictions, out)

    return Half("query", len(queries), QUERY_STAGES, run)


def write_predictions(
    queries: Sequence[Path],
    images: Sequence[NDArray[np.uint8]],
    predictions: Sequence[Prediction],
    out: Path,
) -> None:
    """Write what `diffseg segment` writes by default for each picture."""
    for index, (query, image, found) in enumerate(zip(queries, images, predictions, strict=True)):
        segmented = ConceptResult("object", found.mask, found.probability, found.score_map, found.presence)
        for what, pattern in image_patterns(DEFAULT, [segmented.name]).items():
            path = out / image_name(pattern, str(index))
            write_whole(path, encode_image(what, path, Scene(query, image, [segmented])))


def _measure_half(
    half: Half, device: torch.device, clock: Callable[[], Callable[[], float]], ceiling: float, repeats: int
) -> dict[str, Any]:
    """First run, operations, memory, and then times: staged and undivided in turn."""
    read = clock()
    half.whole()
    first = read()
    with FlopCounter() as counter:
        flop = Stages(counter.read)
        half.run(flop)
    whole_flop = count_flop(half.whole)
    peaks, whole_peak = _measure_peaks(half, device)
    runs: list[dict[str, float]] = []
    wholes: list[float] = []
    for _ in range(repeats):
        stages = Stages(clock())
        half.run(stages)
        runs.append(stages.spent)
        read()
        half.whole()
        wholes.append(read())
    n = half.pictures
    rows = [
        {
            "stage": name,
            **_times([run[name] / n for run in runs]),
            **_work(flop.spent[name] / n, statistics.median(run[name] / n for run in runs), ceiling),
            "peak_bytes": peaks.get(name),
        }
        for name in half.stages
        if name in flop.spent  # no PAM without trained modules
    ]
    whole_times = _times([seconds / n for seconds in wholes])
    sums = _times([sum(run.values()) / n for run in runs])
    return {
        "stages": rows,
        "sum": {**sums, **_work(sum(flop.spent.values()) / n, sums["seconds"], ceiling)},
        "whole": {
            **whole_times,
            **_work(whole_flop / n, whole_times["seconds"], ceiling),
            "peak_bytes": whole_peak,
        },
        "sum_minus_whole_seconds": sums["seconds"] - whole_times["seconds"],
        "first_run_seconds": first / n,
    }


def _measure_peaks(half: Half, device: torch.device) -> tuple[dict[str, float], float | None]:
    """Peak bytes of each stage and of an undivided run; nothing where they cannot be told apart."""
    read = read_peak(device)
    if read is None:
        return {}, None
    stages = Stages(read, max)
    half.run(stages)
    read()
    half.whole()
    return stages.spent, read()


def _times(seconds: list[float]) -> dict[str, float]:
    """Median, and the ends of the middle half."""
    low, high = (
        statistics.quantiles(seconds, n=4, method="inclusive")[::2] if len(seconds) > 1 else seconds * 2
    )
    return {"seconds": statistics.median(seconds), "low": low, "high": high}


def _work(flop: float, seconds: float, ceiling: float) -> dict[str, float]:
    return {"flop": flop, "ceiling_share": flop / seconds / ceiling}
