"""Plain charts as images: lines over an axis, several side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[float, float]]

PAPER, INK, FAINT, RULE = (255, 255, 255), (30, 30, 36), (120, 120, 128), (228, 228, 232)
COLOURS = ((31, 96, 180), (214, 96, 20), (40, 140, 70), (150, 60, 160), (110, 110, 110), (180, 40, 60))
WIDTH, HEIGHT = 620, 420  # of one chart
LEFT, RIGHT, TOP, BOTTOM = 70, 24, 52, 56  # margins around its axes
TEXT, TITLE = 14, 17


@dataclass(frozen=True)
class Chart:
    """Lines over one axis.

    Attributes:
        title: above it.
        x_label: below it.
        lines: name -> points, drawn in turn through `COLOURS`.
        y_range: lowest and highest value shown; None fits the lines.
        x_range: the same across.
        diagonal: draw y = x, faint.
        dots: name of a line drawn with a dot at each point -> areas of the dots relative to each other.
    """

    title: str
    x_label: str
    lines: Mapping[str, Points]
    y_range: tuple[float, float] | None = None
    x_range: tuple[float, float] | None = None
    diagonal: bool = False
    dots: Mapping[str, Sequence[float]] | None = None


def tick_values(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `count` of them."""
    span = max(high - low, 1e-9)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(step * index, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def draw_charts(charts: Sequence[Chart]) -> NDArray[np.uint8]:
    """Charts side by side, uint8 (h w 3)."""
    page = Image.new("RGB", (WIDTH * len(charts), HEIGHT), PAPER)
    for index, chart in enumerate(charts):
        _draw(ImageDraw.Draw(page), chart, index * WIDTH)
    return np.asarray(page)


def _draw(drawing: ImageDraw.ImageDraw, chart: Chart, offset: int) -> None:
    text, title = ImageFont.load_default(TEXT), ImageFont.load_default(TITLE)
    points = [point for line in chart.lines.values() for point in line if math.isfinite(point[1])]
    (x_low, x_high), (y_low, y_high) = _ranges(points, chart.x_range, chart.y_range)
    box = (offset + LEFT, TOP, offset + WIDTH - RIGHT, HEIGHT - BOTTOM)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return box[0] + across * (box[2] - box[0]), box[3] - min(max(up, 0), 1) * (box[3] - box[1])

    drawing.text((box[0], 8), chart.title, INK, title)
    for value in tick_values(y_low, y_high):
        y = place(x_low, value)[1]
        drawing.line((box[0], y, box[2], y), RULE)
        drawing.text((box[0] - 8, y), f"{value:g}", FAINT, text, anchor="rm")
    for value in tick_values(x_low, x_high):
        x = place(value, y_low)[0]
        drawing.line((x, box[3], x, box[3] + 4), FAINT)
        drawing.text((x, box[3] + 8), f"{value:g}", FAINT, text, anchor="ma")
    drawing.line((box[0], box[3], box[2], box[3]), FAINT)
    drawing.text(((box[0] + box[2]) / 2, HEIGHT - 24), chart.x_label, INK, text, anchor="ma")
    if chart.diagonal:
        drawing.line((place(x_low, x_low), place(x_high, x_high)), FAINT)
    at = float(box[0])
    for colour, (name, line) in zip(COLOURS, chart.lines.items(), strict=False):
        placed = [place(x, y) for x, y in line if math.isfinite(y)]
        if len(placed) > 1:
            drawing.line(placed, colour, 2, joint="curve")
        areas = (chart.dots or {}).get(name) or ([1.0] * len(placed) if len(placed) < 3 else [])
        for (x, y), area in zip(placed, areas, strict=False):
            radius = 4 + 8 * math.sqrt(area)
            drawing.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
        drawing.rectangle((at, 34, at + 12, 46), colour)
        drawing.text((at + 18, 33), name, INK, text)
        at += 34 + drawing.textlength(name, text)


def _ranges(
    points: Points, x_range: tuple[float, float] | None, y_range: tuple[float, float] | None
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of both axes, with a little air above and below."""
    if not points:
        return x_range or (0.0, 1.0), y_range or (0.0, 1.0)
    (x_low, x_high), (y_low, y_high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    x_low, x_high = x_range or (x_low, x_high)
    air = 0.06 * (y_high - y_low) or 0.05
    return (x_low, x_high), y_range or (y_low - air, y_high + air)
