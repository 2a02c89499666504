"""Probabilities small enough to keep of every image, to cut its mask at another threshold later.

A grey PNG of 8 bits, about a tenth of the size of `score`: level i says that the probability is above
(i - 1) / 200 and not above i / 200. So a cut at any multiple of 0.005 gives the very mask the model's own
numbers give.
"""

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.errors import InputError
from diffseg_cli.reading.array_files import is_array_file, read_array_file
from diffseg_cli.reading.image_files import MAX_PIXELS, load_image
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.results.render import png_bytes

LEVELS = 200
EDGES = (np.arange(LEVELS) / LEVELS).astype(np.float32)  # rounded as a threshold is when it meets float32
# The middle of what a level stands for, so that means stay what they were.
VALUES = np.append(np.float32(0), EDGES + np.float32(0.5 / LEVELS))
STRIP_ROWS = 256


def probability_png(probability: NDArray[np.float32]) -> bytes:
    """A probability (H W) in [0, 1] as a PNG file."""
    levels = np.empty(probability.shape, dtype=np.uint8)
    for top in range(0, len(probability), STRIP_ROWS):  # the search gives 8 bytes a pixel
        levels[top : top + STRIP_ROWS] = np.searchsorted(EDGES, probability[top : top + STRIP_ROWS])
    return png_bytes(levels)


def read_probabilities(file: InputFile) -> list[NDArray[np.float32]]:
    """What `--format probability` or `--format score` saved, each (H W) in [0, 1].

    Raises:
        InputError: it is damaged, or something else.
    """
    if is_array_file(file):
        maps = read_array_file(file, MAX_PIXELS)
        if maps.dtype == np.float32 and maps.ndim in (2, 3):
            return list(maps.reshape(-1, *maps.shape[-2:]))
    else:
        image, _ = load_image(file)
        levels = np.asarray(image)
        if image.mode == "L" and levels.max() <= LEVELS:
            return [VALUES[levels]]
    raise InputError(
        f"{file.name} holds no probability.", "Run it again with --format probability or --format score."
    )
