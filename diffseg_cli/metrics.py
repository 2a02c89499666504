"""Intersection and union counts that add up, and the figures of few-shot segmentation computed from them.

mIoU is the mean over classes of summed intersections over summed unions, FB-IoU the mean of foreground and
background IoU over everything, as PASCAL-5i and COCO-20i are reported.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class IouCounts:
    """Pixel counts per class; `merge` in any order gives the same figures.

    Attributes:
        counts: class name -> int64 (4): foreground intersection, foreground union, background intersection,
            background union.
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
        """Count one mask. All arrays bool (h w); pixels where `ignore` is True do not count."""
        if predicted.shape != truth.shape:
            raise ValueError(f"predicted {predicted.shape} and truth {truth.shape} differ in size")
        valid = np.ones_like(truth) if ignore is None else ~ignore
        hit, either = int((predicted & truth & valid).sum()), int(((predicted | truth) & valid).sum())
        total = int(valid.sum())
        both_background = total - either
        background_union = total - hit
        self._count(class_name, np.array([hit, either, both_background, background_union], dtype=np.int64), 1)

    def merge(self, other: "IouCounts") -> None:
        """Add the counts of another run."""
        for name, counts in other.counts.items():
            self._count(name, counts, other.episodes[name])

    def _count(self, name: str, counts: NDArray[np.int64], episodes: int) -> None:
        self.counts[name] = self.counts.get(name, np.zeros(4, dtype=np.int64)) + counts
        self.episodes[name] = self.episodes.get(name, 0) + episodes

    def iou(self, class_name: str) -> float:
        """Foreground IoU of a class, in [0, 1]; 1 when neither prediction nor truth held a pixel of it."""
        intersection, union = self.counts[class_name][:2]
        return float(intersection / union) if union else 1.0

    def mean_iou(self, classes: Iterable[str] | None = None) -> float:
        """Mean over classes of `iou`; NaN when there is none."""
        names = list(self.counts if classes is None else classes)
        return float(np.mean([self.iou(name) for name in names])) if names else float("nan")

    def fb_iou(self) -> float:
        """Mean of foreground and background IoU, counts summed over all classes."""
        total = np.sum(list(self.counts.values()), axis=0)
        return float((total[0] / max(total[1], 1) + total[2] / max(total[3], 1)) / 2)
