"""What was done, one JSON line per image, so that a stopped run goes on and a finished one can be checked.

`manifest.jsonl`, or `manifest-K-of-N.jsonl` of a part, only ever grows. Of several lines of an image the
latest counts. A line that a killed run left half is cut off when its file is written to again, and skipped by
readers. Lines stay on disk: in memory is only where they are.
"""

import json
import tempfile
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffseg_cli.files import LineLog, unwritable, whole_lines
from diffseg_cli.remote import is_remote, reaching, read_whole

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
        time: when it was finished, seconds since 1970, by the clock of the machine that did it.
        order: one more than that of all rows of the image its writer knew: clocks of machines differ.
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
    order: int = 0
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
        whole = isinstance(row.key, str) and isinstance(row.time, float | int) and isinstance(row.order, int)
        whole = whole and all(isinstance(each, dict) for each in dicts)
        whole = whole and all(isinstance(each, str) for each in hashes)
        return row if whole and (row.error is not None or row.found["mask_area"] >= 0) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


class ManifestReader:
    """All manifests of a folder, merged; no file of them stays open, as there may be thousands.

    Raises:
        InputError: it is elsewhere and cannot be reached, or one of them cannot be read.
    """

    def __init__(self, out: Path) -> None:
        self._paths: list[Path] = []
        self._places: dict[str, list[tuple[int, int]]] = {}  # key -> (file, offset), the latest of each file
        self._records: list[dict[str, Any]] = []
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        if is_remote(out):  # lines are looked up one by one
            self._copies = tempfile.TemporaryDirectory(prefix="diffseg-")
        with reaching(out) if is_remote(out) else nullcontext():
            for path in sorted(out.glob(f"{NAME}*.jsonl"), key=str):
                self._index(path)

    def _index(self, path: Path) -> None:
        number = len(self._paths)
        try:
            if self._copies is not None:
                copy = Path(self._copies.name, str(number))
                copy.write_bytes(read_whole(path))
                path = copy
            self._paths.append(path)
            with path.open("rb") as file:
                for offset, line in whole_lines(file):
                    self._note(number, offset, line)
        except OSError as error:
            raise unwritable(path, error) from error

    def _note(self, number: int, offset: int, line: bytes) -> None:
        """Remember where a line is, or a record as it is."""
        row = _parse(line)
        if row is not None:
            places = self._places.setdefault(row.key, [])
            if places and places[-1][0] == number:
                places.pop()
            places.append((number, offset))
        elif line.startswith(b'{"record"'):
            with suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)["record"]
                self._records.append({"order": 0, **record})

    def rows(self, key: str) -> list[Row]:
        """What is known of an image, the latest last: by what knew of what, and only then by the clock."""
        found = []
        for number, offset in self._places.get(key, ()):
            with suppress(OSError), self._paths[number].open("rb") as file:
                file.seek(offset)
                row = _parse(file.readline())
                if row is not None:
                    found.append(row)
        return sorted(found, key=lambda row: (row.order, row.time))

    def keys(self) -> list[str]:
        """All images, sorted."""
        return sorted(self._places)

    def last_record(self, name: str) -> dict[str, Any] | None:
        """The last one with this name that `ManifestWriter.add_record` wrote, or None."""
        named = [record for record in self._records if name in record]
        return max(named, key=lambda record: (record["order"], record["time"]), default=None)

    def close(self) -> None:
        if self._copies is not None:
            self._copies.cleanup()

    def __enter__(self) -> "ManifestReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ManifestWriter:
    """The manifest of a folder, or of a part by its tag, that grows by whole lines; use it in a `with` block.

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
        """Write down something about the run; it has a `time` and an `order`, as rows have."""
        self._write({"record": record})

    def flush(self) -> None:
        """Let readers see everything; here they do already."""

    def _write(self, content: dict[str, Any]) -> None:
        self._log.add(content)

    def __enter__(self) -> "ManifestWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
