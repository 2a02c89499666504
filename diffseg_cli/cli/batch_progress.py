"""What a person sees of a batch: a bar or a line now and then, a summary, and how it ends on Ctrl-C."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffseg_cli.cli import console
from diffseg_cli.config import PRESENT
from diffseg_cli.errors import ExitCode, PartialFailure

if TYPE_CHECKING:
    from diffseg_cli.batch.outcome import Outcome

LINE_SECONDS = 10  # between two lines of progress where there is no bar
MOST_NAMED = 20  # failures that are listed; the manifest has all
GO_ON = "Give the same command again to go on."


@dataclass
class Tally:
    """What became of the images of a run."""

    total: int
    done: int = 0
    skipped: int = 0
    empty: int = 0
    judged: int = 0  # by a presence score
    absent: int = 0
    failures: "list[Outcome]" = field(default_factory=list)
    failed: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.monotonic)

    def add(self, outcome: "Outcome") -> None:
        if outcome.row.error is not None:
            self.failed += 1
            self.failures = [*self.failures, outcome][:MOST_NAMED]
        elif outcome.skipped:
            self.skipped += 1
        else:
            self.done += 1
            for stage, spent in outcome.row.seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        self.empty += outcome.row.empty
        presence = outcome.row.presence
        if presence is not None:
            self.judged += 1
            self.absent += presence < PRESENT

    @property
    def seen(self) -> int:
        return self.done + self.skipped + self.failed

    @property
    def pace(self) -> float:
        """Images per second, skipped ones aside."""
        return (self.done + self.failed) / max(time.monotonic() - self.start, 1e-9)

    def line(self) -> str:
        left = (self.total - self.seen) / max(self.pace, 1e-9)
        shown = (
            f"{left / 3600:.1f} h"
            if left > 5400
            else f"{left / 60:.0f} min"
            if left > 90
            else f"{left:.0f} s"
        )
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.seen}/{self.total} images{failed}, {self.pace:.1f} per second, {shown} left"

    def tell(self) -> None:
        """The summary."""
        for outcome in self.failures:
            console.say(f"failed: {outcome.item.path}: {outcome.row.error}")
        if self.failed > len(self.failures):
            console.say(f"... and {self.failed - len(self.failures)} more; the manifest names them.")
        nothing = (
            f"{self.absent} without it (presence < {PRESENT:g})" if self.judged else f"{self.empty} empty"
        )
        counts = f"{self.done} done, {self.skipped} skipped, {self.failed} failed, {nothing}"
        pace = f" ({self.pace:.1f} per second)" if self.done > 1 else ""
        console.say(f"{counts}, in {time.monotonic() - self.start:.1f} s{pace}")
        if self.seconds and console.debugging():
            stages = ", ".join(f"{stage} {total:.1f}" for stage, total in self.seconds.items())
            console.say(f"seconds of all threads together: {stages}")

    def raise_failures(self, *, stopped: bool) -> None:
        """Raise PartialFailure if an image failed."""
        if self.failed:
            many = f"{self.failed} image{'s' if self.failed > 1 else ''} failed"
            if stopped:
                raise PartialFailure(f"Stopped: {many}.", f"Mend it. {GO_ON}")
            raise PartialFailure(
                f"{many} of {self.total}.", "Mend or remove them, and give the same command again."
            )


@contextmanager
def stop_gently(stop: Callable[[], None]) -> Iterator[set[int]]:
    """The first Ctrl-C or SIGTERM finishes what is in hand, the second ends at once; gives which came."""
    came: set[int] = set()

    def handle(number: int, _frame: object) -> None:
        if came:
            os._exit(ExitCode.INTERRUPTED)  # files are whole or not there; threads are not waited for
        came.add(number)
        stop()
        console.say("Finishing what is in hand; once more ends at once.")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def shown(outcomes: "Iterable[Outcome]", tally: Tally) -> "Iterator[Outcome]":
    """The outcomes, counted, with a bar on a terminal and a line now and then elsewhere."""
    if sys.stderr.isatty():
        with console.bars() as bars:
            task = bars.add_task("images", total=tally.total, figures="")
            for outcome in outcomes:
                tally.add(outcome)
                bars.update(task, completed=tally.seen, figures=f"{tally.pace:.1f} per second")
                yield outcome
        return
    last = time.monotonic()
    for outcome in outcomes:
        tally.add(outcome)
        if time.monotonic() - last > LINE_SECONDS and tally.seen < tally.total:
            console.say(tally.line())
            last = time.monotonic()
        yield outcome
