"""Quick figures on cached episodes while training; those to publish come from `evaluation`."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from diffseg_cli.compute import autocast_for
from diffseg_cli.datasets.episode import draw_episode
from diffseg_cli.evaluation.metrics import IouCounts, count_pixels
from diffseg_cli.evaluation.summary import class_groups
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.training.feature_cache import FeatureCache

EPISODES = 10  # a class
SEED = 1234
GAMMA_EPISODES = 40  # a class
LEVEL = 0.002  # mean IoU: the top is flat, and less apart is noise
CUTS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)


@torch.inference_mode()
def _answers(
    segmenter: Segmenter, cache: FeatureCache, *, shots: int, episodes: int
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.bool_]]]:
    """Class, probability and truth, each (S/2 S/2), of `episodes` episodes a class, always the same."""
    dataset = cache.dataset.with_enough(shots)
    count = episodes * len(dataset.classes)
    drawn = [draw_episode(dataset, index, shots=shots, seed=SEED) for index in range(count)]
    for start in range(0, count, 8):
        chunk = drawn[start : start + 8]
        queries = [cache.row(episode.query) for episode in chunk]
        query = cache.read(queries)
        rows = np.array([[cache.support_row(i) for i in episode.support] for episode in chunk])
        support = cache.read_supports(rows)
        with autocast_for(query.latents.device, cache.precision):
            output = segmenter.predict(query.latents, query.edges, support, SEED)
        probability = F.interpolate(output.probability, size=query.masks.shape[-2:], mode="area")
        predicted, truth = probability.cpu().numpy(), (query.masks > 0.5).cpu().numpy()
        for episode, mine, theirs in zip(chunk, predicted, truth, strict=True):
            yield episode.class_name, mine[0], theirs[0]


def validation_episodes(
    segmenter: Segmenter, cache: FeatureCache, *, shots: int, episodes: int
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Class and `metrics.count_pixels` of `episodes` episodes a class at half size, always the same."""
    for name, probability, truth in _answers(segmenter, cache, shots=shots, episodes=episodes):
        yield name, count_pixels(probability > 0.5, truth)


def validate(
    segmenter: Segmenter, cache: FeatureCache, *, shots: int = 1, episodes: int = EPISODES
) -> dict[str, float]:
    """Mean IoU.

    Returns:
        Source (the part of the class name before "/") -> mean IoU over its classes, and "all".
    """
    counts = IouCounts()
    for name, pixels in validation_episodes(segmenter, cache, shots=shots, episodes=episodes):
        counts.add_counts(name, pixels)
    groups = class_groups(list(counts.counts))
    return {group: counts.mean_iou(names) for group, names in groups.items()}


def fit_gamma(segmenter: Segmenter, cache: FeatureCache, *, episodes: int = GAMMA_EPISODES) -> float:
    """The `mask_gamma` that brings the cut of highest mean IoU to 0.5, of level ones the highest.

    Args:
        segmenter: with a gamma of 1.
        cache: of classes it was not trained on.
        episodes: a class; with ten the best cut still jumps about.
    """
    counts = {cut: IouCounts() for cut in CUTS}
    for name, probability, truth in _answers(segmenter, cache, shots=1, episodes=episodes):
        for cut, sums in counts.items():
            sums.add_counts(name, count_pixels(probability > cut, truth))
    figures = {cut: sums.mean_iou(list(sums.counts)) for cut, sums in counts.items()}
    best = max(cut for cut, figure in figures.items() if figure > max(figures.values()) - LEVEL)
    return math.log(0.5) / math.log(best)
