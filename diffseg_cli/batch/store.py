"""The folder results go to: every file whole or not there, and leftovers of killed runs found again."""

import contextlib
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

from diffseg_cli.files import check_folder, replace_file, temporary_name, unwritable
from diffseg_cli.remote import OBJECT_STORES, is_remote, put, reaching, resolve_path

ABANDONED = 3600  # seconds after which a part that another machine began is taken for dead
CHUNK = 2**20
PROBE = ".diffseg-batch-probe"


class Store:
    """Files below one folder; by the tag of their part, runs side by side know their own temporary files."""

    def __init__(self, root: Path, tag: str = "") -> None:
        self.root, self.tag = root, tag
        self._prefix = f".diffseg-batch{tag or '-all'}-"

    def write(self, name: str, content: bytes) -> str:
        """Write a file under a temporary name and rename it; to an object store with one request.

        Returns:
            Its sha256.

        Raises:
            PlaceLost: a full or read-only disk, or the like.
            InputError: this one cannot be written.
        """
        path = self.root / name
        try:
            if is_remote(path):
                put(path, content, path.with_name(temporary_name(self._prefix)))
            else:
                replace_file(path, content, self._prefix)
        except OSError as error:
            raise unwritable(path, error) from error
        return hashlib.sha256(content).hexdigest()

    def sha256(self, name: str) -> str | None:
        """Of a file below the folder, or anywhere; None where it is not there or cannot be read."""
        digest = hashlib.sha256()
        try:
            with resolve_path(self.root, name).open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
        except OSError:
            return None
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        with contextlib.suppress(OSError):
            (self.root / name).unlink(missing_ok=True)

    def clean(self, names: Iterable[str]) -> None:
        """Delete what killed runs left in the folders of these files."""
        if getattr(self.root, "protocol", None) in OBJECT_STORES:
            return
        for folder in {(self.root / name).parent for name in names} | {self.root}:
            for partial in folder.glob(".diffseg-batch*.partial"):
                with contextlib.suppress(OSError):
                    own = partial.name.startswith(self._prefix)
                    if own or time.time() - partial.stat().st_mtime > ABANDONED:
                        partial.unlink()


def check_place(root: Path) -> None:
    """Check that results can be written to a place; leaves nothing behind.

    Raises:
        InputError: they cannot.
    """
    if not is_remote(root):
        check_folder(root)
        return
    with reaching(root):
        store = Store(root)
        store.write(PROBE, b"")
        store.remove(PROBE)
