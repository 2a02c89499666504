"""Run episodes at the images' own size and count pixels.

Every method sees the same episodes: the segmenter through its inner door, the training-free prototype line
from the same latents, and peers with the images themselves. The last few hundred encodings are remembered.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.adaptation import adapt_steps
from diffseg_cli.compute import read_time
from diffseg_cli.datasets import read_truth
from diffseg_cli.datasets.episode import Episode, FewShotDataset, draw_episode
from diffseg_cli.datasets.truth import Truth
from diffseg_cli.evaluation.metrics import count_pixels
from diffseg_cli.evaluation.summary import EpisodeResult
from diffseg_cli.frames import from_frame
from diffseg_cli.models.prototype import THRESHOLD, prototype_scores
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.reading.image_io import check_pair, read_image
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.timing import Stages

OWN_METHODS = ("model", "attention", "prototype")
ADAPTED = "adapted"  # the model with its modules adapted to the supports
REMEMBERED = 256  # encoded images; of the compact model 2.5 MB each


class Peer(Protocol):
    """Another few-shot method, from images to a mask."""

    def predict(
        self, query: NDArray[np.uint8], supports: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]]
    ) -> NDArray[np.bool_]:
        """Query (h w 3), supports (h w 3) with masks (h w), of any sizes -> mask (h w) of the query."""
        ...

    @property
    def weights_mib(self) -> float:
        """Size of its weights in memory."""
        ...


@dataclass(frozen=True)
class EncodedSample:
    """A labelled image after the frozen parts, batch of one.

    Attributes:
        image: uint8 (h w 3), its own size.
        latents: (1 c H W) of the image.
        edges: (1 1 E E), or None.
        support: the image and its mask as a support, (1 1 ...).
        truth: at the image's own size.
        seconds: what each stage of `Segmenter.encode_queries` took, and "support".
    """

    image: NDArray[np.uint8]
    latents: Tensor
    edges: Tensor | None
    support: SupportFeatures
    truth: Truth
    seconds: dict[str, float]


@dataclass(frozen=True)
class Illustration:
    """One episode to look at, every image at its own size.

    Attributes:
        supports: uint8 (h w 3) and bool (h w) of each.
        query: uint8 (h w 3).
        truth: of the query.
        score_map: float32 (h w) `M_a` in [0, 1].
        predicted: bool (h w), the model's.
    """

    supports: list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]
    query: NDArray[np.uint8]
    truth: Truth
    score_map: NDArray[np.float32]
    predicted: NDArray[np.bool_]


class Evaluation:
    """Episodes over a data set.

    Args:
        segmenter: the model under test.
        dataset: its classes take turns.
        shots: supports an episode.
        seed: of the list of episodes.
        methods: "model"; "adapted", the same with modules adapted to the supports; "attention", its own
            score map cut at the threshold; "prototype"; or a peer's name.
        thresholds: of each method of our own, on its own scale.
        peers: other methods by name.
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
        peers: Mapping[str, Peer] | None = None,
    ) -> None:
        self.segmenter, self.shots, self.seed, self.methods = segmenter, shots, seed, methods
        self.dataset = dataset.with_enough(shots)
        self.peers = dict(peers or {})
        self.thresholds = {**own_thresholds(segmenter), **(thresholds or {})}
        self.results: list[EpisodeResult] = []
        self._encoded: OrderedDict[int, EncodedSample] = OrderedDict()
        self._adapted: tuple[tuple[int, ...], Segmenter, dict[str, float]] | None = None  # of these supports

    def run(self, episodes: int) -> Iterator[EpisodeResult]:
        """The first `episodes` episodes; results gather in `self.results`."""
        for index in range(episodes):
            episode = draw_episode(self.dataset, index, shots=self.shots, seed=self.seed)
            self.results.append(self.measure(index, episode))
            yield self.results[-1]

    def measure(
        self, index: int, episode: Episode, *, run: int = 0, fold: int | None = None
    ) -> EpisodeResult:
        """Every method on one episode.

        Args:
            index: of the episode, for the record.
            episode: of this data set.
            run: repetition; moves the seed of a diffusion backbone's noise.
            fold: for the record.

        Raises:
            InputError: an image or mask cannot be used.
        """
        query = self._encode(episode.query)
        truth = query.truth
        for support in episode.support:
            self._encode(support)
        images = self._images(episode) if self.peers else None
        device = self.segmenter.device
        adapted = self._adapt(episode) if ADAPTED in self.methods else None
        counts, seconds, memory = {}, {}, {}
        for method in self.methods:
            read, encoding, on_cuda = read_time(device), 0.0, device.type == "cuda"
            if on_cuda:
                torch.cuda.reset_peak_memory_stats(device)
            if method in self.peers and images:
                predicted = self.peers[method].predict(*images)
            else:
                score, encoding = self._score(method, query, episode, self.seed + run)
                predicted = self._cut(method, score, query.image)
            seconds[method] = read() + encoding
            if on_cuda:
                memory[method] = torch.cuda.max_memory_allocated(device) / 2**20
            counts[method] = tuple(count_pixels(predicted, truth.mask, truth.ignore).tolist())
        return EpisodeResult(run, fold, index, episode.class_name, counts, seconds, memory, adapted)

    def illustrate(self, episode: Episode, *, run: int = 0) -> Illustration:
        """One episode again, to look at."""
        query = self._encode(episode.query)
        output = self._forward(self.segmenter, query, episode, self.seed + run)
        image, supports = self._images(episode)
        return Illustration(
            supports,
            image,
            query.truth,
            from_frame(output[1][0, 0], (image.shape[0], image.shape[1])),
            self._cut("model", output[0], image),
        )

    def _cut(self, method: str, score: Tensor, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Score (1 1 S S) -> mask (h w); the model's with borders and parts as `segment` would give them."""
        refine, min_area = (None, None) if method in ("model", ADAPTED) else (False, "0")
        threshold = self.thresholds[method]
        return self.segmenter.finish(
            score[0, 0], image, threshold=threshold, refine=refine, min_area=min_area
        )[0]

    def _score(self, method: str, query: EncodedSample, episode: Episode, seed: int) -> tuple[Tensor, float]:
        """Score (1 1 S S) of one of our methods, and the seconds its images took to encode.

        Encodings are remembered, so their time is added to each episode, not measured in it.
        """
        parts = [self._encode(i) for i in episode.support]
        encoding = query.seconds["encode"] + sum(part.seconds["encode"] for part in parts)
        if method == "prototype":
            support = SupportFeatures.join([part.support for part in parts])
            weights = self.segmenter.backbone.channel_weights
            return prototype_scores(query.latents, support.latents, support.masks, weights), encoding
        encoding += query.seconds["edges"] + sum(part.seconds["support"] for part in parts)
        segmenter = self._adapted[1] if method == ADAPTED and self._adapted else self.segmenter
        probability, score_map = self._forward(segmenter, query, episode, seed)
        return (score_map if method == "attention" else probability), encoding

    def _adapt(self, episode: Episode) -> dict[str, float]:
        """Adapt the modules to the supports as the other verbs do, once for episodes that share them.

        Returns:
            As `EpisodeResult.adapted`.
        """
        if self._adapted is None or self._adapted[0] != episode.support:
            read = read_time(self.segmenter.device)
            *_, last = adapt_steps(self.segmenter, self._images(episode)[1])
            assert last.adapted is not None
            figures = {name: getattr(last.adapted, name) for name in ("reach", "before", "after")}
            figures["seconds"] = read()
            segmenter = self.segmenter.with_trained(last.adapted.trained)
            self._adapted = episode.support, segmenter, figures
        return self._adapted[2]

    @torch.inference_mode()
    def _forward(
        self, segmenter: Segmenter, query: EncodedSample, episode: Episode, seed: int
    ) -> tuple[Tensor, Tensor]:
        support = SupportFeatures.join([self._encode(i).support for i in episode.support])
        output = segmenter.predict(query.latents, query.edges, support, seed)
        return output.probability, output.scores.score_map

    def _images(
        self, episode: Episode
    ) -> tuple[NDArray[np.uint8], list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]]:
        parts = [self._encode(i) for i in episode.support]
        return self._encode(episode.query).image, [(part.image, part.truth.mask) for part in parts]

    @torch.inference_mode()
    def _encode(self, index: int) -> EncodedSample:
        if index not in self._encoded:
            sample = self.dataset.samples[index]
            image, truth = read_image(sample.image), read_truth(self.dataset.name, sample)
            check_pair(image, truth.mask, sample.image, sample.mask)
            stages = Stages(read_time(self.segmenter.device))
            query = replace(self.segmenter, stage=stages).encode_queries([image])
            with stages("support"):
                support = self.segmenter.encode_pairs([(image, truth.mask)])
            self._encoded[index] = EncodedSample(
                image, query.latents, query.edges, support, truth, stages.spent
            )
        self._encoded.move_to_end(index)
        if len(self._encoded) > REMEMBERED:
            self._encoded.popitem(last=False)
        return self._encoded[index]


def own_thresholds(segmenter: Segmenter) -> dict[str, float]:
    """Where each of our own methods is cut, on its own scale."""
    cut = segmenter.settings.threshold
    return {"model": cut, ADAPTED: cut, "attention": cut, "prototype": THRESHOLD}
