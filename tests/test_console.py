"""What reaches a terminal: any name in any encoding, no control characters, no colour that is not wanted."""

import os
import pty
import subprocess
import sys

import pytest

NAMES = ["\u65e5\u672c.png", "caf\u00e9.png", "bytes\udce9.png"]
RESULTS = """
import sys
from diffseg_cli.cli import console
console.prepare_streams()
for name in ["\\u65e5\\u672c.png", "caf\\u00e9.png", "bytes\\udce9.png"]:
    console.result(name)
    console.say(name)
"""
HOSTILE = """
from diffseg_cli.cli import console
console.prepare_streams()
for tell in (console.result, console.say, console.note, console.error):
    tell("a\\x1b]0;owned\\x07\\x9b31m\\tb\\r.png")
"""


def python(script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    settings = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("encoding", "lines"),
    [
        ("ascii", [b"\\u65e5\\u672c.png", b"caf\\xe9.png", b"bytes\xe9.png"]),
        ("cp1252", [b"\\u65e5\\u672c.png", b"caf\xe9.png", b"bytes\xe9.png"]),
        ("utf-8", ["\u65e5\u672c.png".encode(), "caf\u00e9.png".encode(), b"bytes\xe9.png"]),
    ],
)
def test_no_character_of_a_name_ends_a_run(encoding: str, lines: list[bytes]) -> None:
    done = python(RESULTS, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == lines and done.stderr.count(b".png") == 3


def test_control_characters_never_reach_the_terminal() -> None:
    """In a pipe a name stays as it is, for the next program; stderr is for people, wherever it goes."""
    done = python(HOSTILE)
    assert done.stdout == "a\x1b]0;owned\x07\x9b31m\tb\r.png\n".encode()
    assert done.stderr.count(b"a\\x1b]0;owned\\x07\\x9b31m\tb\\x0d.png\n") == 3
    assert not {0x1B, 0x07, 0x0D} & set(done.stderr)


@pytest.mark.parametrize(
    ("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_left_out_where_it_is_not_wanted(environment: dict[str, str], colored: bool) -> None:
    terminal, end = pty.openpty()
    settings = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    done = subprocess.run(
        [sys.executable, "-m", "diffseg_cli", "edges", "nowhere.png"],
        env={**settings, "TERM": "xterm", **environment},
        stdout=end,
        stderr=end,
        check=False,
    )
    os.close(end)
    told = os.read(terminal, 10_000)
    os.close(terminal)
    assert done.returncode == 3 and b"nowhere.png does not exist" in told
    assert (b"\x1b[" in told) == colored


def test_a_full_place_for_stdout_is_said_in_a_sentence() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "diffseg_cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 3
    assert (
        done.stderr.decode().splitlines()[0]
        == "error: The output cannot be written: No space left on device."
    )
    assert b"Exception ignored" not in done.stderr


def test_closed_streams_change_no_exit_code() -> None:
    command = f"{sys.executable} -m diffseg_cli --version <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False).returncode == 0
    command = f"{sys.executable} -m diffseg_cli edges nowhere.png <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False).returncode == 3
