"""Remote folders and files: URLs of any file system known to fsspec, such as s3://bucket/photos.

Such a path is a `upath.UPath`, which has what is used of a `Path` here, and is typed as one. `file://` is a
path like any other.
"""

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from diffseg_cli.errors import DiffsegError, InputError, MissingDependency, UsageError

SIGN = "://"
LOCAL = ("file", "local")
# These show a file when all of it has arrived; on others it needs a temporary name until then.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "memory"}


def to_path(name: str) -> Path:
    """A path; a remote one where the name is a URL.

    Raises:
        UsageError: nobody knows this kind of URL.
        MissingDependency: a package for it is not installed.
    """
    protocol, sign, rest = name.partition(SIGN)
    if not sign:
        return Path(name)
    if protocol in LOCAL:
        return Path(rest)
    return cast(Path, _check(protocol)(name))


def is_remote(path: str | Path) -> bool:
    return not isinstance(path, str | Path)


@lru_cache
def _check(protocol: str) -> Any:
    """What makes paths of this kind."""
    try:
        from fsspec import get_filesystem_class
        from upath import UPath

        get_filesystem_class(protocol)
    except ImportError as error:
        more = "" if error.name in ("fsspec", "upath") else f"; {error}"
        raise MissingDependency(
            f"A package for {protocol}:// is not installed{more}.",
            "Install it with: pip install 'diffseg[cloud]', and s3fs for s3://, gcsfs for gs://, adlfs for az://.",
        ) from error
    except ValueError as error:
        raise UsageError(
            f"There is no file system for {protocol}://.", "Use for example s3://, gs:// or a path."
        ) from error
    return UPath


@contextmanager
def reaching(path: Path) -> Iterator[None]:
    """First contact with a file system: no credentials, no network and the like become an InputError."""
    try:
        yield
    except DiffsegError:
        raise
    except Exception as error:  # every store's client has errors of its own
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{path} cannot be reached: {reason}.", "Check the name, the credentials and the network."
        ) from error


# --- names ---------------------------------------------------------------------------------------------


def relative_path(folder: Path, path: Path) -> str:
    """How to get from a folder to a file: relative, so that both can move; whole where one is remote."""
    if is_remote(path):
        return str(path)
    if not is_remote(folder):
        try:
            return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
        except ValueError:  # another drive
            pass
    return path.absolute().as_posix()


def resolve_path(folder: Path, way: str) -> Path:
    """Where a `relative_path` leads."""
    if SIGN in way:
        return to_path(way)
    return Path(way) if is_remote(folder) and Path(way).is_absolute() else folder / way


# --- files -------------------------------------------------------------------------------------------


def files_below(folder: Path, *, recursive: bool) -> list[str]:
    """Names of the files in a remote folder, from there; one flat listing, whatever folders there are."""
    there = cast(Any, folder)
    names = there.fs.find(there.path, maxdepth=None if recursive else 1)
    return [_below(there.path, name) for name in names]


def matching(pattern: str) -> tuple[Path, list[str]]:
    """The last folder of a URL before its first wildcard, and the files that match, from there."""
    head = pattern.partition("*")[0].partition("?")[0].partition("[")[0]
    folder = cast(Any, to_path(posixpath.dirname(head) if SIGN in posixpath.dirname(head) else head))
    found = folder.fs.glob(str(to_path(pattern).path), detail=True)  # type: ignore[attr-defined]
    names = [name for name, detail in found.items() if detail["type"] == "file"]
    return folder, [_below(folder.path, name) for name in names]


def _below(folder: str, name: str) -> str:
    return name.lstrip("/")[len(folder.strip("/")) :].removeprefix("/")


def read_whole(path: Path) -> bytes:
    """The content of a file, with one request. Raises OSError and what its client raises."""
    if not is_remote(path):
        return path.read_bytes()
    there = cast(Any, path)
    return cast(bytes, there.fs.cat_file(there.path))


def put(path: Path, content: bytes, partial: Path) -> None:
    """Write a remote file so that it is whole or not there. Raises OSError and what its client raises."""
    there = cast(Any, path)
    if there.protocol in OBJECT_STORES:
        there.fs.pipe_file(there.path, content)
        return
    between = cast(Any, partial)
    there.fs.makedirs(there.parent.path, exist_ok=True)
    try:
        there.fs.pipe_file(between.path, content)
        there.fs.mv(between.path, there.path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
