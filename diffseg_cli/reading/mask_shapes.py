"""What annotation files hold, checked and drawn as masks: run lengths, rings, rectangles, circles, bitmaps.

Nothing a file says is believed before it is checked: sizes, coordinates and run lengths come from anywhere.
A file that lies raises ValueError with half a sentence for `mask_files.py` to finish.

Letters: H W size of the image that was annotated.
"""

import base64
import binascii
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffseg_cli.reading.annotated import HW, Bools, Box

FAR = 4  # image lengths; a point further outside is no slip of the hand
MOST_POINTS = 50_000  # of one outline; drawing takes time with every one of them
MOST_RINGS = 2_000
MOST_OUTLINE = 2_000_000  # pixels; pycocotools takes 80 bytes for each
SHOWN = 6  # names listed in a message
OVER = 1.25  # image lengths a bitmap may have
ELLIPSE_POINTS = 180
LONGEST_RUN = 7  # characters of a compressed run length; 7 hold 35 bits


# --- drawing -------------------------------------------------------------------------------------------


def draw_runs(runs: Any, size: Any, size_hw: HW) -> Bools:
    """COCO's run lengths, as numbers or compressed, column by column, background first.

    Decoded here and not by pycocotools, which reserves what the file asks for before it counts.

    Args:
        runs: list of lengths, or text.
        size: [H, W] as the file gives it.
        size_hw: what it must be.

    Raises:
        ValueError: they do not add up to the size.
    """
    if size is not None and list(size) != list(size_hw):
        raise ValueError(f"run lengths for {size[1]} x {size[0]} pixels in an image of {_wh(size_hw)}")
    lengths = _uncompress(runs) if isinstance(runs, str) else runs
    area = size_hw[0] * size_hw[1]
    if not all(type(length) is int and 0 <= length <= area for length in lengths) or sum(lengths) != area:
        raise ValueError(f"run lengths that do not add up to {_wh(size_hw)} pixels")
    flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return np.ascontiguousarray(flat.reshape(size_hw[1], size_hw[0]).T)


def _uncompress(text: str) -> list[int]:
    """COCO's text form: 5 bits a character, lowest first, each length minus the one two before it."""
    lengths: list[int] = []
    value = bits = 0
    for character in text.encode("ascii"):
        part = character - 48
        if not 0 <= part < 64 or bits >= 5 * LONGEST_RUN:
            raise ValueError("run lengths that are not COCO's")
        value |= (part & 31) << bits
        bits += 5
        if part & 32:
            continue
        if part & 16:
            value -= 1 << bits
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = bits = 0
    if bits:
        raise ValueError("run lengths that are cut short")
    return lengths


def draw_rings(rings: Sequence[NDArray[np.float64]], size_hw: HW) -> Bools:
    """The union of outlines (n 2) of x, y, by COCO's own rule; pixel centres at halves."""
    from pycocotools import mask as coco_mask

    if not 1 <= len(rings) <= MOST_RINGS:
        raise ValueError(f"{len(rings)} outlines in one annotation")
    if sum(float(np.abs(ring - np.roll(ring, 1, axis=0)).sum()) for ring in rings) > MOST_OUTLINE:
        raise ValueError("an outline that runs to and fro without end")
    encoded = coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *size_hw)
    return draw_runs(coco_mask.merge(encoded)["counts"].decode(), None, size_hw)


def draw_polygon(ring: NDArray[np.float64], size_hw: HW) -> Bools:
    """An outline (n 2) of x, y as LabelMe draws it: Pillow's rule, border included."""
    canvas = Image.new("1", size_hw[::-1])
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in ring], fill=1, outline=1)
    return np.array(canvas)


def draw_rectangle(corners: NDArray[np.float64], size_hw: HW) -> Bools:
    """Two opposite corners (2 2) of x, y, border included."""
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    canvas = Image.new("1", size_hw[::-1])
    ImageDraw.Draw(canvas).rectangle((left, top, right, bottom), fill=1, outline=1)
    return np.array(canvas)


def draw_circle(points: NDArray[np.float64], size_hw: HW) -> Bools:
    """Centre and a point of the border (2 2), each x, y."""
    (x, y), radius = points[0], math.dist(*points)
    canvas = Image.new("1", size_hw[::-1])
    ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    return np.array(canvas)


def draw_ellipse(centre: Sequence[float], radii: Sequence[float], degrees: float, size_hw: HW) -> Bools:
    """Centre x, y, radii along x and y, and how far it is turned, clockwise as shown."""
    angles = np.linspace(0, 2 * math.pi, ELLIPSE_POINTS, endpoint=False)
    circle = np.stack([np.cos(angles) * radii[0], np.sin(angles) * radii[1]], axis=1)
    turn = math.radians(degrees)
    ring = circle @ [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]] + centre
    return draw_rings([points_of(ring.tolist(), size_hw, 3)], size_hw)


def draw_bitmap(text: str, points: NDArray[np.float64], size_hw: HW) -> Bools:
    """LabelMe's mask shape: a PNG in base64, put where the first of its two corners says."""
    try:
        content = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            _check_stamp("a bitmap", (image.height, image.width), size_hw)
            stamp = np.asarray(image.convert("L")) > 0
    except (OSError, SyntaxError, binascii.Error) as error:
        raise ValueError("a bitmap that is no PNG") from error
    left, top = (int(value) for value in np.floor(points.min(axis=0)))
    return _paste(stamp, left, top, size_hw)


def draw_row_runs(runs: Sequence[int], box: Box, size_hw: HW) -> Bools:
    """CVAT's run lengths: row by row within a box of x, y, width, height, background first."""
    left, top, width, height = box
    _check_stamp("a mask", (height, width), size_hw)
    return _paste(draw_runs(list(runs), None, (width, height)).T, left, top, size_hw)


def _check_stamp(what: str, stamp_hw: HW, size_hw: HW) -> None:
    """Refuse a small mask that is much larger than its image; a little over the border is usual."""
    if not all(0 < small <= OVER * large + 16 for small, large in zip(stamp_hw, size_hw, strict=True)):
        raise ValueError(f"{what} of {_wh(stamp_hw)} in an image of {_wh(size_hw)}")


def _paste(stamp: Bools, left: int, top: int, size_hw: HW) -> Bools:
    """A small mask at its place in a large one; what lies outside is cut off."""
    mask = np.zeros(size_hw, dtype=bool)
    h, w = stamp.shape
    inside = mask[max(0, top) : max(0, top + h), max(0, left) : max(0, left + w)]
    skipped_top, skipped_left = max(0, -top), max(0, -left)
    inside[:] = stamp[skipped_top:, skipped_left:][: inside.shape[0], : inside.shape[1]]
    return mask


# --- values of a file ----------------------------------------------------------------------------------


def points_of(raw: Any, size_hw: HW, least: int) -> NDArray[np.float64]:
    """Check points given as [[x, y], ...] or [x, y, x, y, ...].

    Returns:
        float64 (n 2), all within a few image lengths.

    Raises:
        ValueError: too few, too many, not numbers, or far outside.
    """
    if not isinstance(raw, list | tuple) or len(raw) > 2 * MOST_POINTS:
        raise ValueError("an outline without points, or with too many")
    values = np.array(raw, dtype=np.float64)  # a ragged list or one of words is a ValueError too
    if values.size % 2 or values.ndim > 2 or values.shape[1:] not in ((), (2,)):
        raise ValueError("points that are not pairs of x and y")
    points: NDArray[np.float64] = values.reshape(-1, 2)
    if len(points) < least:
        raise ValueError(f"an outline of {len(points)} points, which encloses nothing")
    if len(points) > MOST_POINTS:
        raise ValueError(f"an outline of {len(points)} points")
    if not np.isfinite(points).all():
        raise ValueError("coordinates that are not numbers")
    if np.abs(points).max() > FAR * max(size_hw):
        x, y = points[np.abs(points).max(axis=1).argmax()]
        raise ValueError(f"a point at {x:g}, {y:g}, far outside its image of {_wh(size_hw)}")
    return points


def sort_rings(raw: Any) -> tuple[list[Any], str]:
    """Outlines that enclose something, and what is said of the others; damaged ones are left for `points_of`.

    Args:
        raw: outlines, each [x, y, ...] or [[x, y], ...]; or one [x, y, ...], not in a list of its own.
    """
    is_flat = isinstance(raw, list) and raw and all(isinstance(value, int | float) for value in raw)
    rings = raw if isinstance(raw, list) and not is_flat else [raw]
    counts = [point_count(ring) for ring in rings]
    good = [ring for ring, count in zip(rings, counts, strict=True) if count >= 3]
    if len(good) == len(rings):
        return good, ""
    if good:
        return good, f"{len(rings) - len(good)} of its {len(rings)} outlines, with fewer than 3 points"
    return [], f"{max(counts)} points, which enclose nothing" if max(counts) else "no outline"


def point_count(ring: Any) -> int:
    """How many points [x, y, ...] or [[x, y], ...] has; 3 where that cannot be told."""
    if not ring:
        return 0
    if not isinstance(ring, list):
        return 3
    return len(ring) if isinstance(ring[0], list) else len(ring) // 2


def box_of(x: float, y: float, width: float, height: float) -> Box:
    """A box as whole pixels, as `diffseg mask --box` takes it."""
    return max(0, round(x)), max(0, round(y)), max(1, round(width)), max(1, round(height))


def _wh(size_hw: HW) -> str:
    return f"{size_hw[1]} x {size_hw[0]}"


def whole_number(value: Any) -> int:
    """A number of a file that must be whole; ValueError if it is not."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"{value!r} where a whole number belongs")
    return int(value)


def plain(text: str, longest: int = 40) -> str:
    """Text of a file as a message may show it: one line, no control characters, not endless."""
    shown = "".join(character if character.isprintable() else "?" for character in text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def listed(names: Iterable[str]) -> str:
    """Different names as a message shows them: the first few, and how many more."""
    known = list(dict.fromkeys(names))
    return ", ".join(known[:SHOWN]) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
