"""Long work in the background, a step at a time in the thread that owns the model: requests come between."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, cast

from diffseg_cli.errors import DiffsegError
from diffseg_cli.serve.refusals import without_paths

Submit = Callable[[Callable[[], Any]], "Future[Any]"]  # runs something in the thread that owns the model
LOG = logging.getLogger("uvicorn.error")  # what the person who runs the server sees
Step = dict[str, Any]  # how far the work is: stage, done, total, and what else is worth saying


class BackgroundJob:
    """At most one run at a time; every method may be called from any thread.

    Args:
        submit: of the worker.
        seconds: a run may take.
        private: folders that errors do not lead to.
    """

    def __init__(self, submit: Submit, seconds: float = math.inf, private: Sequence[Path] = ()) -> None:
        self._submit, self._seconds, self._private = submit, seconds, private
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._in_hand: Future[Any] | None = None
        self._progress: Step = {"stage": "idle"}

    @property
    def progress(self) -> Step:
        """The last step with seconds_left; or stage idle, done, cancelled, or failed with an error."""
        with self._lock:
            return dict(self._progress)

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, steps: Iterator[Step], stage: str) -> bool:
        """Take the steps one after the other; False where it is at others already.

        Args:
            steps: each does a piece of the work and says how far it is.
            stage: what progress says until the first of them is done.
        """
        with self._lock:
            if self.is_running:
                return False
            self._stop.clear()
            self._progress = {"stage": stage}
            self._thread = threading.Thread(target=self._run, args=(steps,), name="diffseg-job", daemon=True)
            self._thread.start()
        return True

    def cancel(self) -> None:
        """Stop before the next stage of the step in hand, and wait for that."""
        self._stop.set()
        if self._in_hand is not None:
            self._in_hand.cancel()
        if self._thread is not None:
            self._thread.join()

    def _run(self, steps: Iterator[Step]) -> None:
        try:
            self._say({**self._follow(steps), "stage": "done"})
        except DiffsegError as given:
            error = without_paths(given, self._private)
            self._say({"stage": "failed", "error": " ".join(filter(None, (error.message, error.hint)))})
        except CancelledError:
            self._say({"stage": "cancelled"})
        except Exception as error:
            LOG.exception("work in the background failed")  # the page shows no more than the kind of error
            self._say({"stage": "failed", "error": f"{type(error).__name__}: this should not happen."})

    def _follow(self, steps: Iterator[Step]) -> Step:
        """Take all steps, and return the last."""
        began = stage_began = last_end = time.monotonic()
        last: Step = {}
        while step := self._take(steps):
            now, done = time.monotonic(), step["done"]
            if (
                step["stage"] != last.get("stage") or not done
            ):  # what comes before the first one is no measure
                stage_began = last_end if done else now
            left = round((now - stage_began) / done * (step["total"] - done), 1) if done else None
            self._say({**step, "seconds_left": left})
            last, last_end = step, now
            if now - began > self._seconds:
                raise DiffsegError(f"This took longer than {self._seconds:g} seconds.")
        return last

    def _take(self, steps: Iterator[Step]) -> Step | None:
        """The next step, from the thread that owns the model.

        Raises:
            CancelledError: it was cancelled, or the worker is closed.
        """
        try:
            self._in_hand = future = self._submit(lambda: next(steps, None))
        except RuntimeError as error:
            raise CancelledError from error
        if self._stop.is_set():  # before there was something to cancel
            future.cancel()
        return cast("Step | None", future.result())

    def _say(self, progress: Step) -> None:
        with self._lock:
            self._progress = progress
