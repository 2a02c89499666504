"""What the numbers or colours of a mask mean, or why that cannot be told and which flag would tell.

Letters: H W size of the mask. A raster is what carries the meaning: numbers (H W) or colours (H W 3).
"""

import re
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.reading.annotated import Bools
from diffseg_cli.reading.mask_checks import AmbiguousMask, checked_mask
from diffseg_cli.reading.notes import note

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # Pillow's names for more than 8 bits of grey
NEARLY_GREY = 4  # levels between channels that JPEG leaves in a grey image
MANY = 1 << 20  # distinct values; more need not be told apart
STRIP = 1 << 22  # pixels counted at once
IGNORE_INDEX = 255  # of a palette mask: PASCAL VOC's border, neither object nor background
IGNORE_COLOR = 0xE0E0C0  # the same in VOC's colours
FEW_COLORS = 256  # more than so many come from lossy compression or smoothing
FEW_LABELS = 32  # more than so many values are an image, not labels
LOSSY_TOLERANCE = 32  # per channel, where colours are not exact
ALPHA = "alpha channel"
FEW_OPAQUE = 8  # values of a transparent palette image; more are the colours of a cut-out, not labels
MOST_GREY = 0.25  # share of a mask that borders may take


def read_meaning(
    content: Image.Image | NDArray[Any], *, label: int | None, color: str | None, invert: bool, name: str
) -> Bools:
    """Which pixels of a mask, decoded and upright, are the object; the rest as in `image_io.read_mask`."""
    if label is not None and color is not None:
        raise UsageError("--label and --color both say what the object is.", "Give one of them.")
    wanted = None if color is None else _parse_color(color)
    raster, kind = _raster(content, name, by_value=label is not None, by_color=color is not None)
    where = f"{name} ({raster.shape[1]} x {raster.shape[0]}, {kind})"
    if raster.ndim == 3:
        if label is not None:
            wanted = _panoptic_color(label)
        chosen, ignored = _pick_color(raster, wanted, where)
        if label is not None:
            note(f"{where}: {_show(wanted, True)} is the object, panoptic id {label} = R + 256 G + 65536 B.")
    else:
        if wanted is not None:
            raise InputError(f"{where} holds numbers, not colours.", "Choose the object with --label.")
        chosen, ignored = _pick_label(raster, label, kind, where)
    hint = "255 is 'ignore' in a palette mask; if it is the object, save the mask as a grey image."
    return checked_mask(chosen, ignored, invert, where, _shares(raster), hint if ignored.any() else None)


def _raster(
    content: Image.Image | NDArray[Any], name: str, *, by_value: bool, by_color: bool
) -> tuple[NDArray[Any], str]:
    """The raster of a mask, and what messages call it."""
    if not isinstance(content, Image.Image):
        if content.ndim == 3 and 1 in (content.shape[0], content.shape[2]):
            content = content[0] if content.shape[0] == 1 else content[..., 0]
        if content.ndim == 2 and content.size and content.dtype.kind in "buif":
            return content, f"array of {content.dtype}"
        if (
            content.dtype != np.uint8
            or content.ndim != 3
            or content.shape[2] not in (3, 4)
            or not content.size
        ):
            raise InputError(
                f"{name} is an array of {content.dtype}, {' x '.join(map(str, content.shape))}, and no mask.",
                "Give bool or whole numbers, height x width.",
            )
        content = Image.fromarray(content)
    if content.mode in DEEP_MODES:
        return np.asarray(content), "deep grey"
    if content.mode == "1":
        return np.asarray(content), "1-bit"
    if content.mode == "P" and not by_color:
        return _palette_raster(content, by_value)
    if content.mode in ("LA", "RGBA") and not (by_value or by_color):
        alpha = np.asarray(content.getchannel("A"))
        if alpha.min() != alpha.max():
            return alpha, ALPHA
    if content.mode in ("L", "LA") and not by_color:
        return np.asarray(content.getchannel("L")), "grey"
    try:
        colors = np.asarray(content.convert("RGB"))
    except ValueError as error:
        raise InputError(f"{name} is stored as {content.mode}.", "Save it as a grey or RGB PNG.") from error
    spread = (colors.max(axis=2) - colors.min(axis=2)).max()
    # What JPEG leaves is a little colour in white; a little colour alone is ids, in one channel.
    if not by_color and (spread == 0 or (spread <= NEARLY_GREY and colors.max() > 127)):
        return colors[..., 1], "grey"
    return colors, "colours"


def _palette_raster(image: Image.Image, by_value: bool) -> tuple[NDArray[Any], str]:
    """Indices are labels, unless the palette writes black and white (or smooth greys) or a cut-out."""
    indices = np.asarray(image)
    used = np.unique(indices)
    if image.has_transparency_data and not by_value and len(used) > FEW_OPAQUE:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() != alpha.max():
            return alpha, ALPHA
    palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    palette = np.pad(palette, ((0, 256 - len(palette)), (0, 0)))
    greys = palette[used, 0]
    is_grey = bool((palette[used] == greys[:, None]).all()) and {0, 255} <= set(greys.tolist())
    if is_grey and not by_value and (len(used) == 2 or len(used) > 8):
        return palette[indices, 0], "grey palette"
    return indices, "palette"


def _parse_color(text: str) -> int:
    """ "#RRGGBB", "RRGGBB" or a CSS name -> 0xRRGGBB.

    Raises:
        UsageError: it is no colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(f"#{text}" if re.fullmatch("[0-9a-fA-F]{6}", text) else text)[:3]
    except ValueError as error:
        raise UsageError(f"'{text}' is not a colour.", "Write it as '#RRGGBB', with the quotes.") from error
    return red << 16 | green << 8 | blue


def _panoptic_color(number: int) -> int:
    """An id of a panoptic PNG -> 0xRRGGBB."""
    red, green, blue = number & 255, number >> 8 & 255, number >> 16 & 255
    return red << 16 | green << 8 | blue


def _shares(raster: NDArray[Any], most: int = 6) -> str:
    """What a raster (H W) or (H W 3) holds, the commonest first: "0 (61%), 3 (30%)"."""
    values, counts = _count(_codes(raster) if raster.ndim == 3 else raster)
    order = np.argsort(-counts, kind="stable")[:most]
    parts = [f"{_show(values[i], raster.ndim == 3)} ({_percent(counts[i] / counts.sum())})" for i in order]
    more = len(values) - len(order)
    return ", ".join(parts) + (f" and {more} more" if more else "")


def _pick_label(values: NDArray[Any], label: int | None, kind: str, where: str) -> tuple[Bools, Bools]:
    """Which numbers are the object.

    Args:
        values: (H W) bool, integer or float.
        label: the user's choice.
        kind: what the numbers were read from; "palette" reserves 255, "alpha channel" is never ambiguous.
        where: the mask in words, for messages.

    Returns:
        bool (H W) object, and bool (H W) neither object nor background.
    """
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InputError(f"{where} holds values that are not numbers.", "Replace them by 0.")
        values = _as_integers(values)
    found, _ = _count(values)
    ignore = values == IGNORE_INDEX if kind == "palette" else np.zeros(values.shape, dtype=bool)
    if label is not None:
        if kind == "palette" and label == IGNORE_INDEX:
            raise InputError(
                f"{where}: 255 means 'ignore' in a palette mask, not an object.",
                "If it is the object here, save the mask as a grey image.",
            )
        if label not in found:
            raise InputError(
                f"{where} has no label {label}. It holds {_shares(values)}.", "Choose one of these."
            )
        return values == label, ignore
    if kind == ALPHA:
        return _pick_opaque(values, found, where), ignore
    candidates = [
        value for value in found.tolist() if value and not (kind == "palette" and value == IGNORE_INDEX)
    ]
    if len(candidates) <= 1:
        return (values == candidates[0] if candidates else np.zeros(values.shape, dtype=bool)), ignore
    if kind != "palette" and (levels := _as_levels(values)) is not None and _is_soft(levels):
        _note_soft(where)
        return levels > 127, ignore
    raise _ambiguous_labels(values, candidates, kind, where)


def _pick_opaque(alpha: NDArray[Any], found: NDArray[Any], where: str) -> Bools:
    """The opaque part of an alpha channel (H W), however faint; cut in the middle of a soft border."""
    middle = (int(found[0]) + int(found[-1])) // 2
    if len(found) > 2:
        _note_soft(where, middle)
    elif found[-1] < 255:
        note(f"{where} is never opaque: alpha {found[-1]} of 255 is the object.")
    chosen: Bools = alpha > middle
    return chosen


def _pick_color(colors: NDArray[np.uint8], wanted: int | None, where: str) -> tuple[Bools, Bools]:
    """Which colours (H W 3) are the object; `wanted` is the user's choice as 0xRRGGBB.

    Returns:
        bool (H W) object, and bool (H W) neither object nor background.
    """
    codes = _codes(colors)
    found, _ = _count(codes)
    ignore = codes == IGNORE_COLOR
    if wanted is not None:
        chosen = codes == wanted
        if len(found) > FEW_COLORS:
            exact = np.array([wanted >> 16, wanted >> 8 & 255, wanted & 255])
            low, high = np.clip([exact - LOSSY_TOLERANCE, exact + LOSSY_TOLERANCE], 0, 255)
            chosen = cv2.inRange(colors, low.astype(np.float64), high.astype(np.float64)) > 0
            if chosen.any():
                note(f"{where} has unclean colours: those near {_show(wanted, True)} are the object.")
        if not chosen.any():
            raise InputError(
                f"{where} has no pixel of {_show(wanted, True)}. It holds {_shares(colors)}.",
                "Choose one of these with --color.",
            )
        return chosen, ignore & ~chosen
    candidates = [code for code in found.tolist() if code not in (0, IGNORE_COLOR)]
    if len(candidates) == 1 and 0 in found:
        return codes == candidates[0], ignore
    if len(found) > FEW_COLORS:
        raise InputError(
            f"{where} holds {len(found)} colours, so it looks like a photograph, not a mask.",
            "Are --support and --mask swapped? If it is a mask, name the object's colour with --color.",
        )
    first = (candidates or [0])[0]
    raise AmbiguousMask(
        f"{where} is drawn in several colours: {_shares(colors)}.",
        f"Say which one is the object, for example --color '{_show(first, True)}' "
        f"(of a panoptic PNG, --label {_panoptic_color(first)}).",
    )


def _ambiguous_labels(values: NDArray[Any], candidates: list[Any], kind: str, where: str) -> AmbiguousMask:
    if len(candidates) > FEW_LABELS or values.dtype.kind == "f":
        low, high = values.min(), values.max()
        return AmbiguousMask(
            f"{where} is shaded, not a mask: {len(candidates)} values from {low:g} to {high:g}.",
            "Make it black and white first (a threshold), or choose one value with --label; "
            "are --support and --mask swapped?",
        )
    choice = " or ".join(f"--label {value}" for value in candidates[:3])
    ignored = " (255 is 'ignore')" if kind == "palette" and (values == IGNORE_INDEX).any() else ""
    return AmbiguousMask(
        f"{where} holds more than one label: {_shares(values)}.",
        f"Say which one is the object: {choice}{', ...' if len(candidates) > 3 else ''}{ignored}.",
    )


def _as_integers(values: NDArray[Any]) -> NDArray[Any]:
    """Finite floats as integers where all of them are, else as they are."""
    if max(values.max(), -values.min()) >= 2**31:
        return values
    if any((strip != np.rint(strip)).any() for strip in _strips(values)):
        return values
    return values.astype(np.int32)


def _as_levels(values: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Numbers that run from black to white in 8 bits, 16 bits or 0 to 1, as 0 to 255; None for others."""
    high = values.max()
    tops = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
    top = next((top for top in tops if 0.9 * top <= high <= top), None)
    if top is None or values.min() < 0:
        return None
    strips = [np.rint(strip * (255 / top)).astype(np.uint8) for strip in _strips(values)]
    return np.concatenate(strips).reshape(values.shape)


def _is_soft(levels: NDArray[np.uint8]) -> bool:
    """Black and white with smoothed or JPEG-damaged borders, rather than labels or an image.

    Then most of it is black or white, what is between lies on both sides of the middle, and the grey part is
    slopes. Class numbers are all small, so they lie on one side; other labels fill areas of their own.
    """
    between = (levels > 0) & (levels < 255)
    grey = (levels > 31) & (levels < 224)
    if not ((levels[between] > 127).any() and (levels[between] <= 127).any()) or grey.mean() > MOST_GREY:
        return False
    kernel = np.ones((3, 3), dtype=np.uint8)
    sloping = cv2.dilate(levels, kernel) != cv2.erode(levels, kernel)
    return not grey.any() or bool(sloping[grey].mean() > 0.9)


def _note_soft(where: str, middle: int = 127) -> None:
    note(f"{where} has soft borders: values above {middle} are the object.")


def _count(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Distinct values, ascending, and how often each occurs; strip by strip, to stay small.

    Counting ends when so many have been seen that it cannot be a mask without a choice.
    """
    strips = _strips(values)
    if values.dtype == np.uint8:  # a hundred times faster than sorting
        totals = np.sum([np.bincount(strip, minlength=256) for strip in strips], axis=0)
        return np.flatnonzero(totals), totals[totals > 0]
    found, counts = np.unique(strips[0], return_counts=True)
    for strip in strips[1:]:
        if len(found) > MANY:
            break
        more, times = np.unique(strip, return_counts=True)
        found, places = np.unique(np.concatenate([found, more]), return_inverse=True)
        counts = np.bincount(places, np.concatenate([counts, times])).astype(np.int64)
    return found, counts


def _strips(values: NDArray[Any]) -> list[NDArray[Any]]:
    """(H W) in pieces that are small whatever the size of the image."""
    flat = values.reshape(-1)
    return [flat[start : start + STRIP] for start in range(0, flat.size, STRIP)]


def _codes(colors: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(H W 3) -> (H W) 0xRRGGBB."""
    codes: NDArray[np.int32] = colors[..., 0].astype(np.int32)
    for channel in (1, 2):
        codes <<= 8
        codes |= colors[..., channel]
    return codes


def _show(value: Any, is_color: bool) -> str:
    return f"#{int(value):06X}" if is_color else f"{value:g}" if isinstance(value, float) else str(int(value))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else f"{100 * share:.2g}%" if share >= 0.0001 else "< 0.01%"
