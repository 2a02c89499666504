"""One model under several settings, on the same episodes: which to use (`diffseg evaluate --sweep`).

A setting is a method of the evaluation beside "model", which is the model as it was asked for. Its name is
the options that give it, such as "--timesteps 20 --cross-map contrast".
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from diffseg_cli.config import SegmentConfig
from diffseg_cli.errors import UsageError
from diffseg_cli.evaluation.metrics import gain_interval
from diffseg_cli.evaluation.summary import EpisodeResult
from diffseg_cli.loading import backbone_kind
from diffseg_cli.method import CROSS_MAPS, SUPPORT_CROPS
from diffseg_cli.segmenter import Segmenter

AXES: dict[str, tuple[Any, ...]] = {
    "timesteps": ((20,), (50,), (100,), (200,), (20, 50, 100)),
    "support-crop": SUPPORT_CROPS,
    "cross-map": CROSS_MAPS,
}


def choose_axes(text: str | None, model: str) -> tuple[str, ...]:
    """Axes of a sweep from what a user said, such as "timesteps,cross-map"; none from nothing.

    Raises:
        UsageError: an unknown axis, or timesteps of a model that adds no noise.
    """
    if text is None:
        return ()
    axes = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    adds_noise = backbone_kind(model).network.adds_noise
    known = [axis for axis in AXES if adds_noise or axis != "timesteps"]
    for axis in axes:
        if axis in AXES and axis not in known:
            raise UsageError(f"{model} adds no noise, so it has no timesteps.", f"Use {', '.join(known)}.")
        if axis not in AXES:
            raise UsageError(f"There is no '{axis}' to sweep.", f"Use {', '.join(known)}.")
    return axes


def settings_of(segmenter: Segmenter, axes: Sequence[str]) -> dict[str, SegmentConfig]:
    """All combinations of the values on some of `AXES`, but the segmenter's own settings, by name."""
    given, settings, axis_values = segmenter.settings, {}, dict(AXES)
    if segmenter.backbone.support_margin is None:  # supports have one view: "both" shows what "object" does
        near = "object" if given.support_crop == "object" else "both"
        axis_values["support-crop"] = (near, "whole")
    for values in product(*(axis_values[axis] for axis in axes)):
        changed = {
            axis: value
            for axis, value in zip(axes, values, strict=True)
            if value != getattr(given, _field(axis))
        }
        if changed:
            name = " ".join(f"--{axis} {_word(value)}" for axis, value in changed.items())
            settings[name] = replace(given, **{_field(axis): value for axis, value in changed.items()})
    return settings


def summarise_sweep(
    results: Sequence[EpisodeResult], settings: Mapping[str, SegmentConfig], figures: Mapping[str, Any]
) -> dict[str, Any]:
    """What the settings gained over the model as it was asked for, as plain values for JSON.

    Args:
        results: of all runs and folds.
        settings: of `settings_of`.
        figures: of `summary.summarise`.

    Returns:
        "rows", best first: "method" ("model" or a setting's name), "mean_iou", "gain" over the model and its
        95 % "interval" over the same episodes drawn again (None for the model, or where a class has one
        episode); and "use", the name of the best setting if its whole interval is above 0, else "model".
    """
    counts: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for method in ("model", *settings):
            counts[method][result.class_name].append(result.counts[method])
    drawn = {
        method: {name: np.array(rows, np.int64) for name, rows in classes.items()}
        for method, classes in counts.items()
    }
    several = min(map(len, counts["model"].values())) > 1
    rows: list[dict[str, Any]] = []
    for method in drawn:
        mean_iou = figures[method]["mean_iou"]["all"]
        interval = gain_interval(drawn["model"], drawn[method]) if several and method != "model" else None
        gain = mean_iou - figures["model"]["mean_iou"]["all"]
        rows.append({"method": method, "mean_iou": mean_iou, "gain": gain, "interval": interval})
    rows.sort(key=lambda row: -row["mean_iou"])
    best = rows[0]
    return {"rows": rows, "use": best["method"] if (best["interval"] or (0,))[0] > 0 else "model"}


def _field(axis: str) -> str:
    return axis.replace("-", "_")


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
