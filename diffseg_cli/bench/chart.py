"""Where the time goes, as a chart: one bar per half of the work, one colour per stage."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH, MARGIN, BAR, LINE = 1000, 24, 44, 22
PAPER, INK, FAINT = (255, 255, 255), (25, 25, 30), (110, 110, 118)
# Okabe and Ito's colours, readable by colour-blind eyes, and lighter ones of the same hues.
COLORS = (
    *((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0)),
    *((150, 150, 150), (240, 228, 66), (120, 94, 160), (140, 200, 180), (245, 190, 160), (90, 90, 90)),
    *((190, 170, 220), (120, 60, 20), (200, 210, 120), (60, 60, 130)),
)
NAMES = {"support": "one support", "query": "one query"}


def draw_chart(record: dict[str, Any]) -> NDArray[np.uint8]:
    """A record of `measure` as stacked bars: the time of a support, the time and the FLOP of a query.

    Both bars of time have one scale; the bar of FLOP fills the width.

    Returns:
        uint8 (h w 3).
    """
    stages = list(dict.fromkeys(s["stage"] for half in NAMES for s in record[half]["stages"]))
    colors = dict(zip(stages, itertools.cycle(COLORS)))
    longest = max(record[half]["sum"]["seconds"] for half in NAMES)
    bars = [
        (
            f"{NAMES[half]}: {form_seconds(record[half]['sum']['seconds'])}"
            f" (undivided {form_seconds(record[half]['whole']['seconds'])})",
            {s["stage"]: s["seconds"] / longest for s in record[half]["stages"]},
        )
        for half in NAMES
    ]
    flop = record["query"]["sum"]["flop"]
    bars.append(
        (
            f"{NAMES['query']}: {form_flop(flop)}",
            {s["stage"]: s["flop"] / max(flop, 1) for s in record["query"]["stages"]},
        )
    )
    rows = -(-len(stages) // 5)
    height = 2 * MARGIN + 2 * LINE + len(bars) * (BAR + 2 * LINE) + rows * LINE
    page = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(page)
    heading, small = ImageFont.load_default(18), ImageFont.load_default(13)
    draw.text((MARGIN, MARGIN), summary(record), INK, heading)
    top = MARGIN + 2 * LINE
    for text, shares in bars:
        draw.text((MARGIN, top), text, INK, small)
        left = float(MARGIN)
        for stage, share in shares.items():
            right = left + share * (WIDTH - 2 * MARGIN)
            draw.rectangle((round(left), top + LINE, round(right), top + LINE + BAR), colors[stage])
            if draw.textlength(stage, small) + 8 < right - left:
                draw.text((left + 5, top + LINE + BAR // 2 - 8), stage, _ink_on(colors[stage]), small)
            left = right
        top += BAR + 2 * LINE
    for index, stage in enumerate(stages):
        x, y = MARGIN + index % 5 * (WIDTH - 2 * MARGIN) // 5, top + index // 5 * LINE
        draw.rectangle((x, y + 2, x + 14, y + 16), colors[stage])
        draw.text((x + 20, y), stage, FAINT, small)
    return np.array(page)


def summary(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    weights = ", random weights" if record["random_weights"] else ""
    return (
        f"{record['model']} ({record['head']}{weights}), {record['image_size']} px, "
        f"batch {record['batch_size']}, {record['shots']}-shot, {record['device']}, {record['dtype']}"
    )


def form_seconds(seconds: float) -> str:
    """A time with a fitting unit."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def form_flop(flop: float) -> str:
    """A number of operations with a fitting unit."""
    size, unit = next(
        (size, unit) for size, unit in ((1e12, "TFLOP"), (1e9, "GFLOP"), (0, "MFLOP")) if flop >= size
    )
    return f"{flop / (size or 1e6):.2f} {unit}"


def _ink_on(color: tuple[int, ...]) -> tuple[int, int, int]:
    """Black or white, what can be read on a colour."""
    return INK if color[0] * 0.3 + color[1] * 0.59 + color[2] * 0.11 > 140 else PAPER
