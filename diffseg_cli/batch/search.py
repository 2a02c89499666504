"""Finding images in folders, by patterns, from lists and at URLs; neither hidden files nor results nor pipes.

What cannot be entered or read as a file is left out, and named once; the rest is found all the same.
"""

import codecs
import glob
import os
import posixpath
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from diffseg_cli.batch.plan import Item
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.files import true_name
from diffseg_cli.remote import SIGN, files_below, is_remote, matching, reaching, to_path

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".avif"),
}
STREAM = "-"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class SearchNote(UserWarning):
    """Something a search left out."""


class FolderSearch:
    """Images in a folder, by their suffix.

    Args:
        folder: to search.
        recursive: its folders too; links to folders are not followed.
        out: folder of the results: nothing in it is an image to search, by whatever name it is reached.

    Raises:
        UsageError: the results would lie in the folder itself.
    """

    def __init__(self, folder: Path, *, recursive: bool, out: Path) -> None:
        self._folder, self._recursive, self._out = folder, recursive, true_name(out)
        self._told: set[Path] = set()
        root = true_name(folder)
        self._out_within = not root.startswith(f"{self._out}{os.sep}")
        if root == self._out:
            raise UsageError(
                f"{out} is the searched folder itself.", f"Choose another --out, such as {out / 'found'}."
            )

    def images(self) -> Iterator[Path]:
        """All images there now.

        Raises:
            InputError: the folder itself cannot be listed.
        """
        folders = [self._folder]
        while folders:
            here = folders.pop()
            try:
                with os.scandir(here) as listing:
                    entries = list(listing)
            except OSError as error:
                if here == self._folder:
                    raise InputError(
                        f"{here} cannot be listed: {error.strerror}.", "Check who may read it."
                    ) from error
                self._leave_out(here, str(error.strerror))
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                inner = Path(here, entry.name)
                try:
                    if entry.is_dir():
                        if self._recursive and not entry.is_symlink() and true_name(inner) != self._out:
                            folders.append(inner)
                    elif inner.suffix.lower() in SUFFIXES and self.takes(inner):
                        yield inner
                except OSError as error:  # such as a link that leads to itself
                    self._leave_out(inner, str(error.strerror))

    def takes(self, path: Path) -> bool:
        """Whether an entry with the suffix of an image is one to search; says why if it is none.

        A link that leads nowhere is: reading it fails, under its name.
        """
        if self.holds_result(path):
            return False
        if path.exists() and not path.is_file():
            self._leave_out(path, "not a regular file")
            return False
        return True

    def holds_result(self, path: Path) -> bool:
        """Whether a path leads into the folder of the results, where that is not around all images."""
        return self._out_within and f"{true_name(path)}{os.sep}".startswith(f"{self._out}{os.sep}")

    def _leave_out(self, path: Path, reason: str) -> None:
        if path not in self._told:
            self._told.add(path)
            warnings.warn(f"{path} was left out: {reason}.", SearchNote, stacklevel=2)


# --- all sources ---------------------------------------------------------------------------------------


def find_items(
    sources: Sequence[str], *, recursive: bool, out: Path, read_stdin: Callable[[], bytes]
) -> list[Item]:
    """Images in folders, patterns and lists, in the order of their keys, each once.

    Args:
        sources: folders, patterns such as "photos/**/*.jpg", text files with a path a line, images, or "-"
            for a list on stdin; all but the last may be URLs, as in `remote`.
        recursive: look into the folders of folders.
        out: results go there, and images in it are never taken from a folder or pattern.
        read_stdin: gives the list of "-".

    Raises:
        UsageError: two images would have the same results, or results would lie among the images.
        InputError: a source is not there, or there are no images.
    """
    items: dict[str, Item] = {}
    for source in sources:
        for item in _items_of(source, recursive=recursive, out=out, read_stdin=read_stdin):
            other = items.setdefault(item.key, item)
            if other is not item and other.path.resolve() != item.path.resolve():
                raise UsageError(
                    f"{other.path} and {item.path} would both be written as {item.key}.",
                    "Run them apart with different --out.",
                )
    if not items:
        raise InputError(
            f"There are no images in {' or '.join(map(str, sources))}.",
            "Write [[] for a [ that belongs to a name."
            if any("[" in source for source in sources)
            else "Check the name; --recursive looks into folders of folders.",
        )
    return [items[key] for key in sorted(items)]


def _items_of(source: str, *, recursive: bool, out: Path, read_stdin: Callable[[], bytes]) -> Iterable[Item]:
    if not source.strip():
        raise UsageError("--queries is empty.", "Give a folder, pattern or list; . is the current folder.")
    if source == STREAM:
        return _listed(read_stdin())
    path = to_path(source)
    if is_remote(path):
        with reaching(path):
            return _remote(source, path, recursive=recursive, out=out)
    if path.is_dir():
        search = FolderSearch(path, recursive=recursive, out=out)
        return (Item(image, image.relative_to(path).as_posix()) for image in search.images())
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
        f"{source} is no folder, image, pattern or list.", "Check the name, or put a pattern in quotes."
    )


def _matching(pattern: str, out: Path) -> Iterator[Item]:
    """Files a pattern matches, below the last folder before its first wildcard."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    search = FolderSearch(root, recursive=True, out=out)
    for path in root.glob("/".join(parts[fixed:])):
        below = path.relative_to(root)
        hidden = any(part.startswith(".") for part in below.parts)
        if path.suffix.lower() in SUFFIXES and not hidden and not path.is_dir() and search.takes(path):
            yield Item(path, below.as_posix())


def _listed(content: bytes) -> Iterable[Item]:
    """Paths a line, or separated by NUL as `find -print0` does; below the folder that holds all of them.

    That is the current one where it does, so that lists of relative paths keep their folders. With a byte
    order mark it may be UTF-16 or UTF-8; otherwise names are the bytes of the file system.
    """
    if content.startswith(UTF_16):
        content = os.fsencode(content.decode("utf-16", "replace"))
    content = content.removeprefix(codecs.BOM_UTF8)
    separator = b"\0" if b"\0" in content else b"\n"
    lines = [os.fsdecode(line.rstrip(b"\r")) for line in content.split(separator)]
    names = [line for line in lines if line.strip()]
    if any(SIGN in name for name in names):
        return _listed_remote([name.strip() for name in names])
    paths = [Path(name) for name in names]
    whole = [Path(os.path.normpath(path.absolute())) for path in paths]
    root = Path.cwd()
    if not all(root in path.parents for path in whole):
        try:
            root = Path(os.path.commonpath([path.parent for path in whole]))
        except ValueError as error:  # two drives
            raise UsageError("The list names images on several drives.", "Run them apart.") from error
    return [Item(path, full.relative_to(root).as_posix()) for path, full in zip(paths, whole, strict=True)]


def _remote(source: str, path: Path, *, recursive: bool, out: Path) -> list[Item]:
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
        raise InputError(f"{source} is no folder, image, pattern or list.", "Check the name.")
    root = f"{str(out).rstrip('/')}/"
    return [
        Item(to_path(f"{str(folder).rstrip('/')}/{name}"), _key_of(name))  # which / would tidy up
        for name in names
        if PurePosixPath(name).suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in name.split("/"))
        and not str(folder / name).startswith(root)
    ]


def _listed_remote(names: Sequence[str]) -> list[Item]:
    """URLs of a list, below the folder that holds all of them."""
    halves = [name.partition(SIGN)[::2] for name in names]
    if len({protocol for protocol, _ in halves}) > 1:
        raise UsageError("The list names images on several file systems.", "Run them apart.")
    whole = [_key_of(rest) for _, rest in halves]
    root = posixpath.commonpath([posixpath.dirname(each) for each in whole])
    keys = [each[len(root) :].lstrip("/") for each in whole]
    return [Item(to_path(name), key) for name, key in zip(names, keys, strict=True)]


def _key_of(name: str) -> str:
    """The place of the results of an object in a store, where // and .. are letters of a name like others."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def has_text_name(item: Item) -> bool:
    """Whether a page could ask for an image by its name; notes where it could not."""
    try:
        item.key.encode()
    except UnicodeEncodeError:
        warnings.warn(f"{item.path} was left out: its name is no text.", SearchNote, stacklevel=2)
        return False
    return True
