"""Curves on logarithmic axes, drawn small: one panel an axis of growth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 330, 250, 20, 44, 44  # of a panel and its margins
COLUMNS = 3
PAPER, INK, FAINT, GRID = (255, 255, 255), (25, 25, 30), (110, 110, 118), (228, 228, 232)
COLORS = {"seconds": (0, 114, 178), "flop": (213, 94, 0), "peak_bytes": (0, 158, 115)}
NAMES = {"seconds": "time", "flop": "FLOP", "peak_bytes": "memory"}


def draw_curves(records: Sequence[dict[str, Any]]) -> NDArray[np.uint8]:
    """Axes of growth side by side, every curve as a multiple of its first point.

    Args:
        records: from `growth.measure_axis`.

    Returns:
        uint8 (h w 3).
    """
    rows = -(-len(records) // COLUMNS)
    page = Image.new("RGB", (WIDTH * min(COLUMNS, len(records)), HEIGHT * rows), PAPER)
    draw = ImageDraw.Draw(page)
    for index, record in enumerate(records):
        _draw_panel(draw, record, index % COLUMNS * WIDTH, index // COLUMNS * HEIGHT)
    return np.array(page)


def _draw_panel(draw: ImageDraw.ImageDraw, record: dict[str, Any], x: int, y: int) -> None:
    points = record["points"]
    curves = {
        name: [point[name] / points[0][name] for point in points]
        for name in COLORS
        if all(point[name] for point in points)
    }
    small, heading = ImageFont.load_default(11), ImageFont.load_default(14)
    values = [point["value"] for point in points]
    low = min(0.0, *(math.log2(v) for curve in curves.values() for v in curve))
    high = max(1.0, *(math.log2(v) for curve in curves.values() for v in curve))
    left, right, top, bottom = x + LEFT + 24, x + WIDTH - 16, y + TOP, y + HEIGHT - BOTTOM
    span = math.log2(values[-1] / values[0])

    def place(value: float, multiple: float) -> tuple[float, float]:
        share = (math.log2(multiple) - low) / (high - low)
        return left + (right - left) * math.log2(value / values[0]) / span, bottom - (bottom - top) * share

    draw.text((x + LEFT, y + 8), f"{record['axis']} ({record['model']})", INK, heading)
    draw.text((x + LEFT, y + 26), "multiple of the first point", FAINT, small)
    for power in range(math.ceil(low), math.floor(high) + 1):
        height = place(values[0], 2.0**power)[1]
        draw.line((left, height, right, height), GRID)
        draw.text((left - 6, height), f"{2.0**power:g}", FAINT, small, anchor="rm")
    for value in values:
        across = place(value, 1)[0]
        draw.line((across, bottom, across, bottom + 4), FAINT)
        draw.text((across, bottom + 6), str(value), FAINT, small, anchor="mt")
    for index, (name, curve) in enumerate(curves.items()):
        places = [place(*pair) for pair in zip(values, curve, strict=True)]
        draw.line([tuple(p) for p in places], COLORS[name], 2)
        for across, height in places:
            draw.ellipse((across - 3, height - 3, across + 3, height + 3), COLORS[name])
        draw.text((left + 80 * index, bottom + 24), NAMES[name], COLORS[name], small)
