"""What is true of an image: which pixels are the object, and which do not count."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diffseg_cli.datasets.episode import Sample
from diffseg_cli.errors import InputError
from diffseg_cli.reading.image_files import TURNS, orientation_of
from diffseg_cli.reading.image_io import read_mask

IGNORE = 255  # in label maps: nobody decided what this pixel is


@dataclass(frozen=True)
class Truth:
    """One image's truth, in the orientation in which the image is read.

    Attributes:
        mask: bool (h w), the object.
        ignore: bool (h w), pixels that no metric counts; never object.
    """

    mask: NDArray[np.bool_]
    ignore: NDArray[np.bool_]


def read_pair_truth(sample: Sample) -> Truth:
    """A mask of its own file, in any form `read_mask` understands; 255 of a palette image is ignored.

    Raises:
        InputError: the mask is unreadable, ambiguous, empty or full.
    """
    mask = read_mask(sample.mask)
    ignore = np.zeros(mask.shape, dtype=bool)
    if sample.mask.suffix.lower() == ".png":
        with Image.open(sample.mask) as opened:
            if opened.mode == "P":
                ignore = turn_upright(np.asarray(opened) == IGNORE, sample.mask)
    return Truth(mask, ignore & ~mask)


def read_label_map(path: Path) -> NDArray[np.uint8]:
    """Class numbers of a palette or grey PNG, uint8 (h w), as stored.

    Raises:
        InputError: no image, or one in colours.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode not in ("P", "L"):
                raise InputError(
                    f"{path} is an image in {opened.mode}, not a label map of class numbers.",
                    "Take the palette PNG as published, not a converted or coloured copy.",
                )
            return np.array(opened)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path} cannot be read as a label map: {error}.", "Unpack it again.") from error


def turn_upright(mask: NDArray[np.bool_], image: Path) -> NDArray[np.bool_]:
    """A mask (h w) of the pixels as stored, turned as EXIF of its image asks: images are read that way."""
    with Image.open(image) as opened:
        turn = TURNS.get(orientation_of(opened))
    return mask if turn is None else np.array(Image.fromarray(mask).transpose(turn))
