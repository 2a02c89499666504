"""A batch with its files open: what an engine needs before, while and after it works on images."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from diffseg_cli.batch.finish import finish
from diffseg_cli.batch.job import Job, Signature
from diffseg_cli.batch.manifest import ManifestReader
from diffseg_cli.batch.manifest_pieces import open_writer
from diffseg_cli.batch.outcome import Outcome
from diffseg_cli.batch.plan import Item, Part, refuse_labels
from diffseg_cli.batch.runner import Rows
from diffseg_cli.batch.store import Store
from diffseg_cli.supports.concept import Concept


class Loaded(Protocol):
    """A model that is ready, here (`Runner`) or on other machines (`RayEngine`)."""

    @property
    def concepts(self) -> Sequence[Concept]: ...
    @property
    def signature(self) -> Signature: ...


class Engine(Protocol):
    """What works on images: `Pipeline` on this machine, `RayEngine` on a cluster."""

    def run(self, items: Sequence[Item]) -> Iterator[Outcome]:
        """Work on images; outcomes come in the order they are ready in. Raises PlaceLost."""
        ...

    def stop(self) -> None:
        """Take no further images; may be called from a signal handler."""
        ...


M = TypeVar("M", bound=Loaded, covariant=True)


class Session(Generic[M]):
    """One share of a plan on its way; use it in a `with` block.

    Args:
        job: what to do.
        items: the whole plan.
        share: which of it is this session's.
        out: folder of the results.
        load: makes the model.
        resume: whether what earlier runs did counts.
        dry: write nothing.

    Attributes:
        own: images of this share.
        store: where results go.
        runner: the model.

    Raises:
        UsageError: another run is at work on the same share.
        InputError: the folder cannot be written.
        DiffsegError: as `load`.
    """

    def __init__(
        self,
        job: Job,
        items: Sequence[Item],
        share: Part,
        out: Path,
        load: Callable[[Job, Store, Rows | None], M],
        *,
        resume: bool = True,
        dry: bool = False,
    ) -> None:
        self.job, self.items, self.store = job, items, Store(out, share.tag)
        self.own = [item for item in items if share.takes(item)]
        refuse_labels(out)
        with ExitStack() as stack:
            self._writer = None if dry else stack.enter_context(open_writer(out, share.tag))
            reader = stack.enter_context(ManifestReader(out))
            if not dry:
                self.store.clean(name for item in items for name in item.outputs(job.patterns).values())
            self.runner = load(job, self.store, reader.rows if resume else None)
            self._reader = reader
            self._sign(reader)
            self._files = stack.pop_all()

    def _sign(self, reader: ManifestReader) -> None:
        """Write down the settings behind the hashes of the rows to come, once."""
        signature = self.runner.signature
        last = reader.last_record("settings") or {"order": 0}
        named = {
            "settings": signature.settings,
            "weights": signature.weights,
            "what": signature.record,
            "formats": list(self.job.formats),
        }
        if self._writer is not None and named != {what: last.get(what) for what in named}:
            self._writer.add_record({**named, "order": last["order"] + 1, "time": round(time.time(), 3)})

    def record(self, outcome: Outcome) -> None:
        """Write down what became of an image, unless an earlier run did.

        Raises:
            InputError: the manifest cannot be written; the run must stop.
        """
        if self._writer is not None and not outcome.skipped:
            known = self._reader.rows(outcome.row.key)
            order = 1 + max((row.order for row in known), default=0)
            self._writer.add(replace(outcome.row, order=order))

    def finish(self) -> list[Path]:
        """Write the files of the run from everything that is done; returns where they are.

        Raises:
            InputError: one cannot be written.
        """
        if self._writer is not None:
            self._writer.flush()
        records = [each.record for each in self.runner.concepts]
        written = finish(self.job, self.runner.signature, self.items, self.store, records)
        if self._writer is not None:
            self._writer.add_record(written)
        return [self.store.root / name for name in written["files"]]

    def __enter__(self) -> "Session[M]":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
