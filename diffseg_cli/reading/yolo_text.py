"""Annotations of YOLO: a line an object, its class and then shares of the image's width and height."""

import math
from itertools import pairwise

import numpy as np

from diffseg_cli.reading.annotated import HW, AnnotatedImage, AnnotationFile, Bools, Box, MarkedObject
from diffseg_cli.reading.mask_shapes import box_of, draw_rings, points_of

Line = tuple[int, str, list[str]]  # its number, the class, what follows
EXTRA: tuple[list[str], ...] = (
    [],
    ["the value that ends each line"],
    ["the confidence and the track number that end each line"],
)


def read_yolo(text: str) -> AnnotationFile:
    """Outlines, or boxes as centre and size; objects are numbered by their lines.

    Predictions may end in a confidence, in a track number, or in both. All lines of a file end alike.
    """
    lines = [_parse(line, number) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    extra = _extra(lines)
    objects = [_object(number, name, values[: len(values) - extra]) for number, name, values in lines]
    return AnnotationFile("YOLO", [AnnotatedImage((), (None, None), lambda: objects)], EXTRA[extra])


def _parse(line: str, number: int) -> Line:
    name, *values = line.split()
    class_id = float(name)
    if class_id != int(class_id) or class_id < 0 or len(values) < 4:
        raise ValueError(f"line {number} is not a class and pairs of x and y")
    return number, str(int(class_id)), values


def _extra(lines: list[Line]) -> int:
    """How many values follow the coordinates of each line: a confidence, a track number, both or none."""
    if any(len(a[2]) % 2 != len(b[2]) % 2 for a, b in pairwise(lines)):
        raise ValueError("lines with and without a value after their pairs of x and y")
    if lines and len(lines[0][2]) % 2:
        return 1
    tracks = [values[-1] for _, _, values in lines]
    is_tracked = (
        all(len(values) >= 6 and 0 <= float(values[-2]) <= 1 for _, _, values in lines)
        and all(track.isdecimal() and int(track) for track in tracks)
        and len(set(tracks)) == len(tracks)  # of one image
        # Track 1 alone looks like a last corner on the lower border; such outlines have a second one there.
        and not any(1.0 in map(float, values[1:-1:2]) for _, _, values in lines if values[-1] == "1")
    )
    return 2 if is_tracked and lines else 0


def _object(number: int, class_id: str, values: list[str]) -> MarkedObject:
    shares = [float(value) for value in values]
    if not all(math.isfinite(share) and -0.01 <= share <= 1.01 for share in shares):
        raise ValueError(f"line {number} holds values outside 0 to 1")

    def draw(size_hw: HW) -> Bools:
        ring = points_of(shares, size_hw, 3) * np.array(size_hw[::-1], dtype=np.float64)
        return draw_rings([ring], size_hw)

    def box(size_hw: HW) -> Box:
        (h, w), (x, y, width, height) = size_hw, shares
        return box_of((x - width / 2) * w, (y - height / 2) * h, width * w, height * h)

    return MarkedObject(str(number), None, class_id, draw, box=box if len(shares) == 4 else None)
