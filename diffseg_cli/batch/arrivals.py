"""Images that arrive in a folder: which of them are whole.

The system tells of changes where it can (watchdog); as events get lost, on network folders above all, the
folder is also listed now and then. An image is taken for whole when its size and time have not changed for a
while. One that cannot be read then may still be on its way: it gets another chance when it changes, or, if
nothing happens any more, a last one later.
"""

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffseg_cli.batch.plan import Item
from diffseg_cli.batch.search import SUFFIXES, FolderSearch
from diffseg_cli.errors import InputError, MissingDependency

State = tuple[int, int]  # size in bytes, time of the last change in nanoseconds
LONGEST_SLEEP = 1.0  # seconds
PATIENCE = 5  # times the settling time: when an image that cannot be read is given up


@dataclass
class Pending:
    """An image that is waited for.

    Attributes:
        state: in which it was seen last.
        ready: when it is taken for whole, by the monotonic clock, if nothing changes.
        last: it could not be read in this state; once more, and it has failed.
    """

    state: State
    ready: float
    last: bool = False


class Arrivals:
    """What is new in a folder; use it in a `with` block.

    Args:
        folder: to watch.
        recursive: its folders too.
        out: results go there; where that is below `folder`, nothing in it counts.
        settle: seconds without a change after which an image is taken for whole.
        rescan: seconds between two listings of the folder.

    Attributes:
        listens: whether the system tells of changes; without, listing has to do.

    Raises:
        MissingDependency: watchdog is not installed.
    """

    def __init__(self, folder: Path, *, recursive: bool, out: Path, settle: float, rescan: float) -> None:
        self._folder = folder
        self._search = FolderSearch(folder, recursive=recursive, out=out)
        self._settle, self._rescan = settle, rescan
        self._waiting: dict[Path, Pending] = {}
        self._taken: dict[Path, Pending] = {}  # as they were when they were handed out
        self._heard: set[Path] = set()
        self._list_at = 0.0
        self._lock, self._news = threading.Lock(), threading.Event()
        self.listens = False
        self._observer: Any = None
        with suppress(OSError):  # the system has no more instances to watch with
            self._observer = _observer(self._hear, folder, recursive=recursive)

    def __enter__(self) -> "Arrivals":
        with suppress(OSError, RuntimeError):  # no more folders, or not this one; no more threads
            if self._observer is not None:
                self._observer.start()
                self.listens = True
        return self

    def __exit__(self, *_: object) -> None:
        if self.listens:
            self._observer.stop()
            self._observer.join()

    def wait(self) -> None:
        """Sleep until something may be new or whole."""
        now = time.monotonic()
        times = [self._list_at, *(pending.ready for pending in self._waiting.values())]
        self._news.wait(min(LONGEST_SLEEP, max(0.01, min(times) - now)))
        self._news.clear()

    def take(self) -> list[Item]:
        """Images that are whole and were not handed out as they are, in the order of their keys."""
        now = time.monotonic()
        with self._lock:
            seen, self._heard = self._heard, set()
            listing = now >= self._list_at
            if listing:
                self._list_at = now + self._rescan
        if listing:
            with suppress(InputError):  # the folder is away for a moment: a network, a removable disk
                seen |= set(self._search.images())
        for path in seen | self._waiting.keys():
            self._look(path, now)
        whole = [path for path, pending in self._waiting.items() if now >= pending.ready]
        for path in whole:
            self._taken[path] = self._waiting.pop(path)
        items = [Item(path, path.relative_to(self._folder).as_posix()) for path in whole]
        return sorted(items, key=lambda item: item.key)

    def expects(self, item: Item) -> bool:
        """Whether an image that could not be read is no failure: it is changing, young, or gone."""
        state, taken = _state(item.path), self._taken[item.path]
        if state is None:
            return True
        if state != taken.state:
            self._waiting[item.path] = Pending(state, time.monotonic() + self._settle)
            return True
        young = time.time() - state[1] / 1e9 < PATIENCE * self._settle
        if young and not taken.last:
            later = time.monotonic() + PATIENCE * self._settle
            self._waiting[item.path] = Pending(state, later, last=True)
            return True
        return False

    def _look(self, path: Path, now: float) -> None:
        """Renew what is known of an image."""
        state, pending, taken = _state(path), self._waiting.get(path), self._taken.get(path)
        if state is None or (pending is None and taken is not None and taken.state == state):
            self._waiting.pop(path, None)
        elif pending is None or pending.state != state:
            # What was there long before is whole: a start on a full folder need not wait for it.
            age = time.time() - state[1] / 1e9
            old = pending is None and taken is None and age > PATIENCE * self._settle and state[0] > 0
            self._waiting[path] = Pending(state, now if old else now + self._settle)

    def _hear(self, paths: Iterable[Path]) -> None:
        """Called by watchdog's thread."""
        with self._lock:
            for path in paths:
                below = path.relative_to(self._folder) if path.is_relative_to(self._folder) else Path()
                if any(part[0] == "." for part in below.parts) or self._search.holds_result(path):
                    continue
                if path.suffix.lower() in SUFFIXES:
                    self._heard.add(path)
                elif path.is_dir() and path != self._folder:
                    self._list_at = 0.0  # a folder may come with images in it
                else:
                    continue
                self._news.set()


def _state(path: Path) -> State | None:
    """None for what is gone, or is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if path.is_file() else None


def _observer(hear: Any, folder: Path, *, recursive: bool) -> Any:
    try:
        from watchdog.events import FileSystemEvent, FileSystemEventHandler
        from watchdog.observers import Observer
    except ImportError as error:
        raise MissingDependency(
            "Watching a folder needs watchdog, which is not installed.",
            "Install it with: pip install 'diffseg[watch]'",
        ) from error

    class Ear(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type in ("created", "modified", "moved", "closed"):
                hear([Path(str(name)) for name in (event.src_path, event.dest_path) if name])

    observer = Observer()
    observer.schedule(Ear(), str(folder), recursive=recursive)
    return observer
