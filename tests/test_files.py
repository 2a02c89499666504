"""Files out under injected faults: full disk, kill, planted links, other runs; and names that meet."""

import errno
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from diffseg_cli import files
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.files import (
    Claims,
    LineLog,
    PlaceLost,
    check_folder,
    folded,
    replace_file,
    unwritable,
    whole_file,
    whole_lines,
    write_whole,
)

ROOM = 1000  # bytes a file may grow to where the disk is "full"


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow past `ROOM`: the system itself breaks off in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- whole files ---------------------------------------------------------------------------------------


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    with full_disk(), pytest.raises(InputError, match=r"m\.png cannot be written: File too large"):
        write_whole(path, bytes(5 * ROOM))
    assert path.read_bytes() == b"old" and names(tmp_path) == ["m.png"]
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken cannot be written"):
        write_whole(tmp_path / "taken", b"whole")
    assert names(tmp_path) == ["m.png", "taken"]


KILLED = """
import os, signal, sys
from pathlib import Path
from diffseg_cli import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_whole(Path(sys.argv[1]), b"new")
"""


def test_a_kill_between_write_and_rename_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL and path.read_bytes() == b"old"
    hidden = [name for name in names(tmp_path) if name != "m.png"]
    assert len(hidden) == 1 and hidden[0].startswith(files.PREFIX)  # passed over by every search
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_links_that_somebody_laid_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_bytes(b"precious")
    folder.mkdir()
    for name in ("m.png", f"{files.PREFIX}guessed.partial"):
        (folder / name).symlink_to(victim)
    write_whole(folder / "m.png", b"mask")
    assert not (folder / "m.png").is_symlink() and (folder / "m.png").read_bytes() == b"mask"
    monkeypatch.setattr(secrets, "token_hex", lambda _: "guessed")
    with pytest.raises(InputError, match="cannot be written: File exists"):
        write_whole(folder / "m.png", b"other")
    (folder / "log.jsonl").symlink_to(victim)
    with pytest.raises(InputError, match=r"log\.jsonl cannot be written"):
        LineLog(folder / "log.jsonl")
    assert victim.read_bytes() == b"precious" and (folder / "m.png").read_bytes() == b"mask"
    assert names(folder) == [f"{files.PREFIX}guessed.partial", "log.jsonl", "m.png"]


def test_temporary_names_cannot_be_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    real = os.replace

    def replace(partial: Path, path: Path) -> None:
        used.append(partial.name)
        real(partial, path)

    monkeypatch.setattr(os, "replace", replace)
    for _ in range(3):
        replace_file(tmp_path / "a", b"", ".mine-")
    assert len(set(used)) == 3 and all(name.startswith(".mine-") and len(name) > 20 for name in used)


def test_files_are_as_readable_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "m.png", b"")
    assert (tmp_path / "m.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_longest_possible_name_can_be_written_and_a_longer_one_says_what_to_do(tmp_path: Path) -> None:
    write_whole(tmp_path / ("n" * 255), b"")
    with pytest.raises(InputError, match="File name too long") as caught:
        write_whole(tmp_path / ("n" * 256), b"")
    assert "Rename" in str(caught.value.hint)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_is_wrong_with_the_whole_folder_ends_a_run(code: int) -> None:
    assert isinstance(unwritable("a", OSError(code, os.strerror(code))), PlaceLost)
    assert not isinstance(unwritable("a", OSError(errno.EACCES, "no")), PlaceLost)


def test_folders_are_tried_without_being_made(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "not" / "yet")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    for folder in ("file", "file/below", "nul\0", "l" * 300):
        with pytest.raises(InputError, match="cannot be written") as caught:
            check_folder(tmp_path / folder)
        assert caught.value.hint


# --- logs ----------------------------------------------------------------------------------------------


def read(path: Path) -> list[object]:
    with path.open("rb") as stream:
        return [json.loads(line) for _, line in whole_lines(stream)]


@pytest.mark.parametrize("left", [b"", b'{"half": ', b"\n", b"x" * (files.STEP + 5), b"x" * files.STEP])
def test_a_log_goes_on_after_a_half_line(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "new" / "log.jsonl"
    with LineLog(path) as log:
        assert log.empty
        log.add({"number": 1})
    whole = path.read_bytes() + (left if left == b"\n" else b"")
    path.write_bytes(path.read_bytes() + left)
    with LineLog(path) as log:
        assert not log.empty and path.read_bytes() == whole
        log.add({"number": 2})
    assert path.read_bytes() == whole + b'{"number": 2}\n'


def test_a_log_of_one_half_line_is_empty(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"number"')
    with LineLog(tmp_path / "log") as log:
        assert log.empty
    assert (tmp_path / "log").read_bytes() == b""


def test_a_line_that_does_not_fit_leaves_nothing_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with LineLog(path) as log:
        log.add("first")
        with full_disk(), pytest.raises(InputError, match="log cannot be written"):
            log.add("x" * 5 * ROOM)
        log.add("second")
    assert read(path) == ["first", "second"]


def test_readers_pass_over_a_half_line_and_know_where_lines_start(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'"ab"\n"c"\n"half')
    with (tmp_path / "log").open("rb") as stream:
        assert list(whole_lines(stream)) == [(0, b'"ab"\n'), (5, b'"c"\n')]


def test_one_run_writes_a_log_at_a_time(tmp_path: Path) -> None:
    with LineLog(tmp_path / "log"):
        with pytest.raises(UsageError, match=r"Another run is writing .*log\.") as caught:
            LineLog(tmp_path / "log", "Wait.")
        assert caught.value.hint == "Wait."
    LineLog(tmp_path / "log").close()


# --- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A.PNG", "a.png"),
        ("caf\u00e9", "cafe\u0301"),
        ("CAFE\u0301", "caf\u00e9"),
        ("\u1fb3\u0345", "\u0391\u0345\u0345"),
    ],
)
def test_names_that_some_disks_take_for_one(one: str, other: str) -> None:
    assert one != other and folded(one) == folded(other)
    claims = Claims(Path("out"), [])
    claims.claim([one], "first")
    claims.claim([one], "first")
    with pytest.raises(UsageError, match="first and second would both be written to out"):
        claims.claim(["b", other], "second")


def test_what_is_read_is_not_overwritten_by_any_way_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    claims = Claims(tmp_path / "link", [tmp_path / "real" / "x" / ".." / "A.png"])
    with pytest.raises(UsageError, match="is read by this run"):
        claims.claim(["a.png"], "a")
