"""The whole tool's heart: encode supports once, look at queries, predict their masks. Start reading here.

Two doors. The outer one takes images in any form and gives numpy at the query's own size: `encode_support`,
`segment`, `look`. The inner one, `method.py`, takes batched tensors in the model frame. Every answer goes one
road: `encode_queries`, then `predict`, then `finish`.

Letters: b queries, k supports, S image size, H W = S/8, c latent channels, E edge size.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.adaptation import Negative, adapt_steps
from diffseg_cli.config import AdaptConfig
from diffseg_cli.errors import InputError
from diffseg_cli.frames import from_frame, stack_frames
from diffseg_cli.method import Method
from diffseg_cli.models.attention import OnLayer
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.prediction import Look, Prediction, QueryFeatures, SegmenterOutput, check_finite
from diffseg_cli.presence import presence_features
from diffseg_cli.reading.given import kind_of, listed_pairs
from diffseg_cli.reading.image_io import ImageSource, MaskSource, read_image, read_pair
from diffseg_cli.refine import refine_borders
from diffseg_cli.results.formats import UNNAMED
from diffseg_cli.specks import drop_specks
from diffseg_cli.timing import Stopwatch
from diffseg_cli.zoom import ROUND, Window, WindowLook, deciding, join, most_looks, search, whole


@runtime_checkable
class Findable(Protocol):
    """A concept, encoded or in a file: what can be looked for besides encoded supports."""

    @property
    def name(self) -> str: ...

    def ready_for(self, segmenter: "Segmenter") -> "tuple[Segmenter, SupportFeatures]":
        """The segmenter with the modules that answer for it, and its supports."""
        ...


class Segmenter(Method):
    """Images in, masks out; what it is made of stands at `Method`."""

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        size = self.backbone.image_size
        return f"Segmenter({self.model}, head {self.head}, {size} px, {self.device}, {dtype})"

    @torch.inference_mode()
    def encode_support(self, pairs: Sequence[tuple[ImageSource, MaskSource]]) -> SupportFeatures:
        """Encode supports once.

        Args:
            pairs: images and their masks; paths, PIL images or arrays, a mask of the size of its image.

        Raises:
            InputError: an image or mask cannot be used, their sizes differ, or it is no list of pairs.
        """
        listed = listed_pairs(pairs)
        with self.stage("read"):
            read = [read_pair(image, mask) for image, mask in listed]
        return self.encode_pairs(read)

    def adapt(
        self,
        pairs: Sequence[tuple[ImageSource, MaskSource]],
        *,
        negatives: Sequence[ImageSource | tuple[ImageSource, MaskSource]] = (),
        config: AdaptConfig | None = None,
        seed: int = 0,
    ) -> "Segmenter":
        """A segmenter whose modules are adapted to the concept of some supports; this one stays as it is.

        `adaptation.adapt_steps` does the same step by step and says how far the modules moved.

        Args:
            pairs: 1 to 20 supports as in `encode_support`, whose encoding serves both segmenters.
            negatives: images that hold nothing of the concept, or pairs of an image and a mask of what is not
                the concept; the rest of that image may be.
            config: the numbers; default `AdaptConfig`.
            seed: of everything that is drawn.

        Raises:
            InputError: an image or mask cannot be used, or there is none.
            UsageError: there is no PAM to adapt, or there are too many supports.
        """
        read = [read_pair(image, mask) for image, mask in listed_pairs(pairs)]
        absent: list[Negative] = [
            read_pair(*each) if isinstance(each, tuple) else (read_image(each), None) for each in negatives
        ]
        steps = adapt_steps(self, read, negatives=absent, config=config, seed=seed)
        (adapted,) = [step.adapted for step in steps if step.adapted]
        return self.with_trained(adapted.trained)

    @overload
    def segment(
        self,
        query: ImageSource,
        support: SupportFeatures | Findable,
        *,
        threshold: float | None = ...,
        min_presence: float = ...,
        refine: bool | None = ...,
        min_area: str | None = ...,
        zoom: str = ...,
        seed: int = ...,
    ) -> Prediction: ...
    @overload
    def segment(
        self,
        query: list[Any] | tuple[ImageSource, ...],
        support: SupportFeatures | Findable,
        *,
        threshold: float | None = ...,
        min_presence: float = ...,
        refine: bool | None = ...,
        min_area: str | None = ...,
        zoom: str = ...,
        seed: int = ...,
    ) -> list[Prediction]: ...
    def segment(
        self,
        query: ImageSource | list[Any] | tuple[ImageSource, ...],
        support: SupportFeatures | Findable,
        *,
        threshold: float | None = None,
        min_presence: float = 0.0,
        refine: bool | None = None,
        min_area: str | None = None,
        zoom: str = "off",
        seed: int = 0,
    ) -> Prediction | list[Prediction]:
        """Find an object in one image, or in each of a list, one after the other.

        Args:
            query: path, PIL image or uint8 array, or a list of those.
            support: from `encode_support` of the same model, or a concept, whose own modules answer.
            threshold: this and the rest as in `segment_encoded`.

        Returns:
            A prediction, or a list of them in the order of the queries.

        Raises:
            InputError: an image cannot be used, or `support` is none.
            DiffsegError: as `segment_encoded`.
        """
        model, features, name = self._ready(support)
        predictions = []
        for each in query if isinstance(query, list | tuple) else [query]:
            (prediction,) = model.segment_encoded(
                model.encode_queries([each]),
                features,
                threshold=threshold,
                min_presence=min_presence,
                refine=refine,
                min_area=min_area,
                zoom=zoom,
                seed=seed,
            )
            path = Path(each) if isinstance(each, str | Path) else None
            predictions.append(replace(prediction, path=path, name=name))
        return predictions if isinstance(query, list | tuple) else predictions[0]

    def _ready(self, support: Any) -> "tuple[Segmenter, SupportFeatures, str]":
        """What looks for an object, its supports and its name. Raises InputError: it is no such thing."""
        if isinstance(support, SupportFeatures):
            return self, support, UNNAMED
        if isinstance(support, Findable) and not isinstance(support, type):
            return *support.ready_for(self), support.name
        raise InputError(
            f"segment looks for encoded supports or a concept, and not for {kind_of(support)}.",
            "Encode them first: support = segmenter.encode_support([(image, mask)]).",
        )

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[ImageSource]) -> QueryFeatures:
        """Read and encode images once, to look for several concepts in them.

        Args:
            queries: paths, PIL images or uint8 arrays.

        Raises:
            InputError: an image cannot be used.
        """
        stopwatch = Stopwatch()
        with self.stage("read"):
            images = [read_image(query) for query in queries]
        with self.stage("frame"):
            frames = stack_frames(images, self.backbone.image_size).to(self.device)
        stopwatch.mark("read")
        with self.stage("edges"):
            edges = self.find_edges(frames)
        stopwatch.mark("edges")
        with self.stage("encode"):
            latents = self.backbone.encode(frames)
        stopwatch.mark("encode")
        return QueryFeatures(images, latents, edges, stopwatch.seconds)

    @torch.inference_mode()
    def segment_encoded(
        self,
        queries: QueryFeatures,
        support: SupportFeatures,
        *,
        threshold: float | None = None,
        min_presence: float = 0.0,
        refine: bool | None = None,
        min_area: str | None = None,
        zoom: str = "off",
        seed: int = 0,
    ) -> list[Prediction]:
        """Find the supports' object in images that are read and encoded.

        Args:
            queries: from `encode_queries`.
            support: from `encode_support` of the same model.
            threshold: of the probability, in (0, 1); default 0.5.
            min_presence: in [0, 1]; an image whose presence score is below it gets an empty mask.
            refine: pull borders to the image's own; default of `settings`.
            min_area: of parts of the mask and of holes, as for `choices.least_pixels`; default of `settings`.
            zoom: whether to look closer, as for `zoom.most_looks`; without a presence score, "auto" does not.
            seed: of the noise of a diffusion backbone.

        Raises:
            WeightsError: the supports were encoded by another model.
            UsageError: a presence score, or closer looks, are asked of a checkpoint without one.
            DiffsegError: as `predict`.
        """
        support.check_made_by(self.backbone)
        self.check_presence(min_presence, zoom)
        threshold = self.settings.threshold if threshold is None else threshold
        stopwatch = Stopwatch()
        output = self.predict(queries.latents, queries.edges, support, seed)
        with self.stage("presence"):
            presences = self.score_presence(output, queries.latents, support)
        with self.stage("resize"):
            probabilities, score_maps = output.probability.cpu(), output.scores.score_map.float().cpu()
        stopwatch.mark("look and modules")
        plain: list[WindowLook] = []
        if presences and zoom != "off":
            plain = output.at_windows([whole(image) for image in queries.images], presences)
        predictions = []
        for index, image in enumerate(queries.images):
            looks: list[WindowLook] = []
            presence = presences[index] if presences else None
            if plain:
                looks = self.look_closer(plain[index], image, support, zoom=zoom, seed=seed)
                presence = max(look.presence for look in deciding(looks))
            mask, probability = self.finish(
                probabilities[index, 0],
                image,
                threshold=threshold,
                refine=refine,
                min_area=min_area,
                presence=presence,
                min_presence=min_presence,
                looks=looks,
            )
            with self.stage("resize"):
                score_map = from_frame(score_maps[index, 0], (image.shape[0], image.shape[1]))
            predictions.append((tuple(looks[1:]), (mask, probability, score_map, presence)))
        stopwatch.mark("resize")
        stages = {**queries.seconds, **stopwatch.seconds}
        seconds = {stage: spent / len(queries.images) for stage, spent in stages.items()}
        return [
            Prediction(*values, threshold, seconds, image, looks=closer)
            for (closer, values), image in zip(predictions, queries.images, strict=True)
        ]

    def score_presence(
        self, output: SegmenterOutput, latents: Tensor, support: SupportFeatures
    ) -> list[float] | None:
        """How sure it is that the concept is in each query, in [0, 1]; None without calibration.

        Args:
            output: of `predict`.
            latents: (b c H W) of the queries.
            support: that was looked for.
        """
        if self.trained.presence is None:
            return None
        scores: list[float] = self.trained.presence.score(
            presence_features(output, latents, support)
        ).tolist()
        return scores

    def look_closer(
        self,
        plain: WindowLook,
        image: NDArray[np.uint8],
        support: SupportFeatures,
        *,
        zoom: str,
        seed: int = 0,
    ) -> list[WindowLook]:
        """Look again at windows of an image, where that may help; returns all looks, `plain` first.

        Args:
            plain: the look at the whole image.
            image: uint8 (h w 3), the query at its own size.
            support: of the same model.
            zoom: as for `zoom.most_looks`.
            seed: of the noise.
        """
        most = most_looks(zoom, plain, self.backbone.image_size)
        return search(lambda windows: self.look_at(windows, image, support, seed), plain, most)

    @torch.inference_mode()
    def look_at(
        self, windows: Sequence[Window], image: NDArray[np.uint8], support: SupportFeatures, seed: int = 0
    ) -> list[WindowLook]:
        """Look at windows of an image; arguments as in `look_closer`. It needs a presence score."""
        # On a CPU last bits depend on the batch, which would not be faster either.
        together = 1 if self.device.type == "cpu" else ROUND
        looks: list[WindowLook] = []
        for first in range(0, len(windows), together):
            batch = windows[first : first + together]
            queries = self.encode_queries([np.ascontiguousarray(image[each.slices]) for each in batch])
            output = self.predict(queries.latents, queries.edges, support, seed)
            presences = self.score_presence(output, queries.latents, support) or []
            looks += output.at_windows(batch, presences)
        return looks

    def finish(
        self,
        probability: Tensor,
        image: NDArray[np.uint8],
        *,
        threshold: float | None = None,
        refine: bool | None = None,
        min_area: str | None = None,
        presence: float | None = None,
        min_presence: float = 0.0,
        looks: Sequence[WindowLook] = (),
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """From a probability to the mask at the image's own size: the end of every verb's road.

        Args:
            probability: (S S) in the model frame, or of any other size that covers the image, in [0, 1].
            image: uint8 (h w 3), the query at its own size.
            threshold: of the probability; default of `settings`.
            refine: pull borders to the image's own; default of `settings`.
            min_area: of parts of the mask and of holes; default of `settings`.
            presence: score of the image, or None.
            min_presence: below it the mask is empty.
            looks: of `look_closer`; where closer ones decide, they count in place of `probability`.

        Returns:
            Mask (h w), and the probability (h w) it was cut from.
        """
        size_hw = (image.shape[0], image.shape[1])
        refine = self.settings.refine if refine is None else refine
        closer = [look for look in deciding(looks) if look is not looks[0]]
        if closer:
            with self.stage("zoom"):
                found = join(closer, image, refine=refine)
        else:
            with self.stage("resize"):
                found = from_frame(probability, size_hw)
            with self.stage("refine"):
                if refine:
                    found = refine_borders(found, image)
        if presence is not None and presence < min_presence:
            return np.zeros(size_hw, dtype=bool), found
        mask = found > (self.settings.threshold if threshold is None else threshold)
        with self.stage("specks"):
            return drop_specks(mask, self.settings.min_area if min_area is None else min_area), found

    @torch.inference_mode()
    def look(
        self, query: ImageSource, support: SupportFeatures, *, seed: int = 0, on_layer: OnLayer | None = None
    ) -> Look:
        """The attention maps behind an answer, SCM included when the head uses it.

        Args:
            query: path, PIL image or uint8 array.
            support: from `encode_support` of the same model.
            seed: of the noise.
            on_layer: called with each layer's probabilities.

        Raises:
            WeightsError: the supports were encoded by another model.
            DiffsegError: the score map holds NaN or infinity.
        """
        support.check_made_by(self.backbone)
        queries = self.encode_queries([query])
        noise = self.make_noise(queries.latents, seed)
        fused = support.fused(self.settings.fusion)
        maps, scores = self.find_scores(queries.latents, queries.edges, fused, noise, on_layer)
        check_finite(scores.score_map)
        return Look(maps, scores, (queries.images[0].shape[0], queries.images[0].shape[1]))
