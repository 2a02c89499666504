"""Labelled images on one page, to look at side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffseg_cli.results.render import heatmap, resized

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

PAPER, INK, FAINT, ACCENT = (20, 20, 24), (240, 240, 240), (160, 160, 168), (255, 190, 90)
GAP, LEADING, LEAST_WIDTH = 14, 6, 560
TITLE_SIZE, NOTE_SIZE, HEADING_SIZE = 15, 12, 20


@dataclass(frozen=True)
class Tile:
    """One image of a sheet.

    Attributes:
        pixels: uint8 (h w 3), any size.
        title: above it.
        note: below the title, fainter.
        scale: in place of a note, the ends of a colour bar: the smallest and largest value of a heatmap.
    """

    pixels: NDArray[np.uint8]
    title: str = ""
    note: str = ""
    scale: tuple[str, str] | None = None


def draw_sheet(
    rows: Sequence[tuple[str, Sequence[Tile]]],
    *,
    heading: str,
    tile_hw: tuple[int, int],
    most_columns: int = 16,
) -> NDArray[np.uint8]:
    """Put tiles on one page.

    Args:
        rows: a line of text (or "") and the tiles below it; tiles that do not fit go on in the next line.
        heading: top of the page.
        tile_hw: size every image is brought to.
        most_columns: tiles side by side.

    Returns:
        uint8 (h w 3).
    """
    lines: list[tuple[str, Sequence[Tile]]] = []
    for text, tiles in rows:
        parts = [tiles[start : start + most_columns] for start in range(0, len(tiles), most_columns)]
        lines += [(text if index == 0 else "", part) for index, part in enumerate(parts)]
    fonts = {size: ImageFont.load_default(size) for size in (HEADING_SIZE, TITLE_SIZE, NOTE_SIZE)}
    width = max(len(tiles) for _, tiles in lines) * (tile_hw[1] + GAP) + GAP
    headings = _wrap(heading, fonts[HEADING_SIZE], max(width, LEAST_WIDTH) - 2 * GAP)
    heights = [_caption_height(*line) + tile_hw[0] + GAP for line in lines]
    top = 2 * GAP + len(headings) * (HEADING_SIZE + 8)
    page = Image.new("RGB", (max(width, LEAST_WIDTH), top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(page)
    for index, text in enumerate(headings):
        draw.text((GAP, GAP + index * (HEADING_SIZE + 8)), text, INK, fonts[HEADING_SIZE])
    for (text, tiles), height in zip(lines, heights, strict=True):
        bottom = top + height - GAP - tile_hw[0]  # of the captions
        if text:
            draw.text((GAP, top), text, ACCENT, fonts[TITLE_SIZE])
        for column, tile in enumerate(tiles):
            left, y = GAP + column * (tile_hw[1] + GAP), bottom
            if tile.scale:
                y -= NOTE_SIZE + LEADING
                _draw_scale(page, tile.scale, (left, y), tile_hw[1], fonts[NOTE_SIZE])
            for caption, size, color in ((tile.note, NOTE_SIZE, FAINT), (tile.title, TITLE_SIZE, INK)):
                if caption:
                    y -= size + LEADING
                    draw.text((left, y), _fit(caption, fonts[size], tile_hw[1]), color, fonts[size])
            page.paste(Image.fromarray(resized(tile.pixels, tile_hw)), (left, bottom))
        top += height
    return np.array(page)


def tile_size(image_hw: tuple[int, int], longest: int) -> tuple[int, int]:
    """(h, w) of a tile that shows an image of this shape; very long images are shortened to 4:1."""
    h, w = image_hw
    scale = longest / max(h, w)
    return max(round(h * scale), longest // 4), max(round(w * scale), longest // 4)


def _caption_height(text: str, tiles: Sequence[Tile]) -> int:
    """Room above the images of one line."""
    rows = [
        (bool(text), TITLE_SIZE),
        (any(tile.title for tile in tiles), TITLE_SIZE),
        (any(tile.note or tile.scale for tile in tiles), NOTE_SIZE),
    ]
    return sum(size + LEADING for present, size in rows if present)


def _draw_scale(
    page: Image.Image, scale: tuple[str, str], place: tuple[int, int], width: int, font: Font
) -> None:
    """A colour bar as wide as a tile, with a value at each end."""
    (left, top), draw = place, ImageDraw.Draw(page)
    low, high = (round(font.getlength(text)) + LEADING for text in scale)
    draw.text((left, top), scale[0], FAINT, font)
    draw.text((left + width, top), scale[1], FAINT, font, anchor="ra")
    if width - low - high > 0:
        levels = np.linspace(0, 1, width - low - high, dtype=np.float32)[None].repeat(NOTE_SIZE - 4, 0)
        page.paste(Image.fromarray(heatmap(levels)), (left + low, top + 3))


def _fit(text: str, font: Font, width: int) -> str:
    """The text, or as much of it as fits before an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _wrap(text: str, font: Font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
