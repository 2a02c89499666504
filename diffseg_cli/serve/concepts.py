"""The concepts that a server keeps: given at the start, or made, adapted and forgotten by requests."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from diffseg_cli.adaptation import AdaptStep, adapt_steps
from diffseg_cli.files import folded
from diffseg_cli.serve.job import BackgroundJob, Step, Submit
from diffseg_cli.serve.limits import Limits
from diffseg_cli.serve.metrics import Metrics
from diffseg_cli.serve.refusals import Refusal
from diffseg_cli.serve.uploads import SupportUpload, Upload, read_negatives, read_supports
from diffseg_cli.supports.concept import Concept, SupportSet

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter

REQUESTS_LONG = 10  # an adaptation may take as long as so many of the longest requests
RETRY = 10  # seconds after which to ask again, where nothing better is known


class KeptConcepts:
    """What requests may name. `make` is called in the thread that owns the model, all else in any.

    Args:
        segmenter: that encodes and is adapted.
        given: at the start; they stay.
        limits: of images and concepts.
        metrics: counts them.
        submit: of the worker.
    """

    def __init__(
        self,
        segmenter: "Segmenter",
        given: Sequence[Concept],
        limits: Limits,
        metrics: Metrics,
        submit: Submit,
    ) -> None:
        self._segmenter, self._limits, self._metrics = segmenter, limits, metrics
        self._concepts = {concept.name: concept for concept in given}
        self._fixed = frozenset(self._concepts)
        self._job = BackgroundJob(submit, REQUESTS_LONG * limits.seconds)
        self._adapting = ""  # the concept the job is about, or was last
        metrics.add("diffseg_concepts", len(self._concepts))

    def all(self) -> list[Concept]:
        """In the order in which they came."""
        return list(self._concepts.values())

    def get(self, name: str) -> Concept:
        """The concept of this name.

        Raises:
            Refusal: there is none.
        """
        concept = self._concepts.get(name)
        if concept is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND, f"No concept is called {name}.", "See GET /v1/concepts for their names."
            )
        return concept

    def record(self, concept: Concept) -> dict[str, Any]:
        """What JSON says of a concept."""
        adaptation: Step | None = None
        if concept.adapted:
            kept = {name: getattr(concept.adapted, name) for name in ("reach", "before", "after")}
            adaptation = {"stage": "done", **kept}
        elif concept.name == self._adapting:
            adaptation = self._job.progress
        return {
            "id": concept.name,
            "supports": concept.support.shots,
            "fixed": concept.name in self._fixed,
            "preview": f"data:image/jpeg;base64,{base64.b64encode(concept.preview).decode('ascii')}",
            "notes": list(concept.notes),
            "adaptation": adaptation,
        }

    def make(
        self,
        name: str,
        support: SupportUpload,
        negatives: Sequence[Upload],
        negative_masks: Sequence[Upload],
        *,
        adapt: bool,
    ) -> Concept:
        """Encode supports and keep them; with `adapt` the modules are adapted to them in the background.

        Args:
            name: of the concept.
            support: of a request.
            negatives: images without the concept.
            negative_masks: of what is not the concept in the first of them, whose rest may be.
            adapt: whether to adapt; until that is done the modules as they are answer for the concept.

        Raises:
            Refusal: the name is taken, all places are, or another concept is being adapted.
            InputError: an image or mask cannot be used.
            UsageError: there is nothing to adapt.
        """
        self._check_place(name)
        if adapt and self._job.is_running:
            left = self._job.progress.get("seconds_left") or RETRY
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"The server is adapting to {self._adapting}.",
                "Try again when that is done.",
                {"Retry-After": str(max(1, round(left)))},
            )
        pixels = self._limits.pixels
        pairs, notes = read_supports(support, pixels)
        absent, more = read_negatives(negatives, negative_masks, pixels, fit=support.choice.fit)
        steps = adapt_steps(self._segmenter, pairs, negatives=absent) if adapt else None
        concept = SupportSet(name, pairs, notes=[*notes, *more]).concept(self._segmenter)
        self._concepts[name] = concept
        self._metrics.add("diffseg_concepts")
        if steps is not None:
            self._adapting = name
            self._job.start(self._adapt(concept, steps), "adapting")
        return concept

    def _check_place(self, name: str) -> None:
        taken = {folded(each) for each in list(self._concepts)}  # another thread may delete one
        if folded(name) in taken:
            raise Refusal(
                HTTPStatus.CONFLICT,
                f"A concept is called {name} already.",
                "Choose another name, or delete that one.",
            )
        if len(taken) >= self._limits.concepts:
            raise Refusal(
                HTTPStatus.CONFLICT,
                f"This server keeps {self._limits.concepts} concepts at most.",
                "Delete one first.",
            )

    def _adapt(self, concept: Concept, steps: Iterator[AdaptStep]) -> Iterator[Step]:
        for step in steps:
            if step.adapted and self._concepts.get(concept.name) is concept:
                self._concepts[concept.name] = replace(concept, adapted=step.adapted)
            yield {"stage": "adapting", "done": step.step, "total": step.steps}

    def stop_adapting(self, name: str) -> Concept:
        """Stop adapting to a concept, which stays as it is.

        Raises:
            Refusal: there is none of that name.
        """
        self.get(name)
        if name == self._adapting:
            self._job.cancel()
        return self.get(name)

    def drop(self, name: str) -> None:
        """Forget a concept.

        Raises:
            Refusal: there is none of that name, or it was given at the start.
        """
        self.stop_adapting(name)
        if name in self._fixed:
            raise Refusal(HTTPStatus.CONFLICT, f"The concept {name} was given at the start and stays.")
        if self._concepts.pop(name, None):
            self._metrics.add("diffseg_concepts", -1)
        if name == self._adapting:
            self._adapting = ""

    def close(self) -> None:
        """Stop adapting."""
        self._job.cancel()
