"""Whether a mask can be one, and what else is worth saying of it."""

import numpy as np

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.reading.annotated import Bools
from diffseg_cli.reading.notes import note


class AmbiguousMask(InputError):
    """A mask that another option makes clear."""


def checked_mask(
    chosen: Bools, ignored: Bools, invert: bool, where: str, held: str, hint: str | None = None
) -> Bools:
    """A mask with object and background.

    Args:
        chosen: (H W) what the user's choice marks.
        ignored: (H W) neither object nor background.
        invert: the object is everything else, but for ignored pixels.
        where: the mask in words, for messages.
        held: what it holds, for messages.
        hint: what may be wrong, if that is known.

    Raises:
        InputError: all or nothing would be object.
    """
    mask: Bools = ~(chosen | ignored) if invert else chosen
    if mask.all() or not mask.any():
        what = "is full: it marks the whole image" if mask.all() else "is empty: it marks nothing"
        raise InputError(
            f"{where} {what}. It holds {held}.",
            hint or "A mask needs object and background; is this the right file?",
        )
    if _looks_inverted(mask):
        note(
            f"{where} marks the border of its image and not the middle. If that is the background, "
            f"{'leave out' if invert else 'add'} --invert-mask."
        )
    return mask


def _looks_inverted(mask: Bools) -> bool:
    """Whether a mask (H W) has nearly all of its border, and little of the middle."""
    h, w = mask.shape
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    middle = mask[h // 3 : h - h // 3, w // 3 : w - w // 3]
    return bool(border.mean() > 0.95 and middle.size and middle.mean() < 0.3)


def point_mask(x: int, y: int, size_hw: tuple[int, int]) -> Bools:
    """The mask (H W) of the pixel in column x and row y.

    Raises:
        UsageError: the pixel lies outside the image.
    """
    h, w = size_hw
    if not (0 <= x < w and 0 <= y < h):
        raise UsageError(f"The point {x},{y} lies outside the image.", f"It has {w} x {h} pixels.")
    mask = np.zeros(size_hw, dtype=bool)
    mask[y, x] = True
    return mask
