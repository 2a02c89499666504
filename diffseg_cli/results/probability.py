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
EDGES = (np.arange(LEVELS + 1) / LEVELS).astype(np.float32)  # rounded as a threshold that meets float32
# The middle of what a level stands for, so that means stay what they were.
VALUES = np.append(np.float32(0), EDGES[:-1] + np.float32(0.5 / LEVELS))
STRIP_ROWS = 256


def probability_levels(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The levels (H W) of a probability (H W) in [0, 1]: above a cut at k / 200 are just those over k."""
    levels = np.empty(probability.shape, dtype=np.uint8)
    for top in range(0, len(probability), STRIP_ROWS):  # all at once would take 16 bytes a pixel
        strip = probability[top : top + STRIP_ROWS]
        nearly = np.minimum(np.ceil(strip * np.float32(LEVELS)), LEVELS).astype(np.int16)
        nearly -= (nearly > 0) & (strip <= EDGES[nearly - 1])  # float32 may round across an edge
        nearly += (nearly < LEVELS) & (strip > EDGES[nearly])
        levels[top : top + STRIP_ROWS] = nearly
    return levels


def probability_png(probability: NDArray[np.float32]) -> bytes:
    """A probability (H W) in [0, 1] as a PNG file of its levels."""
    return png_bytes(probability_levels(probability))


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
