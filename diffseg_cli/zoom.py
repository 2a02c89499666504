"""Look closer at what is small: further looks at windows of a large image, put together in one answer.

The model sees every image at one size, where an object on a hundredth of a large photograph is a few pixels.
`search` spends a bounded number of looks on a pyramid, the most promising window first: some split a window
in four, the others go to the places that were marked, each with a margin around it. `compose` puts all looks
together. Probabilities of different windows do not compare as they are, because every look marks something:
each is weighed by the presence of its window, over the highest of all (docs/zoom.md has the measurements).

Letters: S size of the model frame, h w size of the image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.refine import refine_borders

LOOKS, LOOKS_UP_TO = 10, 12.0  # of `auto`: so many up to so many megapixels, then one more for each
SPARE = 2.0  # the longer side must be so many times the model's
UNSURE, SURE = 0.5, 0.9  # presence of the plain look: below it, look closer; from it on, do not
SMALL = 0.08  # of the image: in between, look closer where the largest part of the mask is below it
ROUND = 4  # windows of a round, which a GPU computes as one batch
SPLIT = 0.55  # side of a quarter over that of its window: neighbours overlap
MARKED = 0.35  # of the highest probability, from which on a place counts as marked
MOST_PLACES = 8  # of one look
MARGIN = 0.4  # around a marked place, of its longer side
CLOSER = 0.75  # a further look at a place must be so much smaller than the look before
LEAST_SIDE = 2 / 3  # of the model's side: smaller windows hold no more detail
SAME = 0.5  # overlap (IoU) from which on two windows are one
RAMP = 8  # a window fades in over an eighth of its side
BORDERS_FROM = 0.25  # relative presence from which on borders are refined: below, nothing passes a threshold


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


@dataclass(frozen=True)
class WindowLook:
    """What the model answers to one window.

    Attributes:
        window: of the image.
        probability: float32 (S S) in [0, 1].
        presence: in [0, 1].
    """

    window: Window
    probability: NDArray[np.float32]
    presence: float


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
    marked = (plain.probability > 0.5).astype(np.uint8)
    areas = cv2.connectedComponentsWithStats(marked, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    small = areas.max(initial=0) < SMALL * marked.size
    if plain.presence >= (SURE if small else UNSURE):
        return 1
    megapixels = plain.window.height * plain.window.width / 1e6
    return LOOKS + max(0, math.floor(megapixels - LOOKS_UP_TO))


def search(look_at: LookAt, plain: WindowLook, looks: int) -> list[WindowLook]:
    """Look closer where it promises most.

    Of every eight looks four split the window with the most presence times marked area in four; the others go
    to marked places, ranked in the same way.

    Args:
        look_at: gives the answers to at most `ROUND` windows.
        plain: the look at the whole image.
        looks: bound on all of them, `plain` among them.

    Returns:
        All looks in their order, `plain` first.
    """
    size = plain.probability.shape[0]
    seen = [plain]
    to_split = list(seen)
    for _ in range(looks // (2 * ROUND)):
        if not to_split:
            break
        best = max(to_split, key=lambda look: look.presence * float(look.probability.sum()))
        to_split.remove(best)
        quarters = _quarters(best.window, size)
        found = look_at(quarters) if quarters else []
        to_split += found
        seen += found
    places = [place for look in seen for place in _places(look, plain.window)]
    while len(seen) < looks:
        places.sort(key=lambda place: -place[0])  # stable: of equal ones the first stays first
        chosen: list[Window] = []
        while places and len(chosen) < min(ROUND, looks - len(seen)):
            _, window = places.pop(0)
            known = [*(look.window for look in seen), *chosen]
            if all(window.overlap(other) <= SAME for other in known):
                chosen.append(window)
        if not chosen:
            break
        found = look_at(chosen)
        seen += found
        places += [place for look in found for place in _places(look, plain.window)]
    return seen


def compose(looks: Sequence[WindowLook], image: NDArray[np.uint8], *, refine: bool) -> NDArray[np.float32]:
    """One probability from all looks.

    A pixel's is the mean of what the windows say that hold it, each times its presence over the highest;
    closer ones weigh more in proportion. Windows fade in from their borders, so that none leaves a seam.

    Args:
        looks: of `search`; the first is of the whole image.
        image: uint8 (h w 3).
        refine: pull the borders of each look to those of the image, at the scale of that look.

    Returns:
        float32 (h w) in [0, 1].
    """
    highest = max(max(look.presence for look in looks), 1e-6)
    total = np.zeros(image.shape[:2], np.float32)
    weights = np.zeros(image.shape[:2], np.float32)
    for look in looks:
        window, relative = look.window, np.float32(look.presence / highest)
        size_wh = (window.width, window.height)
        found = cv2.resize(look.probability, size_wh, interpolation=cv2.INTER_LINEAR)
        if refine and relative >= BORDERS_FROM:
            found = refine_borders(found, image[window.slices])
        weight = _fade(window, image.shape[:2]) * np.float32(looks[0].window.longer / window.longer)
        total[window.slices] += weight * found * relative
        weights[window.slices] += weight
    total /= weights
    return total


def slices(window: Window) -> list[Window]:
    """Windows of half the side at half steps: uniform slicing, what closer looks are measured against."""
    height, width = math.ceil(window.height / 2), math.ceil(window.width / 2)
    return [
        Window(window.top + round(row * (window.height - height)), left, height, width)
        for row in (0, 0.5, 1)
        for left in (window.left + round(column * (window.width - width)) for column in (0, 0.5, 1))
    ]


def join_slices(looks: Sequence[WindowLook]) -> NDArray[np.float32]:
    """The highest probability of all looks at each pixel (h w), as slicing joins masks that overlap."""
    joined = np.zeros((looks[0].window.height, looks[0].window.width), np.float32)
    for look in looks:
        part = joined[look.window.slices]
        np.maximum(part, cv2.resize(look.probability, part.shape[::-1]), out=part)
    return joined


def _quarters(window: Window, size: int) -> list[Window]:
    """A window in four, or in two where it is narrow; none where they would hold no more detail."""
    side = round(SPLIT * window.longer)
    if side < LEAST_SIDE * size:
        return []
    height, width = min(side, window.height), min(side, window.width)
    return [
        Window(top, left, height, width)
        for top in dict.fromkeys((window.top, window.top + window.height - height))
        for left in dict.fromkeys((window.left, window.left + window.width - width))
    ]


def _places(look: WindowLook, whole: Window) -> Iterator[tuple[float, Window]]:
    """Windows around the marked places of a look that are closer to them, with what each promises."""
    size, window = look.probability.shape[0], look.window
    marked = look.probability > MARKED * look.probability.max()
    _, parts, figures, _ = cv2.connectedComponentsWithStats(marked.astype(np.uint8), connectivity=8)
    masses = np.bincount(parts.ravel(), weights=look.probability.ravel())
    for index in sorted(range(1, len(figures)), key=lambda part: -masses[part])[:MOST_PLACES]:
        x, y, width, height, _ = (int(figure) for figure in figures[index])
        scale_y, scale_x = window.height / size, window.width / size
        longer = max(height * scale_y, width * scale_x)
        side = round(max(longer * (1 + 2 * MARGIN), LEAST_SIDE * size))
        if side <= CLOSER * window.longer:
            middle = window.top + (y + height / 2) * scale_y, window.left + (x + width / 2) * scale_x
            yield look.presence * float(masses[index]), _window_around(middle, side, whole)


def _window_around(middle: tuple[float, float], side: int, whole: Window) -> Window:
    """A square around a point (y, x), moved and cut to lie inside the image."""
    height, width = min(side, whole.height), min(side, whole.width)
    top, left = round(middle[0] - height / 2), round(middle[1] - width / 2)
    return Window(
        min(max(top, 0), whole.height - height), min(max(left, 0), whole.width - width), height, width
    )


def _fade(window: Window, size_hw: tuple[int, ...]) -> NDArray[np.float32]:
    """Weights (h w) of a window: 1 inside, falling to 0 at its sides, except at those of the image."""
    ramps = []
    for start, length, whole in zip(
        (window.top, window.left), (window.height, window.width), size_hw, strict=True
    ):
        steps = (np.arange(length, dtype=np.float32) + 0.5) * (RAMP / length)
        before = steps if start > 0 else np.ones_like(steps)
        after = steps[::-1] if start + length < whole else np.ones_like(steps)
        ramps.append(np.minimum(np.minimum(before, after), 1))
    return np.minimum.outer(ramps[0], ramps[1])
