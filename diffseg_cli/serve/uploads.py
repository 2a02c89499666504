"""Uploaded images and masks, read as `diffseg segment` reads files.

Messages call them "query", "support 1" or "mask 1". A client's file name is text to compare with names in an
annotation file, and never a path.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.adaptation import Negative
from diffseg_cli.choices import MaskChoice
from diffseg_cli.errors import InputError
from diffseg_cli.reading.image_io import check_image, read_image, read_pairs
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.reading.notes import collected_notes
from diffseg_cli.views import Pair

SUPPORT_SHARE = 2  # of the largest image: what all supports of a request may have together


@dataclass(frozen=True)
class Upload:
    """A file of a request: all of it, and what the client calls it, without folders."""

    content: bytes
    name: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class SupportUpload:
    """Supports of a request, at least one, with a mask each and how those are read."""

    images: tuple[Upload, ...]
    masks: tuple[Upload, ...]
    choice: MaskChoice = field(default_factory=MaskChoice)

    @cached_property
    def digest(self) -> str:
        """Equal for supports that are read alike."""
        files = [(each.name, each.sha256) for each in (*self.images, *self.masks)]
        return hashlib.sha256(json.dumps([files, asdict(self.choice)]).encode()).hexdigest()


def read_uploaded(upload: Upload, name: str, most_pixels: int) -> NDArray[np.uint8]:
    """Read an image as uint8 (H W 3), called `name` in messages; its size is checked before it is decoded.

    Raises:
        InputError: as `read_image`.
    """
    return read_image(InputFile(name, upload.content), most_pixels)


def read_negatives(
    images: Sequence[Upload], masks: Sequence[Upload], most_pixels: int, *, fit: bool
) -> tuple[list[Negative], list[str]]:
    """Read what is not the concept: in the first images what their masks mark, the others as a whole.

    Args:
        images: without the concept.
        masks: of the first of them.
        most_pixels: an image or mask may have.
        fit: whether masks are resized to their images.

    Returns:
        The images with their regions, and notes as `read_supports`.

    Raises:
        InputError: one cannot be used, or a mask has another size than its image.
    """
    named = [
        InputFile(f"image {number} without the object", each.content)
        for number, each in enumerate(images, start=1)
    ]
    marked, whole = named[: len(masks)], named[len(masks) :]
    regions = [
        InputFile(f"mask of {image.name}", mask.content) for image, mask in zip(marked, masks, strict=True)
    ]
    with collected_notes() as notes:
        pairs = read_pairs(marked, regions, MaskChoice(fit=fit), most_pixels)
    return [*pairs, *((read_image(each, most_pixels), None) for each in whole)], notes


def read_supports(support: SupportUpload, most_pixels: int) -> tuple[list[Pair], list[str]]:
    """Read images and their masks.

    Returns:
        The pairs, and how masks were understood where that is worth knowing.

    Raises:
        InputError: one cannot be used, a mask has another size than its image, or all are too large together.
        UsageError: two choices that exclude each other.
    """
    images = [
        InputFile(f"support {number}", each.content, each.name or None)
        for number, each in enumerate(support.images, start=1)
    ]
    total = sum(check_image(image, most_pixels) for image in images)
    if total > SUPPORT_SHARE * most_pixels:
        raise InputError(
            f"The supports have {total / 10**6:.3g} megapixels together: more than "
            f"{SUPPORT_SHARE * most_pixels / 10**6:g}.",
            "Scale them down first.",
        )
    masks = [InputFile(f"mask {number}", each.content) for number, each in enumerate(support.masks, start=1)]
    with collected_notes() as notes:
        pairs = read_pairs(images, masks, support.choice, most_pixels)
    return pairs, notes
