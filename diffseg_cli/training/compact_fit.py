"""Fit what the compact backbone needs beside its ImageNet encoder: statistics, basis and decoder.

Two short stages, each a generator of progress; `diffseg train backbone` runs them in order.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg_cli.compute import autocast_for
from diffseg_cli.datasets.episode import FewShotDataset
from diffseg_cli.frames import to_frame
from diffseg_cli.loading import save_fitted
from diffseg_cli.models.compact import CompactBackbone
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.training.feature_cache import FeatureCache

BASIS_IMAGES = 600


@dataclass(frozen=True)
class FitStep:
    """Progress of a stage."""

    stage: str
    step: int
    steps: int
    loss: float


def spread_samples(dataset: FewShotDataset, count: int, seed: int) -> list[int]:
    """`count` sample indices, classes taking turns, so that large classes do not dominate."""
    generator = np.random.default_rng(seed)
    queues = [list(generator.permutation(members)) for members in dataset.by_class.values()]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        chosen += [int(queue.pop()) for queue in queues if queue]
    return chosen[:count]


@torch.inference_mode()
def fit_basis(backbone: CompactBackbone, dataset: FewShotDataset, *, seed: int = 0) -> Iterator[FitStep]:
    """Channel statistics and principal directions of the normalised features of each tapped block."""
    indices = spread_samples(dataset, BASIS_IMAGES, seed)
    collected: list[list[Tensor]] = [[] for _ in backbone.latent_groups]
    for step, start in enumerate(range(0, len(indices), 8)):
        images = [read_image(dataset.samples[index].image) for index in indices[start : start + 8]]
        frames = torch.stack([to_frame(image, backbone.image_size) for image in images]).to(backbone.device)
        for features, rows in zip(backbone.features(frames), collected, strict=True):
            rows.append(features.flatten(2).transpose(1, 2).flatten(0, 1).cpu())  # (b*n width)
        yield FitStep("basis", step + 1, -(-len(indices) // 8), 0.0)
    for index, rows in enumerate(collected):
        features = torch.cat(rows)
        mean, std = features.mean(0), features.std(0)
        unit = F.normalize((features - mean) / std, dim=1)
        directions = torch.linalg.eigh(unit.T @ unit / len(unit))[1].flip(1)  # descending
        getattr(backbone, f"mean_{index}").copy_(mean)
        getattr(backbone, f"std_{index}").copy_(std)
        getattr(backbone, f"basis_{index}").copy_(directions[:, : backbone.latent_groups[index]])


def train_decoder(
    backbone: CompactBackbone, cache: FeatureCache, *, steps: int, seed: int = 0
) -> Iterator[FitStep]:
    """Decoder of latents to images: half photographs, half mask images, mean absolute error."""
    decoder = backbone.decoder.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rows_of = _class_rows(cache)
    for step in range(steps):
        generator = np.random.Generator(np.random.PCG64([seed, step]))
        rows = [int(generator.choice(rows_of[generator.integers(len(rows_of))])) for _ in range(8)]
        batch = cache.read(rows)
        images = torch.stack([cache.load_view(row)[0] for row in rows[:4]]).to(backbone.device)
        masks = torch.stack([cache.load_view(row)[1] for row in rows[4:]]).to(backbone.device)
        wanted = torch.cat([images, masks.expand(-1, 3, -1, -1)])
        torch.manual_seed(seed * 1_000_003 + step)
        # A mask's latents reach the decoder through PAM, which is never exact: train on inexact ones.
        noisy = batch.targets[4:] + 0.05 * torch.randn_like(batch.targets[4:]) * generator.random()
        with autocast_for(backbone.device, cache.precision):
            decoded = decoder(torch.cat([batch.latents[:4], noisy]))
        error = F.l1_loss(decoded.float(), wanted)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
        yield FitStep("decoder", step + 1, steps, error.item())
    decoder.requires_grad_(False).eval()


def _class_rows(cache: FeatureCache) -> list[Sequence[int]]:
    return [
        [cache.row(index, view) for index in members for view in range(cache.views)]
        for members in cache.dataset.by_class.values()
    ]


def fit_backbone(
    backbone: CompactBackbone, dataset: FewShotDataset, folder: Path, *, decoder_steps: int, seed: int
) -> Iterator[FitStep]:
    """All stages in order, `folder/decoder.safetensors` written at the end.

    Args:
        backbone: with its ImageNet encoder loaded; fitted in place.
        dataset: training classes.
        folder: where the feature cache and the result go.
        decoder_steps: of 8 images.
        seed: of every draw.
    """
    yield from fit_basis(backbone, dataset, seed=seed)
    cache = FeatureCache(folder / "cache", dataset, backbone, None, views=2, seed=seed)
    for done, rows in cache.build():
        yield FitStep("cache", done, rows, 0.0)
    yield from train_decoder(backbone, cache, steps=decoder_steps, seed=seed)
    record = {"pictures": len(dataset.samples), "classes": len(dataset.classes), "seed": seed}
    save_fitted(
        backbone, folder / "decoder.safetensors", json.dumps({**record, "decoder_steps": decoder_steps})
    )
