"""What the worker does with orders, in its thread: encode supports, segment queries, make masks."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.choices import AnswerChoice
from diffseg_cli.errors import DiffsegError
from diffseg_cli.finding import Answer, find_in
from diffseg_cli.results.formats import UNNAMED
from diffseg_cli.results.outputs import mask_png
from diffseg_cli.serve.limits import Limits
from diffseg_cli.serve.metrics import Metrics
from diffseg_cli.serve.replies import PNG, Reply, found_record, image_reply, json_reply
from diffseg_cli.serve.uploads import SupportUpload, Upload, read_supports, read_uploaded
from diffseg_cli.supports.concept import Concept
from diffseg_cli.supports.mask_making import box_region, mask_from_box
from diffseg_cli.timing import Stopwatch

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter

T = TypeVar("T")

SUPPORTS_KEPT = 8  # encoded supports of recent requests; a page asks for one object many times
THREADS = 4  # that decode and encode the images of a batch


@dataclass(frozen=True)
class FindOrder:
    """Segment a query.

    Attributes:
        query: the image.
        support: what to look for.
        answer: what counts as found.
        form: "json", or an image of `image_reply`.
        extras: of `found_record`.
    """

    query: Upload
    support: Concept | SupportUpload
    answer: AnswerChoice
    form: str
    extras: tuple[str, ...]

    @property
    def key(self) -> Hashable:
        """Orders of equal keys are one batch."""
        what = id(self.support) if isinstance(self.support, Concept) else self.support.digest
        return what, self.answer


@dataclass(frozen=True)
class MaskOrder:
    """Make a mask of what is in a box (x, y, width, height)."""

    image: Upload
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class CallOrder:
    """Anything that is to run in the thread that owns the model; what it returns is the answer."""

    run: Callable[[], Any]


Order = FindOrder | MaskOrder | CallOrder


def key_of(order: Order) -> Hashable:
    """Only queries of one support go together."""
    return order.key if isinstance(order, FindOrder) else id(order)


class InferenceEngine:
    """A segmenter, used in the thread that calls `work` alone, and the supports it was asked about last.

    Attributes:
        segmenter: the same, that stops before its next stage where nobody waits for an answer any more.
    """

    def __init__(self, segmenter: "Segmenter", limits: Limits, metrics: Metrics) -> None:
        self.segmenter = replace(segmenter, stage=self._stage)
        self._inner_stage, self._limits, self._metrics = segmenter.stage, limits, metrics
        self._wanted: Callable[[], bool] = lambda: True
        self._recent: OrderedDict[str, Concept] = OrderedDict()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="diffseg-images")

    def work(self, orders: Sequence[Order], wanted: Callable[[], bool]) -> list[Any]:
        """Answer orders of one key; what a user did wrong is the answer of that order.

        Raises:
            CancelledError: none of them is wanted any more.
        """
        self._wanted = wanted
        self._check_wanted()
        finds = [order for order in orders if isinstance(order, FindOrder)]
        if finds:
            return self._find(finds)
        return [self._attempt(self._make, order) for order in orders]

    def _check_wanted(self) -> None:
        if not self._wanted():
            raise CancelledError

    def _stage(self, name: str) -> AbstractContextManager[None]:
        self._check_wanted()
        return self._inner_stage(name)

    def _attempt(self, make: Callable[..., T], *arguments: Any) -> T | Exception:
        try:
            return make(*arguments)
        except DiffsegError as error:
            return error

    def _make(self, order: MaskOrder | CallOrder) -> Any:
        if isinstance(order, CallOrder):
            return order.run()
        image = read_uploaded(order.image, "image", self._limits.pixels)
        region = box_region(order.box, (image.shape[0], image.shape[1]))
        made = mask_from_box(self.segmenter, image, region)
        return Reply(mask_png([made]), PNG, {"X-Diffseg-Area": f"{made.mean():.6f}"})

    def _encode(self, upload: SupportUpload) -> Concept:
        """Supports of a request, encoded once for requests that follow each other."""
        if upload.digest not in self._recent:
            pairs, notes = read_supports(upload, self._limits.pixels)
            support = self.segmenter.encode_support(pairs)
            self._recent[upload.digest] = Concept(UNNAMED, support, tiles=(), notes=notes)
            if len(self._recent) > SUPPORTS_KEPT:
                self._recent.popitem(last=False)
        self._recent.move_to_end(upload.digest)
        return self._recent[upload.digest]

    def _find(self, orders: Sequence[FindOrder]) -> list[Reply | Exception]:
        """Segment queries of one support and one set of options together."""
        first = orders[0]
        what = first.support
        try:
            concept = what if isinstance(what, Concept) else self._encode(what)
        except DiffsegError as error:
            return [error] * len(orders)
        pixels, stopwatch = self._limits.pixels, Stopwatch()
        images = list(
            self._pool.map(lambda order: self._attempt(read_uploaded, order.query, "query", pixels), orders)
        )
        stopwatch.mark("decode")
        readable = [image for image in images if isinstance(image, np.ndarray)]
        answers = iter(self._segment(readable, concept, first) if readable else [])
        stopwatch.mark("segment")
        self._check_wanted()
        found = [image if isinstance(image, Exception) else next(answers) for image in images]
        replies = list(
            self._pool.map(lambda order, each: self._reply(order, each, concept.notes), orders, found)
        )
        stopwatch.mark("reply")
        del stopwatch.seconds["segment"]  # counted by its own stages
        self._metrics.add_seconds(stopwatch.seconds)
        return replies

    def _segment(
        self, images: Sequence[NDArray[np.uint8]], concept: Concept, order: FindOrder
    ) -> list[Answer]:
        query = self.segmenter.encode_queries(images)
        answers = find_in(self.segmenter, query, [concept], [Path("query")] * len(images), order.answer)
        self._metrics.add("diffseg_batches_total")
        self._metrics.add("diffseg_images_total", len(images))
        for answer in answers:
            self._metrics.add_seconds(answer.seconds)
        return answers

    def _reply(self, order: FindOrder, answer: Answer | Exception, notes: Sequence[str]) -> Reply | Exception:
        if isinstance(answer, Exception):
            return answer
        if order.form != "json":
            return image_reply(order.form, answer.scene)
        record = {
            **found_record(answer.scene.found[0], order.extras),
            "threshold": order.answer.threshold,
            "min_presence": order.answer.min_presence,
            "min_area": order.answer.min_area,
            "zoom": order.answer.zoom,
            "notes": [*notes, *answer.notes],
            "seconds": {stage: round(spent, 4) for stage, spent in answer.seconds.items()},
        }
        return json_reply(record)
