"""Uploaded pictures and masks, read as `diffseg segment` reads files.

Messages call them "query", "support 1" or "mask 1". A client's file name is text to compare with names in an
annotation file, and never a path.
"""

import hashlib
import json
import tempfile
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.errors import DiffsegError
from diffseg_cli.finding import Pair
from diffseg_cli.reading.array_files import is_array_file
from diffseg_cli.reading.image_io import check_image_bytes, check_pair, fit_mask, read_image_bytes, read_mask
from diffseg_cli.reading.mask_files import is_annotation_file
from diffseg_cli.reading.mask_shapes import Target
from diffseg_cli.reading.mask_values import MaskNote


@dataclass(frozen=True)
class Upload:
    """A file of a request.

    Attributes:
        content: all of it.
        name: what the client calls it, without folders.
    """

    content: bytes
    name: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class SupportUpload:
    """Supports of a request.

    Attributes:
        images: at least one picture.
        masks: one each.
        choice: label, color, category, annotation, invert of `read_mask`.
        fit: bring masks to the size of their pictures.
    """

    images: tuple[Upload, ...]
    masks: tuple[Upload, ...]
    choice: dict[str, Any] = field(default_factory=dict)
    fit: bool = False

    @cached_property
    def digest(self) -> str:
        """Equal for supports that are read alike."""
        files = [(each.name, each.sha256) for each in (*self.images, *self.masks)]
        return hashlib.sha256(json.dumps([files, self.choice, self.fit]).encode()).hexdigest()


def read_picture(upload: Upload, name: str, most_pixels: int) -> NDArray[np.uint8]:
    """Read a picture as uint8 (H W 3); its size is checked before it is decoded.

    Args:
        upload: its file.
        name: what messages call it.
        most_pixels: it may have.

    Raises:
        InputError: as `read_image`.
    """
    check_image_bytes(upload.content, name, most_pixels)
    return read_image_bytes(upload.content, name)


def read_supports(support: SupportUpload, most_pixels: int) -> tuple[list[Pair], list[str]]:
    """Read pictures and their masks; to be called by one thread at a time.

    Returns:
        The pairs, and how masks were understood where that is worth knowing.

    Raises:
        InputError: one cannot be used, or a mask has another size than its picture.
        UsageError: two choices that exclude each other.
    """
    pairs = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, (image, mask) in enumerate(zip(support.images, support.masks, strict=True), start=1):
            pairs.append(_read_pair(image, mask, number, support, most_pixels))
    notes = [str(each.message) for each in caught if issubclass(each.category, MaskNote)]
    return pairs, notes


def _read_pair(image: Upload, mask: Upload, number: int, support: SupportUpload, most_pixels: int) -> Pair:
    name, mask_name = f"support {number}", f"mask {number}"
    pixels = read_picture(image, name, most_pixels)
    image_hw = (pixels.shape[0], pixels.shape[1])
    # Arrays and annotations are read from files; the ending tells YOLO's text from nothing else.
    with tempfile.TemporaryDirectory(prefix="diffseg-") as folder:
        path = Path(folder) / ("mask.txt" if mask.content[:1].isdigit() else "mask")
        path.write_bytes(mask.content)
        try:
            if not (is_array_file(path) or is_annotation_file(path)):
                check_image_bytes(mask.content, mask_name, most_pixels)
            read = read_mask(path, target=Target(image.name or None, image_hw), **support.choice)
        except DiffsegError as error:
            error.message = error.message.replace(str(path), mask_name)
            raise
    if support.fit:
        read = fit_mask(read, image_hw, mask_name)
    check_pair(pixels, read, name, mask_name)
    return pixels, read
