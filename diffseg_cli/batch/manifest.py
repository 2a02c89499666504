"""What was done, one JSON line per image, so that a stopped run goes on and a finished one can be checked.

`manifest.jsonl`, or `manifest-K-of-N.jsonl` of a part, only ever grows. Of several lines of an image the
latest counts. A line that a killed run left half is cut off when its file is written to again, and skipped by
readers. Lines stay on disk: in memory is only where they are.
"""

import json
import shutil
import tempfile
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from diffseg_cli.files import LineLog, unwritable, whole_lines
from diffseg_cli.remote import is_remote

NAME = "manifest"
BUSY = "Wait for it, or share the work: --part 1/2 here, --part 2/2 there."


@dataclass(frozen=True)
class Row:
    """What became of one image.

    Attributes:
        key: of the image.
        input: its `path` from the output folder, `sha256` and `bytes`; of a failure the path alone.
        settings: hash of what decided the result.
        weights: hash of what computed it.
        outputs: result -> `path` below the output folder and `sha256`.
        found: `finding.scene_record`, or nothing of a failure.
        shapes: what files of the run need, `results.formats.shapes_of`.
        seconds: wall time of each stage.
        time: when it was finished, seconds since 1970.
        error: why it failed, or None.
    """

    key: str
    input: dict[str, Any]
    settings: str
    weights: str
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    time: float = 0.0
    error: str | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was found, though nothing failed."""
        return self.error is None and not self.found["mask_area"]

    @property
    def presence(self) -> float | None:
        """Score of the concept that is most likely there; None where there is no such score."""
        known = [each["presence"] for each in self.found.get("concepts", ()) if each["presence"] is not None]
        return max(known, default=None)


def _parse(line: bytes) -> Row | None:
    """None for a line that is damaged or no row; what somebody edited is damaged too."""
    try:
        row = Row(**json.loads(line))
        files = [row.input, *row.outputs.values()]
        hashes = [str(file["path"]) and file["sha256"] for file in files if row.error is None]
        dicts = (row.input, row.found, row.shapes, row.seconds)
        whole = isinstance(row.key, str) and isinstance(row.time, float | int)
        whole = whole and all(isinstance(each, dict) for each in dicts)
        whole = whole and all(isinstance(each, str) for each in hashes)
        return row if whole and (row.error is not None or row.found["mask_area"] >= 0) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _fetched(path: Path) -> BinaryIO:
    """A copy on this machine's disk: lines are looked up one by one."""
    copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - the reader closes it
    with path.open("rb") as stream:
        shutil.copyfileobj(stream, copy)
    copy.seek(0)
    return copy


class ManifestReader:
    """All manifests of a folder, merged.

    Args:
        out: the folder.
    """

    def __init__(self, out: Path) -> None:
        self._files: list[BinaryIO] = []
        self._places: dict[str, list[tuple[int, int]]] = {}  # key -> (file, offset), the latest of each file
        self._lock = threading.Lock()
        for path in sorted(out.glob(f"{NAME}*.jsonl"), key=str):
            self._index(path)

    def _index(self, path: Path) -> None:
        try:
            file = _fetched(path) if is_remote(path) else path.open("rb")
        except OSError as error:
            raise unwritable(path, error) from error
        number = len(self._files)
        self._files.append(file)
        for offset, line in whole_lines(file):
            row = _parse(line)
            if row is not None:
                places = self._places.setdefault(row.key, [])
                if places and places[-1][0] == number:
                    places.pop()
                places.append((number, offset))

    def rows(self, key: str) -> list[Row]:
        """What is known of an image, the latest last."""
        found = []
        with self._lock:
            for number, offset in self._places.get(key, ()):
                self._files[number].seek(offset)
                row = _parse(self._files[number].readline())
                if row is not None:
                    found.append(row)
        return sorted(found, key=lambda row: row.time)

    def keys(self) -> list[str]:
        """All images, sorted."""
        return sorted(self._places)

    def last_record(self, name: str) -> Any:
        """What was last written down under this name by `ManifestWriter.add_record`, or None."""
        latest, found = 0.0, None
        for file in self._files:
            file.seek(0)
            for line in file:
                if not (line.startswith(b'{"record"') and line.endswith(b"\n")):
                    continue
                record = json.loads(line)["record"]
                if name in record and record["time"] >= latest:
                    latest, found = record["time"], record[name]
        return found

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> "ManifestReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ManifestWriter:
    """One manifest that grows by whole lines; use it in a `with` block.

    Args:
        out: its folder.
        tag: of a part.

    Raises:
        UsageError: another run is writing it.
        InputError: it cannot be written.
    """

    def __init__(self, out: Path, tag: str = "") -> None:
        self._log = LineLog(out / f"{NAME}{tag}.jsonl", BUSY)

    def add(self, row: Row) -> None:
        """Write down what became of an image."""
        self._write(asdict(row))

    def add_record(self, record: dict[str, Any]) -> None:
        """Write down something about the run; it has a `time`."""
        self._write({"record": record})

    def flush(self) -> None:
        """Let readers see everything; here they do already."""

    def _write(self, content: dict[str, Any]) -> None:
        self._log.add(content)

    def __enter__(self) -> "ManifestWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
