"""A file to read, wherever its bytes are: what every reader of this folder takes."""

import errno
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from diffseg_cli.errors import InputError


@dataclass(frozen=True)
class InputFile:
    """A file on disk, or content that came another way: a pipe, a request, an object store.

    Attributes:
        name: what messages and notes call it; never opened.
        content: where it is, or all of it.
        file_name: what an annotation file may call it, with any folders; None if it has none.
    """

    name: str
    content: Path | bytes
    file_name: str | None = None

    def open(self) -> BinaryIO:
        """Its bytes from the start. Raises OSError: it cannot be opened, or is no regular file."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        if self.is_special:
            raise OSError(errno.EINVAL, "not a regular file")
        return self.content.open("rb")

    @property
    def is_special(self) -> bool:
        """A pipe, a device or the like: opening one may wait for ever."""
        path = self.content
        return isinstance(path, Path) and path.exists() and not (path.is_file() or path.is_dir())

    def head(self, count: int) -> bytes:
        """Its first bytes; none of a file that cannot be read, so that its reader says why."""
        try:
            with self.open() as stream:
                return stream.read(count)
        except (OSError, ValueError):
            return b""

    def read(self, most_bytes: int, too_large: str) -> bytes:
        """All of it.

        Raises:
            InputError: it cannot be read, or holds more than `most_bytes`, with the hint `too_large`.
        """
        try:
            with self.open() as stream:
                content = stream.read(most_bytes + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{self.name} cannot be read: {reason}.", "Check the path and its permissions."
            ) from error
        if len(content) > most_bytes:
            raise InputError(f"{self.name} is larger than {most_bytes // 10**6} MB.", too_large)
        return content


def as_file(source: str | Path | InputFile) -> InputFile:
    """A path as a file whose name is the path."""
    return source if isinstance(source, InputFile) else InputFile(str(source), Path(source), str(source))
