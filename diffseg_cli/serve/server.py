"""Run the application: a socket, signals, and an end that leaves nothing unanswered."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from diffseg_cli.errors import UsageError
from diffseg_cli.serve.connections import BoundedProtocol, bound_logs

STOPPING = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """uvicorn's server, that says when it is ready and which signal ended it."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self.stopped_by: int | None = None
        self.unsaid: OSError | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            try:
                self._on_ready()
            except OSError as error:  # raised in here, uvicorn would log it at length
                self.unsaid, self.should_exit = error, True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal, and at once on a second; uvicorn's own would raise it again at the end."""

        def stop(number: int, _: object) -> None:
            self.force_exit = self.stopped_by is not None
            self.stopped_by = self.stopped_by or number
            self.should_exit = True

        before = {number: signal.signal(number, stop) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def open_socket(host: str, port: int) -> socket.socket:
    """Reserve an address of this machine (port 0 takes a free one); nobody can connect until the server runs.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        raise UsageError(
            f"{host} port {port} cannot be used: {error.strerror or error}.",
            "Choose another --port (0 takes a free one) or --host.",
        ) from error
    return opened


def address_of(opened: socket.socket) -> str:
    """The URL under which a socket is reached from this machine."""
    host, port = opened.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run_server(app: ASGIApp, opened: socket.socket, seconds: float, on_ready: Callable[[], None]) -> bool:
    """Serve until a signal comes; then take no more requests and finish those in hand, for so many seconds.

    `on_ready` is called once requests are taken.

    Returns:
        Whether Ctrl-C ended it, and not a polite SIGTERM.

    Raises:
        OSError: `on_ready` could not say what it should.
    """
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(seconds) + 1,
    )
    bound_logs()
    server = _Server(config, on_ready)
    with opened:
        asyncio.run(server.serve(sockets=[opened]))
    if server.unsaid is not None:
        raise server.unsaid
    return server.stopped_by == signal.SIGINT
