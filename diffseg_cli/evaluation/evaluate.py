"""Run episodes at the images' own size and count pixels.

Every method sees the same episodes: the segmenter through its inner door, the training-free prototype line
from the same latents, and peers with the images themselves. The last encodings are remembered, so episodes of
one class are best run one after another.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.adaptation import adapt_steps
from diffseg_cli.compute import read_time
from diffseg_cli.config import SegmentConfig
from diffseg_cli.datasets import read_truth
from diffseg_cli.datasets.episode import Episode, FewShotDataset, draw_episode
from diffseg_cli.datasets.truth import Truth
from diffseg_cli.evaluation.adapted_prototype import adapt_metric
from diffseg_cli.evaluation.metrics import count_pixels
from diffseg_cli.evaluation.summary import EpisodeResult
from diffseg_cli.frames import from_frame
from diffseg_cli.models.prototype import THRESHOLD, prototype_scores
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.prediction import SegmenterOutput
from diffseg_cli.reading.image_io import check_pair, read_image
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.timing import Stages

PROTOTYPE_ADAPTED = "prototype-adapted"  # the prototype line, its metric fitted to the supports
OWN_METHODS = ("model", "attention", "prototype", PROTOTYPE_ADAPTED)
ADAPTED = "adapted"  # the model with its modules adapted to the supports
REMEMBERED = 128  # images, encoded queries and encoded supports each; of the compact model 2.5 MB each


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
class LabelledImage:
    """A sample as it was read.

    Attributes:
        image: uint8 (h w 3), its own size.
        truth: at that size.
    """

    image: NDArray[np.uint8]
    truth: Truth


@dataclass(frozen=True)
class EncodedQuery:
    """A query after the frozen parts.

    Attributes:
        latents: (1 c H W).
        edges: (1 1 E E), or None.
        seconds: what each stage of `Segmenter.encode_queries` took.
    """

    latents: Tensor
    edges: Tensor | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class EncodedSupport:
    """A support after the frozen parts.

    Attributes:
        features: (1 1 ...).
        seconds: what each stage of `Segmenter.encode_pairs` took.
    """

    features: SupportFeatures
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


@dataclass(frozen=True)
class _AdaptedTo:
    """The segmenter adapted to some supports, with figures as `EpisodeResult.adapted`."""

    segmenter: Segmenter
    figures: dict[str, float]


@dataclass(frozen=True)
class _Answer:
    """What a method says of an image: score (1 1 S S) or (1 1 H W), and presence in [0, 1] if it has one."""

    score: Tensor
    presence: float | None


class Evaluation:
    """Episodes over a data set.

    Args:
        segmenter: the model under test.
        dataset: its classes take turns.
        shots: supports an episode.
        seed: of the list of episodes.
        methods: "model"; "adapted", the same with modules adapted to the supports; "attention", its own
            score map cut at the threshold; "prototype"; "prototype-adapted"; a peer's name; or one of
            `settings`.
        peers: other methods by name.
        settings: the model under other settings, by name.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        dataset: FewShotDataset,
        *,
        shots: int,
        seed: int,
        methods: tuple[str, ...] = ("model", "prototype"),
        peers: Mapping[str, Peer] | None = None,
        settings: Mapping[str, SegmentConfig] | None = None,
    ) -> None:
        self.segmenter, self.shots, self.seed, self.methods = segmenter, shots, seed, methods
        self.dataset = dataset.with_enough(shots)
        self.peers = dict(peers or {})
        self.thresholds = own_thresholds(segmenter)
        self.variants = {name: replace(segmenter, settings=each) for name, each in (settings or {}).items()}
        self.results: list[EpisodeResult] = []
        self._labelled = lru_cache(REMEMBERED)(self._read)
        self._query = lru_cache(REMEMBERED)(self._encode_query)
        self._support = lru_cache(REMEMBERED)(self._encode_support)
        self._adapted = lru_cache(1)(self._adapt)
        self._metric = lru_cache(1)(lambda supports: adapt_metric(segmenter, self._pairs(supports)))

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
        query, seed = self._labelled(episode.query), self.seed + run
        images = self._images(episode)
        self._encode(episode)
        device = self.segmenter.device
        adapted = self._adapted(episode.support).figures if ADAPTED in self.methods else None
        if PROTOTYPE_ADAPTED in self.methods:
            self._metric(episode.support)
        absent_query = None if adapted is None else self._draw_absent(episode, index, seed)
        counts, seconds, memory = {}, {}, {}
        presence: dict[str, tuple[float, float]] = {}
        for method in self.methods:
            read, encoding, on_cuda = read_time(device), 0.0, device.type == "cuda"
            if on_cuda:
                torch.cuda.reset_peak_memory_stats(device)
            if method in self.peers:
                predicted = self.peers[method].predict(*images)
            else:
                answer = self._answer(method, episode.query, episode.support, seed)
                predicted = self._cut(method, answer.score, query.image)
                encoding = self._encoding_seconds(method, episode)
            seconds[method] = read() + encoding
            if on_cuda:
                memory[method] = torch.cuda.max_memory_allocated(device) / 2**20
            counts[method] = tuple(count_pixels(predicted, query.truth.mask, query.truth.ignore).tolist())
            if absent_query is not None and method in ("model", ADAPTED):
                without = self._answer(method, absent_query, episode.support, seed)
                if answer.presence is not None and without.presence is not None:
                    presence[method] = (answer.presence, without.presence)
        return EpisodeResult(run, fold, index, episode.class_name, counts, seconds, memory, adapted, presence)

    def illustrate(self, episode: Episode, *, run: int = 0) -> Illustration:
        """One episode again, to look at."""
        query = self._labelled(episode.query)
        output = self._forward(self.segmenter, episode.query, episode.support, self.seed + run)
        image, supports = self._images(episode)
        score_map = output.scores.score_map.float()[0, 0]
        return Illustration(
            supports,
            image,
            query.truth,
            from_frame(score_map, (image.shape[0], image.shape[1])),
            self._cut("model", output.probability, image),
        )

    def _cut(self, method: str, score: Tensor, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Score (1 1 S S) -> mask (h w); the model's with borders and parts as `segment` would give them."""
        as_segment = method in ("model", ADAPTED, *self.variants)
        refine, min_area = (None, None) if as_segment else (False, "0")
        threshold = self.thresholds.get(method)
        return self.segmenter.finish(
            score[0, 0], image, threshold=threshold, refine=refine, min_area=min_area
        )[0]

    def _answer(self, method: str, query: int, supports: tuple[int, ...], seed: int) -> _Answer:
        """What one of our own methods says of an image."""
        segmenter = self.variants.get(method, self.segmenter)
        support = self._join(supports, segmenter)
        if method == "prototype":
            weights = self.segmenter.backbone.channel_weights
            latents = self._query(query).latents
            return _Answer(prototype_scores(latents, support.latents, support.masks, weights), None)
        if method == PROTOTYPE_ADAPTED:
            metric, latents = self._metric(supports), self._query(query).latents
            scores = prototype_scores(latents, support.latents, support.masks, metric.channel_weights)
            return _Answer(scores - metric.threshold, None)
        if method == ADAPTED:
            segmenter = self._adapted(supports).segmenter
        output = self._forward(segmenter, query, supports, seed)
        if method == "attention":
            return _Answer(output.scores.score_map, None)
        presence = segmenter.score_presence(output, self._query(query).latents, support)
        return _Answer(output.probability, None if presence is None else presence[0])

    def _draw_absent(self, episode: Episode, index: int, seed: int) -> int | None:
        """An image without the class: of its source, or where that has none, of any other."""
        source, slash, _ = episode.class_name.rpartition("/")
        free = self.dataset.without(episode.class_name, source=source + slash) or self.dataset.without(
            episode.class_name
        )
        generator = np.random.Generator(np.random.PCG64([seed, index, 1]))
        return free[int(generator.integers(len(free)))] if free else None

    def _adapt(self, supports: tuple[int, ...]) -> _AdaptedTo:
        """Adapt the modules to supports as the other verbs do; episodes that share them share the result."""
        read = read_time(self.segmenter.device)
        *_, last = adapt_steps(self.segmenter, self._pairs(supports))
        assert last.adapted is not None
        figures = {name: getattr(last.adapted, name) for name in ("reach", "before", "after")}
        figures["seconds"] = read()
        return _AdaptedTo(self.segmenter.with_trained(last.adapted.trained), figures)

    @torch.inference_mode()
    def _forward(
        self, segmenter: Segmenter, query: int, supports: tuple[int, ...], seed: int
    ) -> SegmenterOutput:
        encoded = self._query(query)
        return segmenter.predict(encoded.latents, encoded.edges, self._join(supports, segmenter), seed)

    # --- read and encoded, each once as long as it is remembered ---

    def _encode(self, episode: Episode) -> None:
        """Encode what an episode needs, so that no method's time depends on what was encoded before."""
        for segmenter in (self.segmenter, *self.variants.values()):
            self._join(episode.support, segmenter)
        self._query(episode.query)

    def _encoding_seconds(self, method: str, episode: Episode) -> float:
        """What an episode's images took to encode.

        Encodings are remembered, so their time is added to each episode, not measured in it.
        """
        crop = self.variants.get(method, self.segmenter).settings.support_crop
        query, supports = self._query(episode.query), [self._support(i, crop) for i in episode.support]
        seconds = query.seconds["encode"] + sum(each.seconds["encode"] for each in supports)
        if method in ("prototype", PROTOTYPE_ADAPTED):
            return seconds
        return seconds + query.seconds["edges"] + sum(each.seconds["embed"] for each in supports)

    def _join(self, supports: tuple[int, ...], segmenter: Segmenter) -> SupportFeatures:
        crop = segmenter.settings.support_crop
        return SupportFeatures.join([self._support(i, crop).features for i in supports])

    def _pairs(self, supports: tuple[int, ...]) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
        labelled = [self._labelled(i) for i in supports]
        return [(each.image, each.truth.mask) for each in labelled]

    def _images(
        self, episode: Episode
    ) -> tuple[NDArray[np.uint8], list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]]:
        return self._labelled(episode.query).image, self._pairs(episode.support)

    def _read(self, index: int) -> LabelledImage:
        sample = self.dataset.samples[index]
        image, truth = read_image(sample.image), read_truth(self.dataset.name, sample)
        check_pair(image, truth.mask, sample.image, sample.mask)
        return LabelledImage(image, truth)

    @torch.inference_mode()
    def _encode_query(self, index: int) -> EncodedQuery:
        stages = Stages(read_time(self.segmenter.device))
        query = replace(self.segmenter, stage=stages).encode_queries([self._labelled(index).image])
        return EncodedQuery(query.latents, query.edges, stages.spent)

    @torch.inference_mode()
    def _encode_support(self, index: int, crop: str) -> EncodedSupport:
        stages = Stages(read_time(self.segmenter.device))
        settings = replace(self.segmenter.settings, support_crop=crop)
        cropping = replace(self.segmenter, stage=stages, settings=settings)
        features = cropping.encode_pairs(self._pairs((index,)))
        return EncodedSupport(features, stages.spent)


def own_thresholds(segmenter: Segmenter) -> dict[str, float]:
    """Where each of our own methods is cut, on its own scale."""
    cut = segmenter.settings.threshold
    return {"model": cut, ADAPTED: cut, "attention": cut, "prototype": THRESHOLD, PROTOTYPE_ADAPTED: 0.0}
