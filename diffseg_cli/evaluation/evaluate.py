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
from diffseg_cli.datasets.pasting import draw_scene
from diffseg_cli.datasets.truth import Truth
from diffseg_cli.evaluation.adapted_prototype import adapt_metric
from diffseg_cli.evaluation.metrics import count_pixels
from diffseg_cli.evaluation.summary import EpisodeResult
from diffseg_cli.frames import from_frame
from diffseg_cli.models.prototype import THRESHOLD, prototype_scores
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.prediction import QueryFeatures, SegmenterOutput
from diffseg_cli.reading.image_io import check_pair, read_image
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.timing import Stages
from diffseg_cli.zoom import WindowLook, deciding, join, slices, whole

PROTOTYPE_ADAPTED = "prototype-adapted"  # the prototype line, its metric fitted to the supports
OWN_METHODS = ("model", "attention", "prototype", PROTOTYPE_ADAPTED, "slicing")
ADAPTED = "adapted"  # the model with its modules adapted to the supports
ZOOM = "zoom"  # the model with closer looks
MASKS = ("model", ADAPTED, ZOOM, "slicing")  # methods whose borders are refined, as `segment` does
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
class _Answer:
    """What a method says of an image.

    Attributes:
        score: (1 1 S S), (1 1 H W) or (1 1 h w).
        presence: in [0, 1], if it has one.
        looks: that were put together; empty for one look.
    """

    score: Tensor
    presence: float | None = None
    looks: Sequence[WindowLook] = ()


class Evaluation:
    """Episodes over a data set.

    Args:
        segmenter: the model under test.
        dataset: its classes take turns.
        shots: supports an episode.
        seed: of the list of episodes.
        methods: "model"; "adapted", the same with modules adapted to the supports; "zoom", the same with
            closer looks; "slicing", the same on uniform windows; "attention", its own score map cut at the
            threshold; "prototype"; "prototype-adapted"; a peer's name; or one of `settings`.
        peers: other methods by name.
        settings: the model under other settings, by name.
        zoom: of the method "zoom", as for `zoom.most_looks`.
        paste_into: megapixels of a scene into which the object of each query is pasted, or None.
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
        zoom: str = "auto",
        paste_into: float | None = None,
    ) -> None:
        self.segmenter, self.shots, self.seed, self.methods = segmenter, shots, seed, methods
        self.dataset = dataset.with_enough(shots)
        self.peers, self.zoom, self.paste_into = dict(peers or {}), zoom, paste_into
        self.thresholds = own_thresholds(segmenter)
        self.variants = {name: replace(segmenter, settings=each) for name, each in (settings or {}).items()}
        self.results: list[EpisodeResult] = []
        self._labelled = lru_cache(REMEMBERED)(self._read)
        self._query = lru_cache(REMEMBERED)(lambda index: self._encode_image(self._labelled(index).image))
        self._support = lru_cache(REMEMBERED)(self._encode_support)
        self._adapted = lru_cache(1)(self._adapt)
        self._metric = lru_cache(1)(lambda supports: adapt_metric(segmenter, self._pairs(supports)))
        self._scene = lru_cache(1)(self._make_scene)

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
        seed = self.seed + run
        query, encoded = self._subject(episode, index, seed)
        device = self.segmenter.device
        adapted = self._adapted(episode.support)[1] if ADAPTED in self.methods else None
        if PROTOTYPE_ADAPTED in self.methods:
            self._metric(episode.support)
        absent_query = None if adapted is None else self._draw_absent(episode, index, seed)
        counts, seconds, memory, looks = {}, {}, {}, {}
        presence: dict[str, tuple[float, float]] = {}
        for method in self.methods:
            read, encoding, on_cuda = read_time(device), 0.0, device.type == "cuda"
            if on_cuda:
                torch.cuda.reset_peak_memory_stats(device)
            if method in self.peers:
                predicted = self.peers[method].predict(query.image, self._pairs(episode.support))
            else:
                answer = self._answer(method, query.image, encoded, episode.support, seed)
                predicted = self._cut(method, answer, query.image)
                encoding = self._encoding_seconds(method, encoded, episode.support)
                looks[method] = max(1, len(answer.looks))
            seconds[method] = read() + encoding
            if on_cuda:
                memory[method] = torch.cuda.max_memory_allocated(device) / 2**20
            counts[method] = tuple(count_pixels(predicted, query.truth.mask, query.truth.ignore).tolist())
            if absent_query is not None and method in ("model", ADAPTED):
                absent = self._labelled(absent_query).image, self._query(absent_query)
                without = self._answer(method, *absent, episode.support, seed)
                if answer.presence is not None and without.presence is not None:
                    presence[method] = (answer.presence, without.presence)
        share = float(query.truth.mask.mean())
        return EpisodeResult(
            run, fold, index, episode.class_name, counts, seconds, memory, adapted, presence, looks, share
        )

    def illustrate(self, index: int, episode: Episode, *, run: int = 0) -> Illustration:
        """One episode again, to look at; arguments as in `measure`."""
        query, encoded = self._subject(episode, index, self.seed + run)
        output = self._forward(self.segmenter, encoded, episode.support, self.seed + run)
        image = query.image
        score_map = output.scores.score_map.float()[0, 0]
        return Illustration(
            self._pairs(episode.support),
            image,
            query.truth,
            from_frame(score_map, (image.shape[0], image.shape[1])),
            self._cut("model", _Answer(output.probability), image),
        )

    def _cut(self, method: str, answer: _Answer, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """An answer -> mask (h w); the model's with borders and parts as `segment` would give them."""
        as_segment = method in (*MASKS, *self.variants)
        refine, min_area = (None, None) if as_segment else (False, "0")
        return self.segmenter.finish(
            answer.score[0, 0],
            image,
            threshold=self.thresholds.get(method),
            refine=refine,
            min_area=min_area,
            looks=answer.looks if method == ZOOM else (),
        )[0]

    def _answer(
        self,
        method: str,
        image: NDArray[np.uint8],
        query: QueryFeatures,
        supports: tuple[int, ...],
        seed: int,
    ) -> _Answer:
        """What one of our own methods says of an image (h w 3)."""
        segmenter = self.variants.get(method, self.segmenter)
        support = self._join(supports, segmenter)
        if method == "prototype":
            weights = self.segmenter.backbone.channel_weights
            return _Answer(prototype_scores(query.latents, support.latents, support.masks, weights))
        if method == PROTOTYPE_ADAPTED:
            metric = self._metric(supports)
            scores = prototype_scores(query.latents, support.latents, support.masks, metric.channel_weights)
            return _Answer(scores - metric.threshold)
        if method == ADAPTED:
            segmenter = self._adapted(supports)[0]
        output = self._forward(segmenter, query, supports, seed)
        if method == "attention":
            return _Answer(output.scores.score_map)
        presences = segmenter.score_presence(output, query.latents, support)
        presence = None if presences is None else presences[0]
        if method not in (ZOOM, "slicing"):
            return _Answer(output.probability, presence)
        (plain,) = output.at_windows([whole(image)], presences or [0.0])
        if method == ZOOM:
            looks = segmenter.look_closer(plain, image, support, zoom=self.zoom, seed=seed)
            return _Answer(output.probability, max(look.presence for look in deciding(looks)), looks)
        looks = [plain, *segmenter.look_at(slices(plain.window), image, support, seed)]
        return _Answer(torch.from_numpy(join(looks, image, refine=False))[None, None], looks=looks)

    def _subject(self, episode: Episode, index: int, seed: int) -> tuple[LabelledImage, QueryFeatures]:
        """The image of an episode, encoded: its query, or a scene that holds the query's object."""
        for segmenter in (self.segmenter, *self.variants.values()):
            self._join(episode.support, segmenter)  # now: no method's time depends on what was encoded
        if self.paste_into is None:
            return self._labelled(episode.query), self._query(episode.query)
        return self._scene(episode, index, seed)

    def _make_scene(self, episode: Episode, index: int, seed: int) -> tuple[LabelledImage, QueryFeatures]:
        def read(sample: int) -> tuple[NDArray[np.uint8], Truth]:
            labelled = self._labelled(sample)
            return labelled.image, labelled.truth

        assert self.paste_into is not None
        scene = draw_scene(self.dataset, episode, read, megapixels=self.paste_into, seed=(seed, index))
        return LabelledImage(*scene), self._encode_image(scene[0])

    def _draw_absent(self, episode: Episode, index: int, seed: int) -> int | None:
        """An image without the class: of its source, or where that has none, of any other."""
        source, slash, _ = episode.class_name.rpartition("/")
        free = self.dataset.without(episode.class_name, source=source + slash) or self.dataset.without(
            episode.class_name
        )
        generator = np.random.Generator(np.random.PCG64([seed, index, 1]))
        return free[int(generator.integers(len(free)))] if free else None

    def _adapt(self, supports: tuple[int, ...]) -> tuple[Segmenter, dict[str, float | None]]:
        """The segmenter adapted to supports, and figures as `EpisodeResult.adapted`."""
        read = read_time(self.segmenter.device)
        *_, last = adapt_steps(self.segmenter, self._pairs(supports))
        assert last.adapted is not None
        figures: dict[str, float | None] = {
            name: getattr(last.adapted, name) for name in ("reach", "before", "after")
        }
        figures["seconds"] = read()
        return self.segmenter.with_trained(last.adapted.trained), figures

    @torch.inference_mode()
    def _forward(
        self, segmenter: Segmenter, query: QueryFeatures, supports: tuple[int, ...], seed: int
    ) -> SegmenterOutput:
        return segmenter.predict(query.latents, query.edges, self._join(supports, segmenter), seed)

    # --- read and encoded, each once as long as it is remembered ---

    def _encoding_seconds(self, method: str, query: QueryFeatures, supports: tuple[int, ...]) -> float:
        """What an episode's images took to encode.

        Encodings are remembered, so their time is added to each episode, not measured in it.
        """
        crop = self.variants.get(method, self.segmenter).settings.support_crop
        spent = [self._support(index, crop)[1] for index in supports]
        seconds = query.seconds["encode"] + sum(each["encode"] for each in spent)
        if method in ("prototype", PROTOTYPE_ADAPTED):
            return seconds
        return seconds + query.seconds["edges"] + sum(each["embed"] for each in spent)

    def _join(self, supports: tuple[int, ...], segmenter: Segmenter) -> SupportFeatures:
        crop = segmenter.settings.support_crop
        return SupportFeatures.join([self._support(i, crop)[0] for i in supports])

    def _pairs(self, supports: tuple[int, ...]) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
        labelled = [self._labelled(i) for i in supports]
        return [(each.image, each.truth.mask) for each in labelled]

    def _read(self, index: int) -> LabelledImage:
        sample = self.dataset.samples[index]
        image, truth = read_image(sample.image), read_truth(self.dataset.name, sample)
        check_pair(image, truth.mask, sample.image, sample.mask)
        return LabelledImage(image, truth)

    @torch.inference_mode()
    def _encode_image(self, image: NDArray[np.uint8]) -> QueryFeatures:
        stages = Stages(read_time(self.segmenter.device))
        query = replace(self.segmenter, stage=stages).encode_queries([image])
        return replace(query, images=[], seconds=stages.spent)

    @torch.inference_mode()
    def _encode_support(self, index: int, crop: str) -> tuple[SupportFeatures, dict[str, float]]:
        """A support, (1 1 ...), and what each stage of `Segmenter.encode_pairs` took."""
        stages = Stages(read_time(self.segmenter.device))
        settings = replace(self.segmenter.settings, support_crop=crop)
        cropping = replace(self.segmenter, stage=stages, settings=settings)
        return cropping.encode_pairs(self._pairs((index,))), stages.spent


def own_thresholds(segmenter: Segmenter) -> dict[str, float]:
    """Where each of our own methods is cut, on its own scale."""
    return {
        **dict.fromkeys((*MASKS, "attention"), segmenter.settings.threshold),
        "prototype": THRESHOLD,
        PROTOTYPE_ADAPTED: 0.0,
    }
