"""Which pictures a batch works on, and where the results of each go: decided before anything runs.

A picture's key is its path below the folder it was found in, with forward slashes; results mirror it.
"""

import glob
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.files import Claims
from diffseg_cli.remote import SIGN, files_below, is_remote, matching, reaching, to_path
from diffseg_cli.results.formats import image_name

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
}
STREAM = "-"
THUMBNAILS = "index_thumbnails"
MASK_ENDING = "_mask"  # of what `segment`, `batch` and `mask` write, and of many data sets
REVIEW_LOG = "review.jsonl"  # makes a folder of masks a labelling project


@dataclass(frozen=True)
class Item:
    """One picture.

    Attributes:
        path: of the picture.
        key: where it lies below what was asked for, such as "day1/a.jpg".
    """

    path: Path
    key: str

    def outputs(self, patterns: Mapping[str, str]) -> dict[str, str]:
        """Result -> its file below the output folder, of `results.formats.image_patterns`."""
        names = {what: image_name(pattern, self.key) for what, pattern in patterns.items()}
        return {**names, "thumbnail": f"{THUMBNAILS}/{self.key}.jpg"}


# --- finding -------------------------------------------------------------------------------------------


def find_items(
    sources: Sequence[str], *, recursive: bool, out: Path, read_stdin: Callable[[], bytes]
) -> list[Item]:
    """Pictures in folders, patterns and lists, in the order of their keys, each once.

    Args:
        sources: folders, patterns such as "photos/**/*.jpg", text files with a path a line, pictures, or "-"
            for a list on stdin; all but the last may be URLs, as in `places`.
        recursive: look into the folders of folders.
        out: results go there, and pictures in it are never taken from a folder or pattern.
        read_stdin: gives the list of "-".

    Raises:
        UsageError: two pictures would have the same results.
        InputError: a source is not there, or there are no pictures.
    """
    items: dict[str, Item] = {}
    for source in sources:
        for item in _items_of(source, recursive=recursive, out=out.absolute(), read_stdin=read_stdin):
            other = items.setdefault(item.key, item)
            if other is not item and other.path.resolve() != item.path.resolve():
                raise UsageError(
                    f"{other.path} and {item.path} would both be written as {item.key}.",
                    "Run them apart with different --out.",
                )
    if not items:
        raise InputError(
            f"There are no pictures in {' or '.join(map(str, sources))}.",
            "Check the name; --recursive looks into folders of folders.",
        )
    return [items[key] for key in sorted(items)]


def _items_of(source: str, *, recursive: bool, out: Path, read_stdin: Callable[[], bytes]) -> Iterable[Item]:
    if source == STREAM:
        return _listed(read_stdin())
    path = to_path(source)
    if is_remote(path):
        with reaching(path):
            return _elsewhere(source, path, recursive=recursive, out=out)
    if path.is_dir():
        return (Item(p, p.relative_to(path).as_posix()) for p in images_in(path, recursive, out))
    if path.suffix.lower() == ".txt":
        try:
            return _listed(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the list's name.") from error
    if path.exists():
        return [Item(path, path.name)]
    if glob.has_magic(source):
        return _matching(source, out)
    raise InputError(
        f"{source} is no folder, picture, pattern or list.", "Check the name, or put a pattern in quotes."
    )


def images_in(folder: Path, recursive: bool, out: Path) -> Iterable[Path]:
    """Pictures by their suffix; nothing hidden, nothing in the output folder."""
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    inner = Path(here, entry.name)
                    if entry.is_dir():
                        if recursive and not entry.is_symlink() and inner.absolute() != out:
                            folders.append(inner)
                    elif inner.suffix.lower() in SUFFIXES:
                        yield inner
        except OSError as error:
            raise InputError(
                f"{here} cannot be listed: {error.strerror}.", "Check who may read it."
            ) from error


def _matching(pattern: str, out: Path) -> Iterable[Item]:
    """Files a pattern matches, below the last folder before its first wildcard."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    for path in root.glob("/".join(parts[fixed:])):
        below = path.relative_to(root)
        hidden = any(part.startswith(".") for part in below.parts)
        known = path.suffix.lower() in SUFFIXES and out not in path.absolute().parents
        if known and not hidden and path.is_file():
            yield Item(path, below.as_posix())


def _listed(content: bytes) -> Iterable[Item]:
    """Paths a line, or separated by NUL as `find -print0` does; below the folder that holds all of them.

    That is the current one where it does, so that lists of relative paths keep their folders.
    """
    separator = b"\0" if b"\0" in content else b"\n"
    lines = [os.fsdecode(line.rstrip(b"\r")) for line in content.split(separator)]
    names = [line for line in lines if line.strip()]
    if any(SIGN in name for name in names):
        return _listed_elsewhere([name.strip() for name in names])
    paths = [Path(name) for name in names]
    whole = [Path(os.path.normpath(path.absolute())) for path in paths]
    root = Path.cwd()
    if not all(root in path.parents for path in whole):
        try:
            root = Path(os.path.commonpath([path.parent for path in whole]))
        except ValueError as error:  # two drives
            raise UsageError("The list names pictures on several drives.", "Run them apart.") from error
    return [Item(path, full.relative_to(root).as_posix()) for path, full in zip(paths, whole, strict=True)]


def _elsewhere(source: str, path: Path, *, recursive: bool, out: Path) -> list[Item]:
    """As `_items_of`, of a URL. A folder there is whatever has files below it."""
    if path.is_dir():
        folder, names = path, files_below(path, recursive=recursive)
    elif path.suffix.lower() == ".txt":
        return list(_listed(path.read_bytes()))
    elif path.exists():
        return [Item(path, path.name)]
    elif glob.has_magic(source):
        folder, names = matching(source)
    else:
        raise InputError(f"{source} is no folder, picture, pattern or list.", "Check the name.")
    root = f"{str(out).rstrip('/')}/"
    return [
        Item(folder / name, name)
        for name in names
        if PurePosixPath(name).suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in name.split("/"))
        and not str(folder / name).startswith(root)
    ]


def _listed_elsewhere(names: Sequence[str]) -> list[Item]:
    """URLs of a list, below the folder that holds all of them."""
    halves = [name.partition(SIGN)[::2] for name in names]
    if len({protocol for protocol, _ in halves}) > 1:
        raise UsageError("The list names pictures on several file systems.", "Run them apart.")
    root = posixpath.commonpath([posixpath.dirname(rest) for _, rest in halves])
    keys = [rest[len(root) :].lstrip("/") for _, rest in halves]
    return [Item(to_path(name), key) for name, key in zip(names, keys, strict=True)]


# --- queries that may not be meant -----------------------------------------------------------------------


def without(items: Sequence[Item], patterns: Sequence[str]) -> list[Item]:
    """Items whose name and key match none of the patterns.

    Raises:
        InputError: none is left.
    """
    left = [
        item
        for item in items
        if not any(fnmatchcase(name, each) for each in patterns for name in (item.path.name, item.key))
    ]
    if not left:
        raise InputError("--exclude leaves no image to search.", "Give narrower patterns.")
    return left


def masks_among(items: Sequence[Item]) -> list[Item]:
    """Items that look like the mask of another one: `NAME_mask.png` beside `NAME.jpg`."""
    stems = {str(PurePosixPath(item.key).with_suffix("")): item for item in items}
    return [item for stem, item in stems.items() if stem.removesuffix(MASK_ENDING) in stems.keys() - {stem}]


# --- checks --------------------------------------------------------------------------------------------


def check_outputs(
    items: Sequence[Item],
    patterns: Mapping[str, str],
    out: Path,
    *,
    taken: Iterable[str],
    read: Iterable[Path],
) -> None:
    """Refuse a plan that would lose a result or an input.

    Args:
        items: the plan.
        patterns: as in `Item.outputs`.
        out: folder of the results.
        taken: other files of the run below `out`.
        read: supports and the like.

    Raises:
        UsageError: as `files.Claims.claim`.
    """
    claims = Claims(out, [*read, *(item.path for item in items)])
    claims.claim(taken, "the run itself")
    for item in items:
        claims.claim(item.outputs(patterns).values(), item.key)


# --- parts ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """The k-th of n shares of a plan. Keys decide, so machines need not agree on an order."""

    index: int = 1
    count: int = 1

    @property
    def whole(self) -> bool:
        return self.count == 1

    @property
    def tag(self) -> str:
        """For names of files."""
        return "" if self.whole else f"-{self.index}-of-{self.count}"

    def takes(self, item: Item) -> bool:
        """Whether a picture belongs to this part."""
        digest = hashlib.sha256(item.key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1
