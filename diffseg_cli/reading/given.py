"""What callers in Python give as images, masks and supports: what else it is gets one sentence."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.errors import InputError

IMAGE_FORMS = "Give a path, a PIL image, or an array of uint8 (height, width, 3)."
PAIRS_FORM = "Give a list of pairs: [('dog.jpg', 'dog.png')]."


def kind_of(value: Any) -> str:
    """What a message calls a value: "the class Image itself", "a tuple", "the text 'a.jpg'"."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if value is None:
        return "None"
    if isinstance(value, str | Path):
        return f"the path '{value}'"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _begun(text: str) -> str:
    return text[0].upper() + text[1:]


def image_array(value: Any) -> NDArray[np.uint8]:
    """An array as an image: uint8 (H W), (H W 3) or (H W 4).

    Raises:
        InputError: it is something else; says how to make it one.
    """
    if not isinstance(value, np.ndarray):
        raise InputError(f"{_begun(kind_of(value))} is not an image.", IMAGE_FORMS)
    shape = " x ".join(map(str, value.shape))
    if value.ndim not in (2, 3) or value.shape[2:] not in ((), (3,), (4,)) or not value.size:
        hint = IMAGE_FORMS
        if value.ndim == 4:
            hint = "Give the images of a batch as a list: list(images)."
        elif value.ndim == 3 and value.shape[0] in (3, 4):
            hint = "Its colours come first; move them last: np.moveaxis(image, 0, -1)."
        raise InputError(f"An array of {shape} is not an image.", hint)
    if value.dtype != np.uint8:
        raise InputError(f"An image must be uint8, and this array is {value.dtype}.", _to_uint8(value))
    return value


def _to_uint8(value: NDArray[Any]) -> str:
    """How an array of another type becomes an image."""
    if value.dtype.kind == "b":
        return "It looks like a mask: a support is (image, mask), in this order."
    low, high = float(value.min()), float(value.max())
    if value.dtype.kind == "f" and low >= 0 and high <= 1:
        return "It lies in 0..1: give (255 * image).round().astype('uint8')."
    if low >= 0 and high <= 255:
        return "It lies in 0..255: give image.round().astype('uint8')."
    return f"It lies in {low:g}..{high:g}: scale it to 0..255 and convert it with .astype('uint8')."


def check_mask(value: Any) -> None:
    """Raise InputError for what cannot be a mask, whatever its numbers mean."""
    if not isinstance(value, np.ndarray | list):
        raise InputError(
            f"{_begun(kind_of(value))} is not a mask.",
            "Give a path, a PIL image, or an array (height, width) of bool or numbers.",
        )


def listed_pairs(pairs: Any) -> list[tuple[Any, Any]]:
    """Supports as a list of pairs.

    Raises:
        InputError: there is none; or one bare pair, an image without a mask, or something else.
    """
    if isinstance(pairs, str | Path | Image.Image | np.ndarray | type) or not isinstance(pairs, Iterable):
        raise InputError(f"Supports are a list of pairs, and not {kind_of(pairs)}.", PAIRS_FORM)
    given = list(pairs)
    if not given:
        raise InputError("There is no support image.", "Give at least one image with its mask.")
    if len(given) == 2 and not any(map(_is_pair, given)):
        raise InputError(
            "Supports are a list of pairs, and this is a single pair: put it in a list.", PAIRS_FORM
        )
    for number, each in enumerate(given, start=1):
        if not _is_pair(each):
            raise InputError(
                f"Support {number} is {kind_of(each)}, and not a pair of an image and its mask.", PAIRS_FORM
            )
    return [(image, mask) for image, mask in given]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2
