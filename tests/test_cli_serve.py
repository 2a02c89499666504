"""`diffseg serve` from the outside: what it refuses, what it prints, how it ends."""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from typer.testing import CliRunner

from diffseg_cli import __main__ as command_line
from diffseg_cli.cli import main
from diffseg_cli.serve import connections
from diffseg_cli.serve.server import address_of, open_socket, run_server

REPOSITORY = Path(__file__).parents[1]
BIRD = REPOSITORY / "examples" / "bird"
TOKEN = "a-token-of-some-length"

REFUSED: list[tuple[tuple[str, ...], dict[str, str], str, str]] = [
    (("--host", "0.0.0.0"), {}, "Anyone who reaches 0.0.0.0 could use", "Set DIFFSEG_TOKEN to a token"),
    (("--host", "example.com"), {}, "Anyone who reaches example.com", "Set DIFFSEG_TOKEN"),
    (("--host", "0.0.0.0", "--token", "short"), {}, "A token has 16 characters or more", "Make one with"),
    ((), {"DIFFSEG_TOKEN": "with spaces in between them"}, "A token has 16 characters", "Make one with"),
    (("--host", "192.0.2.1", "--token", TOKEN), {}, "192.0.2.1 port 8000 cannot be used", "another --port"),
    (("--concept", "none.dsc"), {}, "none.dsc cannot be read", "Check the path"),
]


@pytest.mark.parametrize(("options", "environment", "error", "hint"), REFUSED)
def test_a_server_that_cannot_be_is_refused_before_the_model_is_loaded(
    options: tuple[str, ...], environment: dict[str, str], error: str, hint: str
) -> None:
    result = CliRunner(env=environment).invoke(main.app, ["serve", *options])
    assert result.exit_code in (2, 4), result.output
    assert f"error: {error}" in result.stderr and hint in result.stderr and result.stdout == ""


def test_a_token_comes_from_a_file(tmp_path: Path) -> None:
    kept = tmp_path / "token"
    kept.write_text("short\n")
    result = CliRunner().invoke(main.app, ["serve", "--host", "0.0.0.0", "--token-file", str(kept)])
    assert result.exit_code == 2 and "A token has 16 characters or more" in result.stderr
    result = CliRunner().invoke(main.app, ["serve", "--token-file", str(tmp_path / "none")])
    assert result.exit_code == 2 and "none cannot be read: No such file" in result.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(main.app, ["serve", "--port", port])
    assert result.exit_code == 2
    assert f"error: 127.0.0.1 port {port} cannot be used: Address already in use." in result.stderr


def test_without_its_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "diffseg_cli.serve.server")
    result = CliRunner().invoke(main.app, ["serve"])
    assert result.exit_code == 2
    assert "hint: Install it with: pip install 'diffseg[serve]'" in result.stderr


@pytest.mark.parametrize(("number", "interrupted"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_lets_the_request_in_hand_finish(number: signal.Signals, interrupted: bool) -> None:
    arrived, answers = threading.Event(), list[Any]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            arrived.set()
            await Request(scope, receive).body()
            import asyncio

            await asyncio.sleep(0.4)
            await PlainTextResponse("done")(scope, receive, send)

    opened = open_socket("localhost", 0)
    address = address_of(opened)

    def ask_and_stop() -> None:
        asker = threading.Thread(target=lambda: answers.append(urllib.request.urlopen(address).read()))
        asker.start()
        arrived.wait(10)
        os.kill(os.getpid(), number)
        asker.join(10)

    before = signal.getsignal(number)
    helper = threading.Thread(target=ask_and_stop)
    assert run_server(app, opened, 10, helper.start) is interrupted
    helper.join(10)
    assert answers == [b"done"] and signal.getsignal(number) is before


def test_addresses_are_those_a_browser_takes() -> None:
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        assert address_of(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}/"


def test_the_command_serves_a_concept_and_ends_with_130(tmp_path: Path) -> None:
    concept = tmp_path / "bird.dsc"
    command = [sys.executable, "-m", "diffseg_cli"]
    pair = ["--support", BIRD / "support.jpg", "--mask", BIRD / "support_mask.png"]
    subprocess.run([*command, "concept", "make", concept, *pair], cwd=REPOSITORY, check=True)
    server = subprocess.Popen(
        [*command, "serve", "--port", "0", "--concept", concept, "--json"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout
        ready = json.loads(server.stdout.readline())
        assert ready["concepts"] == ["bird"] and ready["model"] == "compact"
        with urllib.request.urlopen(ready["url"] + "v1/concepts") as answer:
            assert [each["id"] for each in json.load(answer)["concepts"]] == ["bird"]
    finally:
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=20)
    assert (server.returncode, out) == (130, "")
    assert err.endswith("Ready; Ctrl-C ends it.\nStopped; every request in hand was answered.\n"), err


def test_a_server_that_cannot_say_where_it_is_ends(caplog: pytest.LogCaptureFixture) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_server(PlainTextResponse("here"), open_socket("localhost", 0), 1, full)
    assert caplog.text == ""


def test_sigterm_ends_it_while_it_loads_as_the_first_process_of_a_container() -> None:
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "diffseg_cli", "serve"]
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([*command[:4], "true"], capture_output=True, check=False).returncode:
        pytest.skip("a process may make no PID namespace here")
    outer = subprocess.Popen([*command, "--port", "0"], cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        kids = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        while not (kid := kids.read_text().strip()) or not _heeds(kid, signal.SIGTERM):
            assert outer.poll() is None
        os.kill(int(kid), signal.SIGTERM)
        out, _ = outer.communicate(timeout=20)
    finally:
        outer.kill()
    assert (outer.returncode, out) == (128 + signal.SIGTERM, b"")


def test_ctrl_c_before_a_verb_begins_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", interrupt)
    with pytest.raises(SystemExit) as left:
        command_line.main()
    assert left.value.code == 130


def _heeds(process: str, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    (caught,) = re.findall(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{process}/status").read_text())
    return bool(int(caught, 16) >> (number - 1) & 1)


# --- silent connections --------------------------------------------------------------------------------


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch, seconds: float, most: int = 200) -> Iterator[int]:
    """The port of a server whose connections may be silent for so long, and so many."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", seconds)
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", most)
    app = PlainTextResponse("here")
    server = uvicorn.Server(uvicorn.Config(app, http=connections.BoundedProtocol, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as opened:
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        yield opened.getsockname()[1]
        server.should_exit = True
        thread.join()


def ask(port: int) -> bytes:
    content: bytes = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20).read()
    return content


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_request_that_never_ends_its_headers_is_dropped(
    monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    with running(monkeypatch, seconds=0.5) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(begun)
        slow.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(100) == b""
        assert ask(port) == b"here"


def test_a_second_request_of_a_connection_has_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(monkeypatch, seconds=0.5) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.settimeout(20)
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not slow.recv(1000).endswith(b"here"):
            pass
        slow.sendall(b"GET / HT")
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(100) == b""


def test_more_connections_than_allowed_are_refused_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(monkeypatch, seconds=1, most=5) as port:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for each in silent:
            each.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(10) == b""
            each.close()
        assert ask(port) == b"here"


def test_a_log_cannot_be_made_to_grow() -> None:
    record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 0, "Invalid HTTP request", (), None)
    bounded = connections.Bounded()
    assert sum(bounded.filter(record) for _ in range(10_000)) <= 2 * connections.LINES_PER_MINUTE
