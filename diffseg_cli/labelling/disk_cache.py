"""Files that can be made again, kept in a folder within a bound: what was not used for longest goes first."""

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path

from diffseg_cli.files import replace_file

KEPT_SHARE = 0.8  # of the bound that is left when files are removed


class DiskCache:
    """A cache of files. Every method may be called from any thread; the folder may be deleted at any time.

    Args:
        folder: of the files; it is made with the first one.
        most_bytes: of all of them.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most_bytes = folder, most_bytes
        self._lock = threading.Lock()
        self._bytes = sum(status.st_size for _, status in self._files())

    def get(self, name: str) -> bytes | None:
        """The content of a file, or None where it is not kept."""
        path = self._folder / name
        with suppress(OSError):
            content = path.read_bytes()
            os.utime(path)  # it was just used
            return content
        return None

    def put(self, name: str, content: bytes) -> None:
        """Keep a file; where the disk takes none, it is made again the next time."""
        with suppress(OSError):
            replace_file(self._folder / name, content)
            with self._lock:
                self._bytes += len(content)
                if self._bytes > self._most_bytes:
                    self._remove_oldest()

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self._folder.glob("*"):
            with suppress(OSError):  # another process removed it
                found.append((path, path.stat()))
        return found

    def _remove_oldest(self) -> None:
        files = sorted(self._files(), key=lambda each: each[1].st_mtime_ns)
        self._bytes = sum(status.st_size for _, status in files)  # other processes write here as well
        for path, status in files:
            if self._bytes <= KEPT_SHARE * self._most_bytes:
                return
            path.unlink(missing_ok=True)
            self._bytes -= status.st_size


def name_of(*parts: object) -> str:
    """A file name that stands for values."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:40]


def stamp_of(path: Path) -> tuple[int, int]:
    """What changes with the content of a file; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)
