"""Connections that say nothing, or half of something: closed after a while, and not too many at once."""

import asyncio
import logging
import time

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # from the first byte of a request, or the connection, to the end of its headers
MOST_CONNECTIONS = 200  # below the 256 open files that some systems allow a process
LINES_PER_MINUTE = 20  # of a log: whoever sends rubbish does not fill the disk


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 of one connection."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._begin()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end()  # from here on the guard watches the time
        elif self._deadline is None:
            self._begin()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:
            self._end()  # the next request had come already

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Bounded(logging.Filter):
    """Lets a log through as long as it says little."""

    def __init__(self) -> None:
        super().__init__()
        self._minute, self._lines = 0, 0

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002 - what it says does not matter
        minute = int(time.monotonic() / 60)
        if minute != self._minute:
            self._minute, self._lines = minute, 0
        self._lines += 1
        return self._lines <= LINES_PER_MINUTE


def bound_logs() -> None:
    """Bound what the server and the event loop log."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(each, Bounded) for each in logger.filters):
            logger.addFilter(Bounded())
