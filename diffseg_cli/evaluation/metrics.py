"""Intersection and union counts that add up, and the figures of few-shot segmentation computed from them.

mIoU is the mean over classes of summed intersections over summed unions, FB-IoU the mean of foreground and
background IoU over everything, as PASCAL-5i and COCO-20i are reported. Boundary IoU is that of Cheng et al.
(CVPR 2021): IoU of the pixels of either mask that lie near its own border.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

BOUNDARY_SHARE = 0.02  # of the image's diagonal, as in the boundary IoU paper
COUNTS = 6  # numbers `count_pixels` gives
RESAMPLES = 1000  # of a bootstrap


def boundary_width(size_hw: tuple[int, int]) -> int:
    """How far from its border a mask's boundary reaches in an image of this size, in pixels, at least 1."""
    return max(1, round(BOUNDARY_SHARE * float(np.hypot(*size_hw))))


def mask_boundary(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of a mask (h w) within `width` (1 or more) of its border in chessboard distance.

    The image's edge is a border.
    """
    padded = np.pad(mask.astype(np.uint8), width)
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    inner = cv2.erode(padded, kernel)[width:-width, width:-width]
    boundary: NDArray[np.bool_] = mask & (inner == 0)
    return boundary


def count_pixels(
    predicted: NDArray[np.bool_], truth: NDArray[np.bool_], ignore: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """What one mask (h w) adds to the sums; pixels to ignore (h w) do not count and belong to neither mask.

    Returns:
        int64 (6): foreground intersection and union, background intersection and union, boundary intersection
        and union.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted {predicted.shape} and truth {truth.shape} differ in size")
    total = truth.size
    if ignore is not None:
        predicted, truth, total = predicted & ~ignore, truth & ~ignore, int((~ignore).sum())
    hit, either = int((predicted & truth).sum()), int((predicted | truth).sum())
    width = boundary_width((truth.shape[0], truth.shape[1]))
    mine, theirs = mask_boundary(predicted, width), mask_boundary(truth, width)
    near = [int((mine & theirs).sum()), int((mine | theirs).sum())]
    return np.array([hit, either, total - either, total - hit, *near], dtype=np.int64)


@dataclass
class IouCounts:
    """Pixel counts per class; `merge` in any order gives the same figures.

    Attributes:
        counts: class name -> int64 (6), sums of `count_pixels`.
        episodes: class name -> number of masks counted.
    """

    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    episodes: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        class_name: str,
        predicted: NDArray[np.bool_],
        truth: NDArray[np.bool_],
        ignore: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count one mask; arguments as in `count_pixels`."""
        self.add_counts(class_name, count_pixels(predicted, truth, ignore))

    def add_counts(self, class_name: str, counts: NDArray[np.int64], episodes: int = 1) -> None:
        """Add what `count_pixels` gave for `episodes` masks."""
        self.counts[class_name] = self.counts.get(class_name, np.zeros(COUNTS, dtype=np.int64)) + counts
        self.episodes[class_name] = self.episodes.get(class_name, 0) + episodes

    def merge(self, other: "IouCounts") -> None:
        """Add the counts of another run."""
        for name, counts in other.counts.items():
            self.add_counts(name, counts, other.episodes[name])

    def iou(self, class_name: str) -> float:
        """Foreground IoU of a class, in [0, 1]; 1 when neither prediction nor truth held a pixel of it."""
        return _share(self.counts[class_name][0], self.counts[class_name][1])

    def boundary_iou(self, class_name: str) -> float:
        """Boundary IoU of a class, in [0, 1]; 1 when neither mask held a pixel."""
        return _share(self.counts[class_name][4], self.counts[class_name][5])

    def mean_iou(self, classes: Iterable[str] | None = None) -> float:
        """Mean of `iou` over those of the classes that were counted; NaN when there is none."""
        return self._mean_of(self.iou, classes)

    def mean_boundary_iou(self, classes: Iterable[str] | None = None) -> float:
        """Mean of `boundary_iou` over those of the classes that were counted; NaN when there is none."""
        return self._mean_of(self.boundary_iou, classes)

    def _mean_of(self, figure: Callable[[str], float], classes: Iterable[str] | None) -> float:
        counted = self.counts if classes is None else [name for name in classes if name in self.counts]
        return float(np.mean([figure(name) for name in counted])) if counted else float("nan")

    def fb_iou(self) -> float:
        """Mean of foreground and background IoU, counts summed over all classes."""
        total = np.sum(list(self.counts.values()), axis=0)
        return float((total[0] / max(total[1], 1) + total[2] / max(total[3], 1)) / 2)


@dataclass(frozen=True)
class Intervals:
    """Lower and upper ends of confidence intervals, in [0, 1]."""

    mean_iou: tuple[float, float]
    boundary_iou: tuple[float, float]
    fb_iou: tuple[float, float]
    per_class: dict[str, tuple[float, float]]


def bootstrap_intervals(
    episodes: Mapping[str, NDArray[np.int64]], folds: Mapping[str, int] | None = None, level: float = 0.95
) -> Intervals:
    """Confidence intervals from episodes drawn again within each class.

    They say how far a figure could move with other episodes of the same images and classes, and nothing
    about other classes.

    Args:
        episodes: class name -> int64 (n 6), `count_pixels` of each episode.
        folds: class name -> fold; FB-IoU is summed over a fold and averaged over folds. None: all in one.
        level: share of the resampled figures inside.
    """
    generator = np.random.Generator(np.random.PCG64([0, RESAMPLES]))
    ious: dict[str, NDArray[np.float64]] = {}
    boundaries: list[NDArray[np.float64]] = []
    by_fold: dict[int, NDArray[np.float64]] = {}
    for name in sorted(episodes):
        counts = episodes[name].astype(np.float64)
        sums = _draw_again(len(counts), generator) @ counts  # (RESAMPLES 6)
        ious[name] = _shares(sums, 0)
        boundaries.append(_shares(sums, 4))
        fold = (folds or {}).get(name, 0)
        by_fold[fold] = by_fold.get(fold, np.zeros_like(sums)) + sums
    fb = [(_shares(sums, 0) + _shares(sums, 2)) / 2 for sums in by_fold.values()]
    return Intervals(
        _ends(np.mean(list(ious.values()), axis=0), level),
        _ends(np.mean(boundaries, axis=0), level),
        _ends(np.mean(fb, axis=0), level),
        {name: _ends(draws, level) for name, draws in ious.items()},
    )


def gain_interval(
    first: Mapping[str, NDArray[np.int64]], second: Mapping[str, NDArray[np.int64]]
) -> tuple[float, float]:
    """95 % confidence interval of the mean IoU of `second` less that of `first`, over the same episodes.

    Both as of `bootstrap_intervals`, and drawn again together, so what is hard for both cancels.
    """
    generator = np.random.Generator(np.random.PCG64([0, RESAMPLES]))
    gains = []
    for name in sorted(first):
        times = _draw_again(len(first[name]), generator)
        gains.append(_shares(times @ second[name], 0) - _shares(times @ first[name], 0))
    return _ends(np.mean(gains, axis=0), 0.95)


def _draw_again(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """How often each of `count` episodes is drawn, (RESAMPLES count)."""
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)


def _ends(draws: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _shares(sums: NDArray[np.float64], column: int) -> NDArray[np.float64]:
    """Intersection in this column over union in the next, of draws (n 6); 1 where the union is empty."""
    hit, either = sums[:, column], sums[:, column + 1]
    return np.where(either > 0, hit / np.maximum(either, 1), 1.0)


def _share(intersection: np.int64, union: np.int64) -> float:
    return float(intersection / union) if union else 1.0


def roc_auc(with_it: ArrayLike, without: ArrayLike) -> float:
    """Probability that an image with the object scores above one without; ties count half.

    The scores are (n) and (m).
    """
    difference = np.asarray(with_it)[:, None] - np.asarray(without)[None]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())
