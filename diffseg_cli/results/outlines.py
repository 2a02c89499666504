"""Masks as polygons, for formats that know nothing else.

Corners lie on the corners of pixels: pixel (x, y) is the square from (x, y) to (x + 1, y + 1). Pixels that
touch only at a corner are different parts.
"""

from collections import defaultdict

import cv2
import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]  # (n 2) corners as (x, y); the first is not repeated at the end

TOLERANCE = 1.25  # in pixels: the stairs of a slanted border become straight, a tenth of the corners stay


def outlines(mask: NDArray[np.bool_], tolerance: float = TOLERANCE) -> list[list[Ring]]:
    """Outlines of every connected part of a mask.

    Args:
        mask: (H W).
        tolerance: how far a simplified outline may stray, in pixels; 0 for the exact one.

    Returns:
        A list per part, in reading order: its outer ring, then those of its holes.
    """
    labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[1]
    parts: defaultdict[int, list[Ring]] = defaultdict(list)
    for ring, (x, y) in _rings(mask):
        parts[int(labels[y, x])].append(_simplify(ring, tolerance))
    for rings in parts.values():
        rings.sort(key=ring_area, reverse=True)  # the outer one holds all others
    return [parts[label] for label in sorted(parts)]


def one_ring(rings: list[Ring]) -> Ring:
    """A part with holes as one ring: each hole is joined to the outline by a cut of no width."""
    outer = rings[0]
    for hole in rings[1:]:
        distance = ((outer[:, None] - hole[None]) ** 2).sum(-1)
        start, end = np.unravel_index(int(distance.argmin()), distance.shape)
        there = np.concatenate([hole[end:], hole[: end + 1]])
        outer = np.concatenate([outer[: start + 1], there, outer[start:]])
    return outer


def ring_area(ring: Ring) -> float:
    """Area inside a ring, in pixels."""
    x, y = ring.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _simplify(ring: Ring, tolerance: float) -> Ring:
    if not tolerance:
        return ring
    simple: Ring = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(
        np.float64
    )
    return simple if len(simple) > 2 else ring


def _rings(mask: NDArray[np.bool_]) -> list[tuple[Ring, tuple[int, int]]]:
    """Every closed border of a mask along the edges of its pixels, and one (x, y) pixel beside it.

    Each edge is walked with the mask on its right; where two parts touch at a corner, the walk turns right
    and stays on its part.
    """
    pixels = _edges(mask)
    steps = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up; a turn to the right is one more
    found = []
    while pixels:
        start = next(iter(pixels))
        pixel, corners, place = pixels[start], [], start
        while place in pixels:
            del pixels[place]
            direction = place[2]
            x, y = place[0] + steps[direction][0], place[1] + steps[direction][1]
            ways = [(x, y, (direction + turn) % 4) for turn in (1, 0, 3)]
            place = next(way for way in ways if way in pixels or way == start)
            if place[2] != direction:
                corners.append((x, y))
        found.append((np.array(corners, dtype=np.float64), pixel))
    return found


def _edges(mask: NDArray[np.bool_]) -> dict[tuple[int, int, int], tuple[int, int]]:
    """Every edge of a mask: (x, y, direction) of its start -> (x, y) of its mask pixel."""
    padded = np.pad(mask, 1)
    inside, above, left = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]
    edges = {}
    for direction, borders, (start_x, start_y), (pixel_x, pixel_y) in (
        (0, inside & ~above, (0, 0), (0, 0)),
        (1, left & ~inside, (0, 0), (-1, 0)),
        (2, above & ~inside, (1, 0), (0, -1)),
        (3, inside & ~left, (0, 1), (0, 0)),
    ):
        for y, x in np.argwhere(borders).tolist():
            edges[x + start_x, y + start_y, direction] = (x + pixel_x, y + pixel_y)
    return edges
