"""Which images a batch works on, and where the results of each go: decided before anything runs.

An image's key is its path below the folder it was found in, with forward slashes; results mirror it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.files import Claims
from diffseg_cli.remote import is_remote
from diffseg_cli.results.formats import image_name

THUMBNAILS = "index_thumbnails"
MASK_ENDING = "_mask"  # of what `segment`, `batch` and `mask` write, and of many data sets
REVIEW_LOG = "review.jsonl"  # makes a folder of masks a labelling project


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        path: of the image.
        key: where it lies below what was asked for, such as "day1/a.jpg".
    """

    path: Path
    key: str

    def outputs(self, patterns: Mapping[str, str]) -> dict[str, str]:
        """Result -> its file below the output folder, of `results.formats.image_patterns`."""
        names = {what: image_name(pattern, self.key) for what, pattern in patterns.items()}
        return {**names, "thumbnail": f"{THUMBNAILS}/{self.key}.jpg"}


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


def refuse_labels(out: Path) -> None:
    """Raise UsageError for a folder with masks that a person may have corrected."""
    if not is_remote(out) and (out / REVIEW_LOG).exists():
        raise UsageError(
            f"{out} is a labelling project: masks that were corrected by hand could be overwritten.",
            "Choose another --out, or let `diffseg serve --queries FOLDER --out` propose masks there.",
        )


def check_outputs(
    items: Sequence[Item],
    patterns: Mapping[str, str],
    out: Path,
    *,
    taken: Iterable[str],
    read: Iterable[Path],
) -> None:
    """Refuse a plan that would lose a result, another file of the run (`taken`) or one that it reads.

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
        """Whether an image belongs to this part."""
        digest = hashlib.sha256(item.key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1
