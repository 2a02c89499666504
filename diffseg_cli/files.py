"""Files out: each whole or not there, logs that survive a kill, and names that must not meet.

Nothing here calls fsync: after a kill every file is whole, after a power cut as whole as its file system
makes a rename.
"""

import errno
import io
import json
import os
import secrets
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from diffseg_cli.errors import InputError, UsageError

try:
    import fcntl
except ImportError:  # Windows, where two runs at once are not noticed
    fcntl = None  # type: ignore[assignment]

PREFIX = ".diffseg-"  # of temporary names: hidden, so that no search for images finds them
# What is wrong with the whole folder and not with one file: going on would fail for every image.
OF_THE_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
STEP = 2**16  # bytes looked at together when the last whole line is searched


class PlaceLost(InputError):
    """A folder that cannot be written any more as a whole: a long run stops."""


def unwritable(path: str | Path, error: Exception) -> InputError:
    """What to raise for a file that cannot be written."""
    reason, number = getattr(error, "strerror", None) or error, getattr(error, "errno", None)
    if number in OF_THE_PLACE:
        return PlaceLost(
            f"{path} cannot be written: {reason}. What was finished is kept.",
            "Make room or choose another --out, then give the same command again.",
        )
    if number == errno.ENAMETOOLONG:
        return InputError(f"{path} cannot be written: {reason}.", "Rename what it is named after.")
    return InputError(f"{path} cannot be written: {reason}.", "Choose a folder you may write to with --out.")


# --- whole files ---------------------------------------------------------------------------------------


def temporary_name(prefix: str = PREFIX) -> str:
    """A name nobody can guess and lay a link under."""
    return f"{prefix}{secrets.token_hex(8)}.partial"


@contextmanager
def replacing(path: Path, prefix: str = PREFIX) -> Iterator[BinaryIO]:
    """Write a file beside its place and rename it into it, so that it is never seen half written.

    Args:
        path: of the file; its folder is made. A link there is replaced, not followed.
        prefix: of the temporary name, for whoever looks for leftovers of killed runs.

    Yields:
        The file, to be written.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(temporary_name(prefix))
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: bytes | memoryview, prefix: str = PREFIX) -> None:
    """Write all of a file as `replacing` does."""
    with replacing(path, prefix) as stream:
        stream.write(content)


@contextmanager
def whole_file(path: str | Path) -> Iterator[io.BytesIO]:
    """Collect the bytes of a file; it appears under its name when they are complete, or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    content = io.BytesIO()
    yield content
    write_whole(path, content.getbuffer())


def write_whole(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file as `replace_file` does.

    Raises:
        InputError: it cannot be written.
    """
    try:
        replace_file(Path(path), content)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise unwritable(path, error) from error


def check_folder(folder: str | Path) -> None:
    """Check that results can be written to a folder, which need not exist yet; leaves nothing behind.

    Raises:
        InputError: it cannot be made or written, or is no folder.
    """
    existing = Path(folder)
    try:
        while not _is_there(existing):
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except (OSError, ValueError) as error:
        raise unwritable(folder, error) from error


def _is_there(path: Path) -> bool:
    """Like `exists`, but a path that never can be (a file as folder, too long a name) is an error."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


# --- logs ----------------------------------------------------------------------------------------------


class LineLog:
    """A file that only grows, by a JSON line a record; use it in a `with` block.

    The half line that a killed run left is cut off when the file is opened, and one that does not fit on the
    disk when it fails. Readers see whole lines with `whole_lines`.

    Args:
        path: of the file; its folder is made. A link there is an error.
        busy: the hint for a second run that wants to write the same file.

    Attributes:
        empty: whether it held no whole line when it was opened.

    Raises:
        UsageError: another run is writing it.
        InputError: it cannot be written.
    """

    def __init__(self, path: Path, busy: str = "Wait for it, or choose another --out.") -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_LINK, 0o666)
            self._file = os.fdopen(handle, "a+b", buffering=0)  # `close` closes it
            try:
                if not _claimed(handle):
                    raise UsageError(f"Another run is writing {path}.", busy)
                self.empty = self._repair() == 0
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise unwritable(path, error) from error

    def _repair(self) -> int:
        """Cut off a half line at the end; returns how many bytes are left."""
        start = end = self._file.seek(0, os.SEEK_END)
        while start > 0:
            start = max(0, start - STEP)
            self._file.seek(start)
            newline = self._file.read(STEP).rfind(b"\n")
            if newline >= 0:
                start += newline + 1
                break
        if start != end:
            self._file.truncate(start)
        return start

    def add(self, record: Any) -> None:
        """Add a line.

        Raises:
            InputError: it cannot be written; nothing of it is there.
        """
        line = memoryview(json.dumps(record).encode() + b"\n")
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Let another run write it."""
        self._file.close()

    def __enter__(self) -> "LineLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def whole_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each line of a log that was written to its end."""
    offset = 0
    for line in stream:
        if line.endswith(b"\n"):
            yield offset, line
        offset += len(line)


def _claimed(handle: int) -> bool:
    """Lock an open file until it is closed or the process ends; False where another process holds it."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Wait until no other process is in a block like this with the same folder; elsewhere nobody waits."""
    if fcntl is None or not isinstance(folder, Path):
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# --- names ---------------------------------------------------------------------------------------------


def folded(name: str) -> str:
    """What file systems that ignore case and Unicode forms take for the same name (Unicode 3.13, D145)."""
    decomposed = unicodedata.normalize("NFD", name.replace(os.sep, "/"))
    return unicodedata.normalize("NFC", decomposed.casefold())


def true_name(path: str | Path) -> str:
    """The name under which two ways to the same file are one; of a place elsewhere its URL."""
    return os.path.realpath(path) if isinstance(path, str | Path) else str(path)


class Claims:
    """Which file belongs to whom, so that none replaces another or one that is read.

    Args:
        root: folder of the results, or its URL.
        read: files the run reads: supports, images and the like.
    """

    def __init__(self, root: Path, read: Iterable[Path]) -> None:
        self._root, self._true_root = root, true_name(root)
        self._owners: dict[str, str] = {}
        self._read = {folded(true_name(path)) for path in read}

    def claim(self, names: Iterable[str], owner: str) -> None:
        """Claim names below the folder.

        Raises:
            UsageError: another owner has one of them, also where case is ignored, or it is read.
        """
        for name in names:
            other = self._owners.setdefault(folded(name), owner)
            if other != owner:
                raise UsageError(
                    f"{other} and {owner} would both be written to {self._root / name}.",
                    "Rename one of them, or run them apart with different --out.",
                )
            if folded(f"{self._true_root}/{name}") in self._read:
                raise UsageError(
                    f"{self._root / name} is read by this run and would be overwritten.",
                    "Choose another --out.",
                )
