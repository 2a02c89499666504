"""What became of an image of a batch, and the bytes it was made from."""

import stat
from dataclasses import dataclass
from pathlib import Path

from diffseg_cli.batch.manifest import Row
from diffseg_cli.batch.plan import Item
from diffseg_cli.errors import DiffsegError, InputError
from diffseg_cli.remote import is_remote, read_whole

MOST_BYTES = 512_000_000  # of a file; an uncompressed image of 100 megapixels has 300


@dataclass(frozen=True)
class Outcome:
    """What became of an image in this run.

    Attributes:
        item: the image.
        row: what the manifest says of it.
        skipped: it was done by an earlier run, and all of it still agrees.
        notes: as in `finding.Answer`.
    """

    item: Item
    row: Row
    skipped: bool = False
    notes: tuple[str, ...] = ()


def reason_of(error: Exception) -> str:
    """One sentence about a failure."""
    if isinstance(error, DiffsegError):
        return error.message
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def read_input(path: Path) -> bytes:
    """The content of an image's file, here or elsewhere. Raises InputError: it cannot be read."""
    try:
        status = path.stat()
        if not is_remote(path) and not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise InputError(f"{path} is not a regular file.", "Save the image to a file first.")
        size = status.st_size
        if size > MOST_BYTES:
            raise InputError(
                f"{path} is too large: {size // 10**6} MB of at most {MOST_BYTES // 10**6}.", "Scale it down."
            )
        return read_whole(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist any more.", "Check the name.") from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be read: {reason}.", "Check who may read it.") from error
