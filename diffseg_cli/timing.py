"""The stages of a run: what each of them costs, by any meter, and their wall time."""

import operator
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Stage = Callable[[str], AbstractContextManager[None]]  # `with stage("look"):`


def unmetered(_: str) -> AbstractContextManager[None]:
    """The stage nobody measures."""
    return nullcontext()


class Stopwatch:
    """Wall time between marks.

    Attributes:
        seconds: stage -> time since the mark before, or since it was made.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now


class Stages:
    """Charges what a meter reads to the stage in hand; a stage inside another is charged to itself alone.

    Args:
        read: what was spent since it was read before.
        combine: how two readings of one stage become one: sum, or max for peaks.

    Attributes:
        spent: stage -> what it cost. What was spent between stages is charged to none.
    """

    def __init__(
        self, read: Callable[[], float], combine: Callable[[float, float], float] = operator.add
    ) -> None:
        self.spent: dict[str, float] = {}
        self._read, self._combine, self._open = read, combine, list[str]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
            self._charge()
        finally:
            self._open.pop()

    def _charge(self) -> None:
        value = self._read()
        if self._open:
            name = self._open[-1]
            self.spent[name] = self._combine(self.spent[name], value) if name in self.spent else value
