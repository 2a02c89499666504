"""Wall time of the stages of a run."""

import time


class Watch:
    """Wall time between marks.

    Attributes:
        seconds: stage -> time since the mark before, or since the watch was made.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now
