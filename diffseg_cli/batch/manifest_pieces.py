"""A manifest in an object store, where nothing can be appended to: it grows by whole pieces.

`manifest-START-NUMBER.jsonl` (with the part before START) holds what was done since the piece before; readers
merge pieces as they merge manifests of parts. What a killed run had not sent is done again.
"""

import json
import time
from pathlib import Path
from typing import Any

from diffseg_cli.batch.manifest import NAME, ManifestWriter
from diffseg_cli.batch.store import Store
from diffseg_cli.remote import is_remote

SECONDS = 30.0  # between two pieces
MOST_BYTES = 8_000_000  # of a piece


class PieceWriter(ManifestWriter):
    """As `ManifestWriter`, but nobody is kept out: two runs of the same share do the same work twice."""

    def __init__(self, out: Path, tag: str = "") -> None:
        self._store, self._waiting, self._number = Store(out, tag), bytearray(), 0
        self._stem, self._sent = f"{NAME}{tag}-{time.time_ns():x}", time.monotonic()

    def _write(self, content: dict[str, Any]) -> None:
        self._waiting += json.dumps(content).encode() + b"\n"
        if len(self._waiting) >= MOST_BYTES or time.monotonic() - self._sent >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what waits as a piece."""
        if self._waiting:
            self._store.write(f"{self._stem}-{self._number:06}.jsonl", bytes(self._waiting))
            self._waiting.clear()
            self._number += 1
        self._sent = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.flush()


def open_writer(out: Path, tag: str) -> ManifestWriter:
    """The writer for a folder; raises as it."""
    return PieceWriter(out, tag) if is_remote(out) else ManifestWriter(out, tag)
