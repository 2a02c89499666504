"""How many images the model looks at together: as many as pay, and never so many that a bit changes.

Kernels for one image and for several may add in another order, which moves last bits. So a size is used
only if images come out of it, in every place, with the bytes they have alone. On a CPU two fail that test
already (docs/notebook.md), and would not be faster.
"""

import time
from pathlib import Path

import numpy as np

from diffseg_cli.batch.plan import Item
from diffseg_cli.batch.runner import Content, DecodedImage, Runner, exact_threads
from diffseg_cli.compute import is_out_of_memory
from diffseg_cli.finding import Answer

LARGEST = 64
WORTH_MEASURING = 24  # images; fewer are done before a measurement pays
GAIN = 1.05  # a larger batch must be so much faster per image


def choose_batch_size(runner: Runner, wanted: int | None, todo: int) -> int:
    """A batch size that changes no result.

    Args:
        runner: the model.
        wanted: what the user asks for, or None to measure.
        todo: images to come.

    Returns:
        `wanted`, or 1 where that would change bytes or does not fit; without a wish the fastest size.
    """
    if wanted == 1 or todo < (2 if wanted else WORTH_MEASURING):
        return 1
    with exact_threads(runner.segmenter):
        alone = _bytes(runner.find([_probe(0)])[0])
        if wanted is not None:
            return wanted if _is_exact(runner, min(wanted, todo), alone) else 1
        best, pace = 1, _pace(runner, 1)
        size = 2
        while size <= min(LARGEST, todo):
            try:
                if not _is_exact(runner, size, alone):
                    break
                faster = _pace(runner, size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                break
            if faster * GAIN > pace:
                break
            best, pace, size = size, faster, 2 * size
    return best


def _is_exact(runner: Runner, size: int, alone: bytes) -> bool:
    """Whether a probe in the first, the middle and the last place of a batch is what it is alone."""
    for place in sorted({0, size // 2, size - 1}):
        images = [_probe(0 if index == place else index + 1) for index in range(size)]
        if _bytes(runner.find(images)[place]) != alone:
            return False
    return True


def _pace(runner: Runner, size: int) -> float:
    """Seconds per image."""
    images = [_probe(index) for index in range(size)]
    start = time.perf_counter()
    runner.find(images)
    return (time.perf_counter() - start) / size


def _bytes(answer: Answer) -> bytes:
    return b"".join(
        part
        for found in answer.scene.found
        for part in (found.probability.tobytes(), found.score_map.tobytes(), repr(found.presence).encode())
    )


def _probe(seed: int) -> DecodedImage:
    """An image of coarse noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = coarse.repeat(24, axis=0).repeat(24, axis=1)
    return DecodedImage(Content(Item(Path("probe"), "probe"), b"", {}, {}), image)
