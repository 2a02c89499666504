"""What is random in a training step: a pure function of (seed, step), the same for any number of processes.

Letters: b episodes per step, k supports.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from diffseg_cli.config import TrainConfig
from diffseg_cli.training.feature_cache import FeatureCache


@dataclass(frozen=True)
class StepRows:
    """Cache rows of one step: queries (b) and supports (b k)."""

    query: NDArray[np.int64]
    support: NDArray[np.int64]

    def part(self, share: slice) -> "StepRows":
        """Some of the episodes."""
        return StepRows(self.query[share], self.support[share])


def draw_step(cache: FeatureCache, config: TrainConfig, step: int) -> StepRows:
    """Episodes of one step: a class by the fourth root of its size, then images and views."""
    generator = np.random.Generator(np.random.PCG64([config.seed, step]))
    shots = int(generator.choice(config.shots, p=config.shots_shares))
    dataset = cache.dataset.with_enough(shots)
    if not dataset.classes:  # of small folders no class has so many
        shots, dataset = 1, cache.dataset.with_enough(1)
    names = dataset.classes
    synthetic = np.array([name.startswith(config.synthetic_source) for name in names])
    weights = np.array([len(dataset.by_class[name]) for name in names]) ** 0.25
    if synthetic.any() and not synthetic.all():
        weights[synthetic] *= config.synthetic_share / weights[synthetic].sum()
        weights[~synthetic] *= (1 - config.synthetic_share) / weights[~synthetic].sum()
    chosen = generator.choice(len(names), size=config.batch_size, p=weights / weights.sum())
    members = [generator.permutation(dataset.by_class[names[index]])[: shots + 1] for index in chosen]
    views = generator.integers(cache.views, size=(config.batch_size, shots + 1))
    # Most supports as a user's are seen, some as any image is: the object's size then tells nothing.
    near = generator.random((config.batch_size, shots)) < (1.0 if cache.backbone.masks_support else 0.7)
    query = [cache.row(picked[0], view[0]) for picked, view in zip(members, views, strict=True)]
    support = [
        [
            cache.support_row(sample) if close else cache.row(sample, view)
            for sample, view, close in zip(picked[1:], seen[1:], nearby, strict=True)
        ]
        for picked, seen, nearby in zip(members, views, near, strict=True)
    ]
    return StepRows(np.array(query), np.array(support))


def step_generator(config: TrainConfig, step: int) -> torch.Generator:
    """Of everything else that is random in a step."""
    return torch.Generator().manual_seed(config.seed * 1_000_003 + step)
