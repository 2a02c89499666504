"""From episodes to figures: sums over classes, folds and runs, in any order of arrival."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from diffseg_cli.evaluation.metrics import IouCounts, bootstrap_intervals, roc_auc

SHARES = (0.005, 0.02, 0.05, 0.2)  # of the image, between which objects are told apart by size
LOWERED = 0.02  # of IoU: a class that adaptation lowers by more counts as harmed


@dataclass(frozen=True)
class EpisodeResult:
    """One episode, counted for every method.

    Attributes:
        run: 0, 1, ... of the repetitions with other episodes.
        fold: of the data set, or None.
        index: of the episode in its run and fold.
        class_name: what was looked for.
        counts: method -> what `metrics.count_pixels` gave.
        seconds: method -> wall time of the episode, its images' encoding included.
        device_mib: method -> most memory held on a CUDA device; empty elsewhere.
        adapted: of the modules adapted to its supports "reach", "before" and "after" as in `Adapted`, and the
            "seconds" that took, once for all episodes of the support set; None without adaptation.
        presence: "model" and "adapted" -> presence score of the query, and of an image without the class.
        looks: method of our own -> how often it looked at the image.
        share: of the image, that the object covers.
    """

    run: int
    fold: int | None
    index: int
    class_name: str
    counts: dict[str, tuple[int, ...]]
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    device_mib: dict[str, float] = field(default_factory=dict, compare=False)
    adapted: dict[str, float | None] | None = field(default=None, compare=False)
    presence: dict[str, tuple[float, float]] = field(default_factory=dict, compare=False)
    looks: dict[str, int] = field(default_factory=dict, compare=False)
    share: float | None = field(default=None, compare=False)

    @property
    def place(self) -> tuple[int, int, int]:
        """Where it stands in the whole list."""
        return (self.run, -1 if self.fold is None else self.fold, self.index)

    @property
    def iou(self) -> dict[str, float]:
        """Method -> IoU of this episode alone; 1 when neither mask held a pixel."""
        return {name: c[0] / c[1] if c[1] else 1.0 for name, c in self.counts.items()}


def class_groups(names: list[str]) -> dict[str, list[str]]:
    """Classes by source, the part of the name before "/", and all of them together."""
    groups = {"all": names}
    for name in names:
        if "/" in name:
            groups.setdefault(name.split("/")[0], []).append(name)
    return groups


def summarise(results: Iterable[EpisodeResult]) -> dict[str, dict[str, Any]]:
    """Figures of each method, as plain values for JSON.

    Mean IoU and boundary IoU are means over classes of summed counts, FB-IoU is summed over the classes of
    a fold and averaged over folds; all are computed for each run and then averaged over runs.

    Args:
        results: of all runs and folds, in any order.

    Returns:
        method -> "mean_iou" and "boundary_iou" (group of classes -> figure), "fb_iou", "per_class",
        "per_class_boundary", "per_fold" (fold -> mean IoU), "mean_iou_runs" (one per run) and "intervals"
        (95 %, as `metrics.Intervals`, over the episodes of all runs; None where a class has one episode).
    """
    ordered = sorted(results, key=lambda result: result.place)
    methods = list(ordered[0].counts) if ordered else []
    return {method: _summarise_method(ordered, method) for method in methods}


def _summarise_method(results: Sequence[EpisodeResult], method: str) -> dict[str, Any]:
    by_run: dict[int, dict[int | None, IouCounts]] = defaultdict(lambda: defaultdict(IouCounts))
    by_class = defaultdict(list)
    for result in results:
        counts = np.array(result.counts[method], dtype=np.int64)
        by_run[result.run][result.fold].add_counts(result.class_name, counts)
        by_class[result.class_name].append(counts)
    wholes = []
    for folds in by_run.values():
        wholes.append(IouCounts())
        for counts_of_fold in folds.values():
            wholes[-1].merge(counts_of_fold)
    groups = class_groups(sorted(by_class))
    intervals = bootstrap_intervals(
        {name: np.stack(counts) for name, counts in by_class.items()},
        {result.class_name: result.fold for result in results if result.fold is not None},
    )
    folds_seen = sorted({result.fold for result in results if result.fold is not None})

    def by_name(figure: Callable[[IouCounts, str], float]) -> dict[str, float]:
        return {n: _mean(figure(each, n) for each in wholes if n in each.counts) for n in groups["all"]}

    return {
        "mean_iou": {
            group: _mean(whole.mean_iou(names) for whole in wholes) for group, names in groups.items()
        },
        # One episode drawn again is itself: an interval of no width would look like certainty.
        "intervals": asdict(intervals) if min(map(len, by_class.values())) > 1 else None,
        "mean_iou_runs": [whole.mean_iou() for whole in wholes],
        "boundary_iou": {
            group: _mean(whole.mean_boundary_iou(names) for whole in wholes)
            for group, names in groups.items()
        },
        "fb_iou": _mean(_mean(counts.fb_iou() for counts in folds.values()) for folds in by_run.values()),
        "per_fold": {
            str(fold): _mean(folds[fold].mean_iou() for folds in by_run.values() if fold in folds)
            for fold in folds_seen
        },
        "per_class": by_name(IouCounts.iou),
        "per_class_boundary": by_name(IouCounts.boundary_iou),
        "episodes_per_class": {name: len(by_class[name]) for name in groups["all"]},
    }


def summarise_costs(results: Sequence[EpisodeResult]) -> dict[str, dict[str, float | None]]:
    """Each method's median seconds per episode, and most MiB on a CUDA device (None elsewhere)."""
    methods = list(results[0].counts) if results else []
    costs: dict[str, dict[str, float | None]] = {}
    for method in methods:
        seconds = [result.seconds[method] for result in results if method in result.seconds]
        memory = [result.device_mib[method] for result in results if method in result.device_mib]
        costs[method] = {
            "seconds_per_episode": float(np.median(seconds)) if seconds else None,
            "device_mib": max(memory) if memory else None,
        }
    return costs


def summarise_shares(results: Sequence[EpisodeResult]) -> list[dict[str, Any]]:
    """Figures by the share of the image that the object covers.

    Returns:
        For each part of `SHARES` that has episodes: "from" and "below" as shares, "episodes", and "methods":
        method -> mean "iou" of the episodes, mean "looks" (None for others' methods), median "seconds".
    """
    rows = []
    for low, high in zip((0, *SHARES), (*SHARES, 1), strict=True):
        part = [each for each in results if each.share is not None and low <= each.share < high]
        methods = {
            method: {
                "iou": _mean(each.iou[method] for each in part),
                "looks": _mean(each.looks[method] for each in part) if method in part[0].looks else None,
                "seconds": float(np.median([each.seconds[method] for each in part])),
            }
            for method in (part[0].counts if part else ())
        }
        if part:
            rows.append({"from": low, "below": high, "episodes": len(part), "methods": methods})
    return rows


def summarise_adaptations(
    results: Sequence[EpisodeResult], methods: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """What adaptation did, over all and by class.

    Args:
        results: of all runs and folds.
        methods: of `summarise`.

    Returns:
        None without adaptation, else plain values for JSON: "share_moved" of the episodes whose modules
        moved, "mean_reach" over episodes, "seconds_per_set" (median), "share_lowered" of the classes whose
        IoU fell by more than `LOWERED`, "classes" (name -> "model", "adapted", "difference", "reach",
        "seconds") and "presence" ("model" and "adapted" -> "auc", mean score with and without the class
        "present", "absent").
    """
    by_class: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        if result.adapted is not None:
            by_class[result.class_name].append(result.adapted)
    if not by_class:
        return None
    plain, moved = (methods[name]["per_class"] for name in ("model", "adapted"))
    classes = {
        name: {
            "model": plain[name],
            "adapted": moved[name],
            "difference": moved[name] - plain[name],
            "reach": _mean(each["reach"] for each in by_class[name]),
            "seconds": float(np.median([each["seconds"] for each in by_class[name]])),
        }
        for name in sorted(by_class)
    }
    everything = [each for of_class in by_class.values() for each in of_class]
    return {
        "share_moved": _mean(each["reach"] > 0 for each in everything),
        "mean_reach": _mean(each["reach"] for each in everything),
        "seconds_per_set": float(np.median([each["seconds"] for each in everything])),
        "share_lowered": _mean(row["difference"] < -LOWERED for row in classes.values()),
        "classes": classes,
        "presence": _summarise_presence(results),
    }


def _summarise_presence(results: Sequence[EpisodeResult]) -> dict[str, dict[str, float]]:
    figures = {}
    for method in ("model", "adapted"):
        pairs = np.array([result.presence[method] for result in results if method in result.presence])
        if len(pairs):
            present, absent = pairs.T
            auc = roc_auc(present, absent)
            figures[method] = {"auc": auc, "present": float(present.mean()), "absent": float(absent.mean())}
    return figures


def telling_episodes(
    results: Sequence[EpisodeResult], method: str, count: int
) -> dict[str, list[EpisodeResult]]:
    """The best, median and worst episodes of a method, by its IoU; no episode twice."""
    ranked = sorted(results, key=lambda result: (result.iou[method], result.place))
    count = min(count, len(ranked) // 3 or 1)
    middle = (len(ranked) - count) // 2
    return {
        "best": ranked[::-1][:count],
        "median": ranked[middle : middle + count] if len(ranked) >= 3 else [],
        "worst": ranked[:count] if len(ranked) >= 2 else [],
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
