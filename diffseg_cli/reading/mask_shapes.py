"""What annotation files hold, checked and drawn as masks: run lengths, rings, rectangles, circles, bitmaps.

Nothing a file says is believed before it is checked: sizes, coordinates and run lengths come from anywhere.
A file that lies raises ValueError with half a sentence for `mask_files.py` to finish.

Letters: H W size of the picture that was annotated.
"""

import base64
import binascii
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Bools = NDArray[np.bool_]
HW = tuple[int, int]

FAR = 4  # picture lengths; a point further outside is no slip of the hand
MOST_POINTS = 50_000  # of one outline; drawing takes time with every one of them
MOST_RINGS = 2_000
MOST_OUTLINE = 2_000_000  # pixels; pycocotools takes 80 bytes for each
SHOWN = 6  # names listed in a message
LONGEST_RUN = 7  # characters of a compressed run length; 7 hold 35 bits


@dataclass(frozen=True)
class Target:
    """The picture an annotation file is read for.

    Attributes:
        name: its path, to find it among a file's pictures; None if it has none.
        size_hw: of the picture upright; None if it is not known.
    """

    name: str | None = None
    size_hw: HW | None = None


@dataclass(frozen=True)
class Thing:
    """One object of an annotation file, not drawn yet.

    Attributes:
        number: what --annotation calls it.
        category: its class by name, or by number where there is no name.
        category_id: its class by number; None where there is none.
        ignored: neither object nor background: a crowd, an ignored area.
        draw: gives bool (H W) for a size; raises ValueError.
        box: x, y, width, height, where the file gives a box and no outline.
    """

    number: int
    category: str
    category_id: str | None
    ignored: bool
    draw: Callable[[HW], Bools]
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Annotations:
    """What a file says of one picture.

    Attributes:
        name: of the file, for messages.
        kind: of the file, and which of its pictures, for messages.
        size_hw: of the picture, as the file or else the picture itself says.
        things: in the order of the file.
    """

    name: str
    kind: str
    size_hw: HW
    things: list[Thing]

    @property
    def where(self) -> str:
        """The file, its size and kind, for messages."""
        return f"{self.name} ({_wh(self.size_hw)}, {self.kind})"


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
        raise ValueError(f"run lengths for {size[1]} x {size[0]} pixels in a picture of {_wh(size_hw)}")
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


def draw_bitmap(text: str, points: NDArray[np.float64], size_hw: HW) -> Bools:
    """LabelMe's mask shape: a PNG in base64, put where the first of its two corners says."""
    try:
        content = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.width > size_hw[1] or image.height > size_hw[0]:
                raise ValueError(f"a bitmap of {image.width} x {image.height} in a picture of {_wh(size_hw)}")
            stamp = np.asarray(image.convert("L")) > 0
    except (OSError, SyntaxError, binascii.Error) as error:
        raise ValueError("a bitmap that is no PNG") from error
    left, top = (int(value) for value in np.floor(points.min(axis=0)))
    h, w = stamp.shape
    if left < 0 or top < 0 or left + w > size_hw[1] or top + h > size_hw[0]:
        raise ValueError("a bitmap that lies outside its picture")
    mask = np.zeros(size_hw, dtype=bool)
    mask[top : top + h, left : left + w] = stamp
    return mask


# --- values of a file ----------------------------------------------------------------------------------


def points_of(raw: Any, size_hw: HW, least: int) -> NDArray[np.float64]:
    """Check points given as [[x, y], ...] or [x, y, x, y, ...].

    Returns:
        float64 (n 2), all within a few picture lengths.

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
        raise ValueError(f"a point at {x:g}, {y:g}, far outside its picture of {_wh(size_hw)}")
    return points


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
