"""Several concepts in one image: whose pixel is whose, their colours and their legend.

Value 0 of a label map is background, i the i-th concept. Letters: H W size of the image.
"""

import colorsys
import io
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffseg_cli.results.instances import Instance
from diffseg_cli.results.render import TINT, contour_width, overlay

Color = tuple[int, int, int]

MOST_CONCEPTS = 254  # in one label map: 0 is background, 255 VOC's "ignore"
# Told apart also without red or green; the first is that of an overlay with one concept.
FIRST_COLORS: tuple[Color, ...] = (
    *(TINT, (0, 170, 255), (255, 196, 0), (0, 205, 130)),
    *((176, 84, 255), (255, 128, 20), (120, 235, 245), (255, 150, 215)),
)
SLIVER = 0.05  # of a part as it was: smaller pieces are cut-off remains
PANEL, INK = (16, 16, 20), (245, 245, 245)  # of a legend
TEXT_SHARE, LEAST_TEXT = 1 / 28, 11  # of the shorter side; in pixels


def concept_color(index: int) -> Color:
    """RGB of the concept with this index from 0; later ones take new hues in steps of the golden ratio."""
    if index < len(FIRST_COLORS):
        return FIRST_COLORS[index]
    round_of = index // 16 % 3
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.9, 0.55, 0.7)[round_of], 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def voc_color(label: int) -> Color:
    """RGB of a label in the palette of PASCAL VOC, which every reader of its label maps knows."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (label >> channel & 1) << 7 - bit
        label >>= 3
    return channels[0], channels[1], channels[2]


def settle_overlaps(
    masks: Sequence[NDArray[np.bool_]], scores: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.bool_]]:
    """Give each pixel that several masks (H W) claim to the one with the highest score; the first at a draw.

    What is left of a connected part may be no more than slivers along the winner's border; they become
    background.
    """
    best, owner = np.full(masks[0].shape, -np.inf, dtype=np.float32), np.full(masks[0].shape, -1)
    for index, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        better = mask & (score > best)
        best[better], owner[better] = score[better], index
    return [_without_slivers(mask, owner == index) for index, mask in enumerate(masks)]


def _without_slivers(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is left of a mask, without pieces that are small beside the part they come from."""
    if (before == after).all():
        return after
    _, parts, whole, _ = cv2.connectedComponentsWithStats(before.astype(np.uint8))
    count, pieces, left, _ = cv2.connectedComponentsWithStats(after.astype(np.uint8))
    part_of = np.zeros(count, dtype=np.int64)
    part_of[pieces[after]] = parts[after]
    keep = left[:, cv2.CC_STAT_AREA] >= SLIVER * whole[part_of, cv2.CC_STAT_AREA]
    keep[0] = False
    kept: NDArray[np.bool_] = keep[pieces]
    return kept


def label_map(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Masks (H W) without overlaps -> uint8 (H W)."""
    labels = np.zeros(masks[0].shape, dtype=np.uint8)
    for label, mask in enumerate(masks, start=1):
        labels[mask] = label
    return labels


def label_map_png(labels: NDArray[np.uint8], colors: Sequence[Color]) -> bytes:
    """Labels (H W) as a palette PNG file; colors[i] shows value i."""
    image = Image.fromarray(labels)
    image.putpalette([value for color in colors for value in color])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def overlay_concepts(
    image: NDArray[np.uint8], masks: Sequence[NDArray[np.bool_]], names: Sequence[str]
) -> NDArray[np.uint8]:
    """An image (H W 3) with every mask (H W) in its colour, and below it a legend where there are several."""
    tinted = image
    for index, mask in enumerate(masks):
        tinted = overlay(tinted, mask, concept_color(index))
    if len(masks) < 2:
        return tinted
    found = [name if mask.any() else f"{name} (not found)" for name, mask in zip(names, masks, strict=True)]
    return draw_legend(tinted, found)


def overlay_instances(
    image: NDArray[np.uint8], instances: Sequence[Instance], titles: Sequence[str]
) -> NDArray[np.uint8]:
    """An image (H W 3) with each instance in a colour of its own and its title on it."""
    page, line = image.copy(), contour_width(image.shape)
    places = []
    for each in instances:
        margin = [min(3 * line, each.top), min(3 * line, each.left)]  # room for the outline
        rows, columns = each.window
        around = (
            slice(rows.start - margin[0], rows.stop + 3 * line),
            slice(columns.start - margin[1], columns.stop + 3 * line),
        )
        mask = np.zeros(page[around].shape[:2], dtype=bool)
        mask[margin[0] :, margin[1] :][: each.mask.shape[0], : each.mask.shape[1]] = each.mask
        page[around] = overlay(page[around], mask, concept_color(each.id - 1), line)
        depth = cv2.distanceTransform(np.pad(each.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        places.append((each.left + int(x) - 1, each.top + int(y) - 1))
    drawn = Image.fromarray(page)
    font = ImageFont.load_default(max(LEAST_TEXT, round(min(image.shape[:2]) * TEXT_SHARE)))
    draw = ImageDraw.Draw(drawn)
    for place, title in zip(places, titles, strict=True):
        draw.text(place, title, INK, font, anchor="mm", stroke_width=max(1, line), stroke_fill=PANEL)
    return np.array(drawn)


def draw_legend(pixels: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.uint8]:
    """The pixels (H W 3) with names and colours of concepts in the lower left corner, as many as fit."""
    h, w = pixels.shape[:2]
    size = max(LEAST_TEXT, round(min(h, w) * TEXT_SHARE))
    font = ImageFont.load_default(size)
    line, gap = round(size * 1.5), round(size * 0.6)
    shown = list(names)[: max(0, (h - 2 * gap) // line)]
    if not shown:
        return pixels
    width = min(w, 3 * gap + size + round(max(font.getlength(name) for name in shown)))
    top = h - len(shown) * line - gap
    page = pixels.copy()
    panel = page[top:, :width]
    page[top:, :width] = cv2.addWeighted(panel, 0.25, np.full_like(panel, PANEL), 0.75, 0)
    image = Image.fromarray(page)
    draw = ImageDraw.Draw(image)
    for index, name in enumerate(shown):
        y = top + gap // 2 + index * line + (line - size) // 2
        draw.rectangle((gap, y, gap + size - 1, y + size - 1), concept_color(index), INK)
        draw.text((2 * gap + size, y + size / 2), name, INK, font, anchor="lm")
    return np.array(image)
