"""Learning and proposing in the background, one image at a time, so that a person's requests come between."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from diffseg_cli.errors import DiffsegError
from diffseg_cli.labelling.project import Project
from diffseg_cli.labelling.query_cache import QueryCache
from diffseg_cli.labelling.review_log import Outdated
from diffseg_cli.labelling.teaching import Taught, propose, teach_steps
from diffseg_cli.supports.concept import Concept

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter

T = TypeVar("T")
Submit = Callable[[Callable[[], Any]], "Future[Any]"]  # runs something in the thread that owns the model


class TeachingJob:
    """At most one run at a time; every method may be called from any thread.

    Args:
        segmenter: that learns.
        project: that it learns from and proposes for.
        queries: encodes its images.
        given: concepts to begin with.
        submit: of the worker.
    """

    def __init__(
        self,
        segmenter: "Segmenter",
        project: Project,
        queries: QueryCache,
        given: Sequence[Concept],
        submit: Submit,
    ) -> None:
        self._segmenter, self._project, self.queries = segmenter, project, queries
        self._given, self._submit = given, submit
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._in_hand: Future[Any] | None = None
        self._progress: dict[str, Any] = {"stage": "idle"}

    @property
    def progress(self) -> dict[str, Any]:
        """Stage (idle, learning, proposing, done, cancelled, failed), done, total, seconds_left, error."""
        with self._lock:
            return dict(self._progress)

    def start(self) -> None:
        """Learn and propose again, unless it is at it already."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            self._stop.clear()
            self._progress = {"stage": "learning"}
            self._thread = threading.Thread(target=self._run, name="diffseg-teaching", daemon=True)
            self._thread.start()

    def cancel(self) -> None:
        """Stop before the next stage of the image in hand, and wait for that."""
        self._stop.set()
        if self._in_hand is not None:
            self._in_hand.cancel()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._propose(self._learn())
        except DiffsegError as error:
            self._say(stage="failed", error=" ".join(filter(None, (error.message, error.hint))))
        except CancelledError:
            self._say(stage="cancelled")
        except Exception as error:
            self._say(stage="failed", error=f"{type(error).__name__}: this should not happen.")

    def _do(self, run: Callable[[], T]) -> T:
        """Run something in the thread that owns the model.

        Raises:
            CancelledError: it was cancelled, or the worker is closed.
        """
        try:
            self._in_hand = future = self._submit(run)
        except RuntimeError as error:
            raise CancelledError from error
        if self._stop.is_set():  # before there was something to cancel
            future.cancel()
        return cast(T, future.result())

    def _learn(self) -> Taught:
        """Learn step by step."""
        steps = teach_steps(self._segmenter, self._project, self._given)
        began, step = time.monotonic(), None
        while step is None or step.taught is None:
            step = self._do(lambda: next(steps))
            left = (time.monotonic() - began) / step.step * (step.steps - step.step)
            self._say(stage="learning", done=step.step, total=step.steps, seconds_left=round(left, 1))
        return step.taught

    def _propose(self, taught: Taught) -> None:
        """Images nobody decided about: those that are waited for most, the most doubtful, before others."""
        self._project.refresh()
        open_ones = [each for each in self._project.reviews() if not (each.is_reviewed or taught.knows(each))]
        open_ones.sort(key=lambda review: -(review.doubt or 0.0))
        began, total = time.monotonic(), len(open_ones)
        for done, review in enumerate(open_ones):
            spent = time.monotonic() - began
            left = round(spent / done * (total - done), 1) if done else None
            self._say(stage="proposing", done=done, total=total, seconds_left=left, supports=taught.supports)
            try:
                self._do(partial(propose, self._project, taught, self.queries, review.image))
            except Outdated:  # somebody decided meanwhile, and that stands
                continue
        self._say(stage="done", done=total, total=total, supports=taught.supports)

    def _say(self, **progress: Any) -> None:
        with self._lock:
            self._progress = progress
