"""What was decided about each image of a project: one JSON line per decision, in a file that only grows.

Of several lines of an image the last one counts; its `revision` is one more than that of the line before.
Whoever writes holds a lock, has read every line so far, and says which revision the decision was made on, so
that of two people who decide about the same image the second is told instead of overwriting the first.

After a kill the last line may be without its end: readers leave it, and the next writer cuts it off.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.files import LineLog, only_one, unwritable, whole_lines


class State(str, Enum):
    """What is known about an image."""

    UNTOUCHED = "untouched"
    PROPOSED = "proposed"  # by the model
    ACCEPTED = "accepted"  # a person took the proposal as it is
    CORRECTED = "corrected"  # a person drew or changed the mask
    NOTHING = "nothing here"  # a person says that no class is in the image
    FAILED = "failed"  # it cannot be read


REVIEWED = frozenset({State.ACCEPTED, State.CORRECTED, State.NOTHING})  # never changed by the model


class Outdated(UsageError):
    """A decision about an image that somebody else, or the model, has changed meanwhile."""


@dataclass(frozen=True)
class Review:
    """A decision about one image.

    Attributes:
        image: its key, the path below the folder of images.
        revision: 1 for the first decision about it; 0 before any.
        state: what it is now.
        mask_sha256: of its mask file, or None where there is none.
        presence: class -> presence score in [0, 1], of proposals of a calibrated model.
        doubt: expected loss of IoU of the proposal, in [0, 1]; None where no model looked.
        rejected: classes that the model had found and a person took away.
        error: why it failed, or None.
        time: of the decision, UTC in ISO 8601.
    """

    image: str
    revision: int = 0
    state: State = State.UNTOUCHED
    mask_sha256: str | None = None
    presence: dict[str, float] = field(default_factory=dict)
    doubt: float | None = None
    rejected: list[str] = field(default_factory=list)
    error: str | None = None
    time: str = ""

    @property
    def is_reviewed(self) -> bool:
        """Whether a person decided."""
        return self.state in REVIEWED


def _parse(record: Any) -> Review | None:
    """None for what is no decision, such as a line somebody edited badly."""
    try:
        review = Review(**{**record, "state": State(record["state"])})
        numbers = [review.doubt or 0, *review.presence.values()]
        whole = isinstance(review.image, str) and all(isinstance(each, int | float) for each in numbers)
        whole = whole and type(review.revision) is int and review.revision >= 0
        json.dumps(asdict(review), ensure_ascii=False, allow_nan=False).encode()  # as answers are
        texts = (review.mask_sha256, review.error, review.time, *review.rejected)
        return review if whole and all(text is None or isinstance(text, str) for text in texts) else None
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _is_project(record: Any) -> bool:
    """Whether this is what a line says of a project as a whole."""
    if not isinstance(record, dict) or not isinstance(record.get("classes", []), list):
        return False
    return all(isinstance(each, str) for each in (record.get("images", ""), *record.get("classes", [])))


class ReviewLog:
    """The log of one project, shared with other processes that have it open.

    Args:
        path: of the file, which need not exist yet.

    Attributes:
        project: the last line about the project as a whole, empty before the first.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.project: dict[str, Any] = {}
        self._reviews: dict[str, Review] = {}
        self._decided: list[str] = []  # the image of each line
        self._lock = threading.RLock()
        self._read_to, self._inode = 0, -1
        self.refresh()

    def get(self, image: str) -> Review:
        """The last decision about an image; state UNTOUCHED, revision 0 before any."""
        with self._lock:
            return self._reviews.get(image) or Review(image)

    def changed_since(self, version: int) -> tuple[int, set[str] | None]:
        """The present version, and the images decided about since another one; None if that is unknown."""
        with self._lock:
            present = len(self._decided)
            return present, set(self._decided[version:]) if 0 <= version <= present else None

    def refresh(self) -> None:
        """Read what other processes have written since.

        Raises:
            InputError: the file cannot be read.
        """
        with self._lock:
            try:
                with self.path.open("rb") as stream:
                    status = os.fstat(stream.fileno())
                    if status.st_ino != self._inode or status.st_size < self._read_to:  # edited by hand
                        self._reviews, self._decided, self.project, self._read_to = {}, [], {}, 0
                        self._inode = status.st_ino
                    stream.seek(self._read_to)
                    for _, line in whole_lines(stream):
                        self._read_to += len(line)
                        self._take(line)
            except FileNotFoundError:
                return
            except OSError as error:
                raise InputError(
                    f"{self.path} cannot be read: {error.strerror or error}.", "Check who may read it."
                ) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else writes inside this block, and everything written before has been read.

        Raises:
            InputError: the folder cannot be written.
        """
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        with self._lock, only_one(folder):
            self.refresh()
            yield

    def append(self, record: Review | dict[str, Any]) -> None:
        """Write a decision, or a line about the project; call it inside `writing`.

        Raises:
            InputError: it cannot be written; nothing of it is there.
        """
        with LineLog(self.path) as log:
            log.add({"project": record} if isinstance(record, dict) else asdict(record))
        self.refresh()

    def _take(self, line: bytes) -> None:
        """Use a line; one that somebody edited badly is left."""
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(record, dict) and _is_project(record.get("project")):
            self.project = record["project"]
        elif review := _parse(record):
            self._reviews[review.image] = review
            self._decided.append(review.image)


def now() -> str:
    """The present time, UTC in ISO 8601, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
