"""A batch that never ends: images are worked on as they arrive."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from diffseg_cli.batch.arrivals import Arrivals
from diffseg_cli.batch.outcome import Outcome
from diffseg_cli.batch.pipeline import Pipeline
from diffseg_cli.batch.plan import Item
from diffseg_cli.batch.runner import Runner
from diffseg_cli.batch.session import Session
from diffseg_cli.batch.sizing import choose_batch_size
from diffseg_cli.errors import UsageError
from diffseg_cli.files import Claims

FINISH_SECONDS = 30  # between two renewals of the files of the run while images arrive


class FolderWatcher:
    """Follows a folder.

    Args:
        session: open, without images.
        arrivals: open.
        claims: names that are taken.
        workers: threads that read, and threads that write.
    """

    def __init__(self, session: Session[Runner], arrivals: Arrivals, claims: Claims, workers: int) -> None:
        self._session, self._arrivals, self._claims, self._workers = session, arrivals, claims, workers
        self._known: dict[str, Item] = {}
        self._written: dict[str, list[str]] = {}  # files of the images that were done
        self._pipeline: Pipeline | None = None
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Finish what is in hand, then end; may be called from a signal handler."""
        self._stopping.set()
        if self._pipeline:
            self._pipeline.stop()

    def run(self) -> Iterator[Outcome]:
        """Work until it is stopped; every outcome is written down before it is given out.

        Raises:
            PlaceLost: nothing can be written any more; everything that came before is whole.
        """
        unfinished, finish_at = False, 0.0
        while not self._stopping.is_set():
            items = self._arrivals.take()
            for outcome in self._work(items):
                unfinished = True
                yield outcome
            now = time.monotonic()
            if not items and unfinished and now >= finish_at:
                self.finish()
                unfinished, finish_at = False, now + FINISH_SECONDS
            if not items and not self._stopping.is_set():
                self._arrivals.wait()

    def finish(self) -> list[Path]:
        """Write the files of the run from everything that is done."""
        self._session.items = [self._known[key] for key in sorted(self._known)]
        return self._session.finish()

    def _work(self, items: list[Item]) -> Iterator[Outcome]:
        todo = []
        for item in items:
            try:
                self._claims.claim(item.outputs(self._session.job.patterns).values(), item.key)
                todo.append(item)
            except UsageError as error:
                yield self._noted(self._session.runner.fail(item, error))
        if not todo:
            return
        runner = self._session.runner
        size = choose_batch_size(runner, None, len(todo))
        self._pipeline = Pipeline(runner, workers=self._workers, batch_size=size)
        if self._stopping.is_set():  # it came before there was something to stop
            self._pipeline.stop()
        for outcome in self._pipeline.run(todo):
            if outcome.row.error is None or not self._arrivals.expects(outcome.item):
                yield self._noted(outcome)

    def _noted(self, outcome: Outcome) -> Outcome:
        """Write an outcome down; an image that fails loses what its earlier state gave in this run."""
        item, row = outcome.item, outcome.row
        self._known[item.key] = item
        if row.error is not None:
            for name in self._written.pop(item.key, ()):
                self._session.store.remove(name)
        else:
            self._written[item.key] = [file["path"] for file in row.outputs.values()]
        self._session.record(outcome)
        return outcome
