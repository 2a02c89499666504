"""Run episodes at the pictures' own size and sum the counts.

Every method sees the same episodes: the segmenter through its inner door, and the training-free prototype
line from the same latents. Pictures are encoded once, however many episodes they are in.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffseg_cli.episode import Episode, FewShotDataset, draw_episode
from diffseg_cli.errors import UsageError
from diffseg_cli.frames import from_frame, mask_to_frame, stack_frames
from diffseg_cli.image_io import read_image, read_mask
from diffseg_cli.metrics import IouCounts
from diffseg_cli.prediction import SupportFeatures
from diffseg_cli.prototype import THRESHOLD, prototype_scores
from diffseg_cli.segmenter import Segmenter


@dataclass(frozen=True)
class EncodedSample:
    """A labelled picture after the frozen parts, batch of one.

    Attributes:
        latents: (1 c H W) of the picture.
        edges: (1 1 E E), or None.
        support: the picture and its mask as a support, (1 1 ...).
        truth: bool (h w) at the picture's own size.
    """

    latents: Tensor
    edges: Tensor | None
    support: SupportFeatures
    truth: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True)
class EpisodeResult:
    """One episode and the IoU of each method on it."""

    index: int
    episode: Episode
    iou: dict[str, float]


def join_supports(parts: list[SupportFeatures]) -> SupportFeatures:
    """Supports encoded one by one, as one set of k."""
    stacked = [torch.cat([getattr(p, n) for p in parts], dim=1) for n in ("latents", "masks", "image_embeds")]
    return SupportFeatures(parts[0].backbone, parts[0].fingerprint, *stacked)


class Evaluation:
    """Episodes over a data set.

    Args:
        segmenter: the model under test.
        dataset: its classes take turns.
        shots: supports an episode.
        seed: of the list of episodes.
        methods: "model"; "attention", its own score map cut at the threshold; "prototype".
        thresholds: of each method, on its own scale.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        dataset: FewShotDataset,
        *,
        shots: int,
        seed: int,
        methods: tuple[str, ...] = ("model", "prototype"),
        thresholds: dict[str, float] | None = None,
    ) -> None:
        self.segmenter, self.shots, self.seed, self.methods = segmenter, shots, seed, methods
        self.dataset = dataset.with_enough(shots)
        self.thresholds = {
            "model": segmenter.settings.threshold,
            "attention": segmenter.settings.threshold,
            "prototype": THRESHOLD,
            **(thresholds or {}),
        }
        self.counts = {method: IouCounts() for method in methods}
        self._encoded: dict[int, EncodedSample] = {}

    def run(self, episodes: int) -> Iterator[EpisodeResult]:
        """The first `episodes` episodes; counts grow in `self.counts`."""
        for index in range(episodes):
            episode = draw_episode(self.dataset, index, shots=self.shots, seed=self.seed)
            query = self._encode(episode.query)
            support = join_supports([self._encode(i).support for i in episode.support])
            iou = {}
            for method, score in self._scores(query, support).items():
                size_hw = (query.truth.shape[0], query.truth.shape[1])
                predicted = from_frame(score[0, 0], size_hw) > self.thresholds[method]
                alone = IouCounts()
                alone.add(episode.class_name, predicted, query.truth)
                self.counts[method].merge(alone)
                iou[method] = alone.iou(episode.class_name)
            yield EpisodeResult(index, episode, iou)

    @torch.inference_mode()
    def _scores(self, query: EncodedSample, support: SupportFeatures) -> dict[str, Tensor]:
        scores = {}
        if "model" in self.methods or "attention" in self.methods:
            noise = self.segmenter.make_noise(query.latents, self.seed)
            output = self.segmenter.forward(query.latents, query.edges, support, noise)
            scores = {"model": output.picture, "attention": output.scores.score_map}
        if "prototype" in self.methods:
            scores["prototype"] = prototype_scores(query.latents, support.latents, support.masks)
        return {method: scores[method] for method in self.methods}

    @torch.inference_mode()
    def _encode(self, index: int) -> EncodedSample:
        if index not in self._encoded:
            sample = self.dataset.samples[index]
            image, truth = read_image(sample.image), read_mask(sample.mask)
            backbone = self.segmenter.backbone
            frames = stack_frames([image], backbone.image_size).to(backbone.device)
            latents = backbone.encode(frames)
            support = self.segmenter.encode_frames(
                frames, mask_to_frame(truth, backbone.image_size)[None].to(backbone.device), latents
            )
            self._encoded[index] = EncodedSample(latents, self.segmenter.find_edges(frames), support, truth)
        return self._encoded[index]


def class_groups(names: list[str]) -> dict[str, list[str]]:
    """Classes by source, the part of the name before "/", and all of them together."""
    groups = {"all": names}
    for name in names:
        if "/" in name:
            groups.setdefault(name.split("/")[0], []).append(name)
    return groups


def peer_methods(peer: str | None) -> tuple[str, ...]:
    """The methods of a run with this peer beside the model.

    Raises:
        UsageError: an unknown peer.
    """
    if peer not in (None, "prototype", "attention"):
        raise UsageError(f"Unknown peer '{peer}'.", "Use prototype or attention.")
    return ("model", peer) if peer else ("model",)


def evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    """What was measured and everything needed to repeat it, as plain values for JSON."""
    segmenter, names = evaluation.segmenter, evaluation.dataset.classes
    groups = class_groups(names)
    methods = {
        method: {
            "mean_iou": {group: counts.mean_iou(members) for group, members in groups.items()},
            "fb_iou": counts.fb_iou(),
            "per_class": {name: counts.iou(name) for name in names},
        }
        for method, counts in evaluation.counts.items()
    }
    return {
        "model": segmenter.model,
        "fingerprint": segmenter.backbone.fingerprint,
        "head": segmenter.head,
        "fusion": segmenter.settings.fusion,
        "shots": evaluation.shots,
        "seed": evaluation.seed,
        "episodes": sum(next(iter(evaluation.counts.values())).episodes.values()),
        "classes": len(names),
        "thresholds": {method: evaluation.thresholds[method] for method in evaluation.methods},
        "methods": methods,
    }
