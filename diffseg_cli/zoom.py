"""Look closer at what is small: further looks at windows of a large image, and the answer they make.

The model sees every image at one size, where an object on a hundredth of a large photograph is a few pixels.
`search` first looks at tiles of the image, which only propose where to look; then at the places they mark,
each framed as supports are. What compares between looks is how much of its attention a place gives to the
prompt: probability and score map are stretched in every window anew. `deciding` keeps the first answer unless
a closer look draws clearly more attention (docs/zoom.md has the measurements).

Letters: S size of the model frame, H W = S/8, h w size of the image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.refine import refine_borders

ROUND = 4  # windows that a GPU computes as one batch
LOOKS, LOOKS_UP_TO = 10, 12.0  # of `auto`: so many up to so many megapixels, then one more for each
SPARE = 2.0  # the longer side must be so many times the model's
UNSURE = 0.5  # presence of the first look below which `auto` looks closer
CLOSEST = 0.3  # of all looks: at marked places; the rest are tiles
OVERLAP = 1.25  # side of a tile over its share of the image
MARKED = 0.35  # of a look's highest probability, from which on a place counts as marked
LEAST_PART = 9  # pixels of the model frame: smaller marks are noise
MARGIN = 0.3  # around a marked place, of its longer side; as supports are cropped
CLOSER = 0.75  # a look at a place must be so much smaller than the look that marked it
LEAST_SIDE = 2 / 3  # of the model's side: smaller windows hold no more detail
SAME = 0.5  # overlap (IoU) from which on two windows are one
CLEARLY = 1.5  # a closer look decides that draws so many times the attention of the first


@dataclass(frozen=True)
class Window:
    """A part of an image, in pixels; all of it where it has the size of the image."""

    top: int
    left: int
    height: int
    width: int

    @property
    def longer(self) -> int:
        return max(self.height, self.width)

    @property
    def box_xywh(self) -> list[int]:
        return [self.left, self.top, self.width, self.height]

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def overlap(self, other: "Window") -> float:
        """Intersection over union."""
        height = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        width = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        both = max(height, 0) * max(width, 0)
        return both / (self.height * self.width + other.height * other.width - both)


@dataclass(frozen=True, eq=False)
class WindowLook:
    """What the model answers to one window.

    Attributes:
        window: of the image.
        probability: float32 (S S) in [0, 1].
        presence: in [0, 1].
        cross_map: float32 (H W), share of its attention that each place gives to the prompt.
        prompt_share: mean of the highest of those shares.
        is_tile: whether it only proposes where to look, and is no part of the answer.
    """

    window: Window
    probability: NDArray[np.float32]
    presence: float
    cross_map: NDArray[np.float32]
    prompt_share: float
    is_tile: bool = False


def whole(image: NDArray[np.uint8]) -> Window:
    """All of an image (h w 3)."""
    return Window(0, 0, image.shape[0], image.shape[1])


LookAt = Callable[[Sequence[Window]], list[WindowLook]]


def most_looks(zoom: str, plain: WindowLook, size: int) -> int:
    """How many looks an image may get, the plain one among them; 1 where nothing speaks for another.

    Args:
        zoom: "auto", "off" or the number. A number asks for closer looks whatever the plain one says.
        plain: the look at the whole image.
        size: S.
    """
    if zoom == "off" or plain.window.longer < SPARE * size:
        return 1
    if zoom != "auto":
        return int(zoom)
    if plain.presence >= UNSURE:
        return 1
    megapixels = plain.window.height * plain.window.width / 1e6
    return LOOKS + max(0, math.floor(megapixels - LOOKS_UP_TO))


def search(look_at: LookAt, plain: WindowLook, looks: int) -> list[WindowLook]:
    """Look at tiles of an image, then at the places that draw most attention in any look so far.

    Args:
        look_at: gives the answers to windows.
        plain: the look at the whole image.
        looks: bound on all of them, `plain` among them.

    Returns:
        All looks in their order, `plain` first.
    """
    seen = [plain]
    tiles = _tiles(plain.window, looks - 1 - max(1, round(CLOSEST * looks)), plain.probability.shape[0])
    seen += [replace(look, is_tile=True) for look in look_at(tiles)] if tiles else []
    places = [place for look in seen for place in _places(look, plain.window)]
    places.sort(key=lambda place: -place[0])  # stable: of equal ones the first stays first
    known, chosen = [look.window for look in seen], []
    for _, window in places:
        if len(known) < looks and all(window.overlap(other) <= SAME for other in known):
            known.append(window)
            chosen.append(window)
    return seen + (look_at(chosen) if chosen else [])


def deciding(looks: Sequence[WindowLook]) -> list[WindowLook]:
    """The looks that make the answer: the first, or those closer ones that draw clearly more attention.

    Args:
        looks: of `search`; the first is of the whole image. Of none, none decides.
    """
    closer = [look for look in looks[1:] if not look.is_tile]
    highest = max((look.prompt_share for look in closer), default=0.0)
    if not closer or highest < CLEARLY * looks[0].prompt_share:
        return list(looks[:1])
    return [look for look in closer if CLEARLY * look.prompt_share >= highest]


def join(looks: Sequence[WindowLook], image: NDArray[np.uint8], *, refine: bool) -> NDArray[np.float32]:
    """The highest probability of all looks at each pixel; 0 where none of them looked.

    Args:
        looks: at windows of the image.
        image: uint8 (h w 3).
        refine: pull the borders of each look to those of the image, at the scale of that look.

    Returns:
        float32 (h w) in [0, 1].
    """
    joined = np.zeros(image.shape[:2], np.float32)
    for look in looks:
        size_wh = (look.window.width, look.window.height)
        found = cv2.resize(look.probability, size_wh, interpolation=cv2.INTER_LINEAR)
        part = joined[look.window.slices]
        np.maximum(part, refine_borders(found, image[look.window.slices]) if refine else found, out=part)
    return joined


def slices(window: Window) -> list[Window]:
    """Windows of half the side at half steps: uniform slicing, what closer looks are measured against."""
    return _grid(window, 3, 3, (math.ceil(window.height / 2), math.ceil(window.width / 2)))


def _grid(window: Window, rows: int, columns: int, size_hw: tuple[int, int]) -> list[Window]:
    """Windows of one size at even steps, from one border of a window to the other."""
    height, width = size_hw
    tops, lefts = np.linspace(0, window.height - height, rows), np.linspace(0, window.width - width, columns)
    return [
        Window(window.top + round(top), window.left + round(left), height, width)
        for top in tops
        for left in lefts
    ]


def _tiles(whole: Window, most: int, size: int) -> list[Window]:
    """An image in at most so many windows that overlap, as small as that allows and as holds more detail.

    Args:
        whole: the image.
        most: bound on them; where it allows no two, there is none.
        size: S.
    """
    least = LEAST_SIDE * size / OVERLAP
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]

    def longer(grid: tuple[int, int]) -> float:
        return max(whole.height / grid[0], whole.width / grid[1], least)

    rows, columns = min(grids, key=lambda grid: (longer(grid), grid[0] * grid[1]), default=(1, 1))
    height, width = (
        min(round(OVERLAP * side / parts), side)
        for side, parts in ((whole.height, rows), (whole.width, columns))
    )
    return _grid(whole, rows, columns, (height, width)) if rows * columns > 1 else []


def _places(look: WindowLook, whole: Window) -> Iterator[tuple[float, Window]]:
    """Windows around the marked places of a look that are closer to them, with the attention they draw."""
    size, window = look.probability.shape[0], look.window
    marked = look.probability > MARKED * look.probability.max()
    _, parts, figures, _ = cv2.connectedComponentsWithStats(marked.astype(np.uint8), connectivity=8)
    shares = cv2.resize(look.cross_map, (size, size), interpolation=cv2.INTER_LINEAR)
    highest = np.zeros(len(figures), np.float32)
    np.maximum.at(highest, parts.ravel(), (look.probability * shares).ravel())
    scale_y, scale_x = window.height / size, window.width / size
    for part in range(1, len(figures)):
        x, y, width, height, area = (int(figure) for figure in figures[part])
        longer = max(height * scale_y, width * scale_x)
        side = round(max(longer * (1 + 2 * MARGIN), LEAST_SIDE * size))
        if area >= LEAST_PART and side <= CLOSER * window.longer:
            middle = window.top + (y + height / 2) * scale_y, window.left + (x + width / 2) * scale_x
            yield float(highest[part]), _window_around(middle, side, whole)


def _window_around(middle: tuple[float, float], side: int, whole: Window) -> Window:
    """A square around a point (y, x), moved and cut to lie inside the image."""
    height, width = min(side, whole.height), min(side, whole.width)
    top, left = round(middle[0] - height / 2), round(middle[1] - width / 2)
    return Window(
        min(max(top, 0), whole.height - height), min(max(left, 0), whole.width - width), height, width
    )
