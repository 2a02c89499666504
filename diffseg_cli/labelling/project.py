"""A project: a folder of images, and a folder with their masks, the decisions about them and caches.

Masks have the names and forms of `diffseg batch --format mask`, so that a folder of its results can be opened
as a project. The log is the truth: a decision is made when its line is written, and its mask follows from a
staged file, also after a kill between the two.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.batch.plan import REVIEW_LOG, Item
from diffseg_cli.batch.search import find_items, has_text_name
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.files import Claims, check_folder, write_whole
from diffseg_cli.labelling.disk_cache import stamp_of
from diffseg_cli.labelling.review_log import Outdated, Review, ReviewLog, State, now
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.remote import relative_path, resolve_path
from diffseg_cli.results.formats import UNNAMED, image_patterns
from diffseg_cli.results.outputs import mask_png
from diffseg_cli.results.palette import MOST_CONCEPTS
from diffseg_cli.supports.concept import check_name

Mask = NDArray[np.bool_]  # (H W) of an image at its own size

HIDDEN = ".diffseg-labels"  # below the folder of masks: staged files and caches
CONCEPTS = "concepts"  # below it too: what was learned of each class


class Project:
    """Images with their states and masks. Every method may be called from any thread.

    Args:
        images: folder of the images, with the folders in it.
        out: folder of the masks; it need not exist yet.
        classes: names of what is labelled; None takes those of the project, or one without a name.
        instances: whether objects of a class are told apart; None leaves it as it is.

    Attributes:
        classes: their names; class i has value i + 1 in masks of several classes.
        instances: whether objects of a class are told apart in the page and in exports.

    Raises:
        UsageError: the project is about other images, or has classes that are not among these; or two
            images would have the same mask file.
        InputError: a folder cannot be used.
    """

    def __init__(
        self, images: Path, out: Path, classes: Sequence[str] | None = None, instances: bool | None = None
    ) -> None:
        self.images, self.out = images, out
        check_folder(out)
        self._log = ReviewLog(out / REVIEW_LOG)
        self._staged = out / HIDDEN / "staged"
        self.classes = self._agree_on_classes(classes)
        self.instances = bool(self._log.project.get("instances", False)) if instances is None else instances
        found = find_items([str(images)], recursive=True, out=out, read_stdin=bytes)
        found = [item for item in found if has_text_name(item)]
        claims = Claims(out, read=[item.path for item in found])
        self._items = {item.key: item for item in found}
        self._mask_paths = {}
        self._sizes: dict[str, tuple[object, tuple[int, int]]] = {}  # stamp and size of those that were read
        for item in found:
            outputs = item.outputs(image_patterns(["mask"], self.classes))
            claims.claim(outputs.values(), item.key)
            self._mask_paths[item.key] = out / outputs["mask"]
        self._begin()

    def _agree_on_classes(self, wanted: Sequence[str] | None) -> list[str]:
        known = list(self._log.project.get("classes", []))
        recorded = self._log.project.get("images")
        if recorded is not None and not _same_folder(resolve_path(self.out, recorded), self.images):
            raise UsageError(
                f"{self.out} holds labels of the images in {resolve_path(self.out, recorded)}.",
                "Name that folder, or choose another --out.",
            )
        names = [check_name(name) for name in wanted or known or [UNNAMED]]
        if names[: len(known)] != known:
            raise UsageError(
                f"{self.out} has the classes {', '.join(known)}, and these are {', '.join(names)}.",
                "Name those first and in their order; new ones may follow.",
            )
        if len({name.casefold() for name in names}) < len(names):
            raise UsageError("Two classes have the same name.", "Give each a name of its own.")
        if len(names) > MOST_CONCEPTS:
            raise UsageError(f"A project has {MOST_CONCEPTS} classes at most.", "Use several projects.")
        return names

    def _begin(self) -> None:
        """Write down what the project is, and finish what a killed process began."""
        images = relative_path(self.out, self.images)
        record = {"images": images, "classes": self.classes, "instances": self.instances}
        with self._log.writing():
            if any(self._log.project.get(what) != value for what, value in record.items()):
                self._log.append({**self._log.project, **record, "time": now()})
            for staged in self._staged.glob("*.png"):
                decided = [key for key in self._items if self._log.get(key).mask_sha256 == staged.stem]
                for key in decided:
                    if _sha256_of(self.mask_path(key)) != staged.stem:
                        self._publish(key, staged.read_bytes())
                staged.unlink(missing_ok=True)

    # --- looking ---

    @property
    def keys(self) -> list[str]:
        """All images, in the order of their paths."""
        return list(self._items)

    def refresh(self) -> None:
        """Take over what other processes decided meanwhile."""
        self._log.refresh()

    def item(self, key: str) -> Item:
        """An image of this project.

        Raises:
            InputError: there is none of this key, or its file leads out of the folder.
        """
        item = self._items.get(key)
        if item is None:
            raise InputError(f"No image of this project is called {key}.", "Look at the list of its images.")
        if self.images.resolve() not in item.path.resolve().parents:
            raise InputError(f"{key} is a link that leads out of {self.images}.", "Copy the image itself.")
        return item

    def read(self, key: str) -> NDArray[np.uint8]:
        """An image (H W 3).

        Raises:
            InputError: there is none of this key, or it cannot be read.
        """
        path = self.item(key).path
        stamp, image = stamp_of(path), read_image(path)
        self._sizes[key] = stamp, (image.shape[0], image.shape[1])
        return image

    def size_hw(self, key: str) -> tuple[int, int]:
        """Of an image; it is read where it was not yet, or has changed.

        Raises:
            InputError: as `read`.
        """
        known = self._sizes.get(key)
        if known is None or known[0] != stamp_of(self.item(key).path):
            self.read(key)
        return self._sizes[key][1]

    def review(self, key: str) -> Review:
        """The last decision about an image. A mask nobody decided about is a proposal, as `batch` makes them.

        Raises:
            InputError: there is no such image.
        """
        if key not in self._items:
            self.item(key)
        review = self._log.get(key)
        if review.revision == 0 and self.mask_path(key).exists():
            return Review(key, state=State.PROPOSED)
        return review

    def reviews(self) -> list[Review]:
        """The last decision about every image, in the order of their paths."""
        return [self.review(key) for key in self._items]

    def reviews_since(self, version: int) -> tuple[int, list[Review]]:
        """The present version of the log, and what was decided since another; everything since -1."""
        self._log.refresh()
        present, changed = self._log.changed_since(version)
        if changed is None:
            return present, self.reviews()
        return present, [self.review(key) for key in self._items if key in changed]

    def mask_path(self, key: str) -> Path:
        """Where the mask of an image is, or will be."""
        return self._mask_paths[key]

    def masks(self, key: str) -> list[Mask] | None:
        """Masks (H W) of an image, one a class, or None where there are none yet.

        Raises:
            InputError: the file is damaged.
        """
        path = self.mask_path(key)
        if not path.exists():
            return None
        try:
            with Image.open(path, formats=["PNG"]) as image:
                values = np.array(image if image.mode == "P" else image.convert("L"))
                labels = values if image.mode == "P" else (values > 127).astype(np.uint8)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path} is no mask file, or is damaged.", "Remove it.") from error

        return [labels == number for number in range(1, len(self.classes) + 1)]

    # --- what was learned ---

    def concept_path(self, name: str) -> Path:
        """Where the concept that was learned of a class is, or will be.

        Raises:
            InputError: the folder leads elsewhere.
        """
        return self._inside(self.out / CONCEPTS / f"{name}.dsc")

    def rejected_path(self, name: str) -> Path:
        """Where the same is with adapted modules that do not answer; raises as `concept_path`."""
        return self._inside(self.out / HIDDEN / CONCEPTS / f"{name}.dsc")

    def remember(self, name: str, learned_from: str, trial: dict[str, float]) -> None:
        """Note what the concept at `concept_path` was learned from, and how earlier ones did."""
        made = {"sha256": _sha256_of(self.concept_path(name)), "time": now()}
        known = {"learned_from": learned_from, "trial": trial, **made}
        with self._log.writing():
            taught = {**self._log.project.get("taught", {}), name: known}
            self._log.append({**self._log.project, "taught": taught})

    def remembered(self, name: str) -> dict[str, Any]:
        """What was noted of a concept, with its `time`; empty where its file is another one."""
        known: dict[str, Any] | None = self._log.project.get("taught", {}).get(name)
        return known if known and known["sha256"] == _sha256_of(self.concept_path(name)) else {}

    # --- deciding ---

    def accept(self, key: str, revision: int) -> Review:
        """Take the proposal as it is; an empty one says that nothing is there.

        Raises:
            Outdated: the image is no longer at this revision.
            UsageError: there is no proposal.
        """
        masks = self.masks(key)
        if masks is None:
            raise UsageError(
                f"{key} has no mask that could be accepted.", "Draw one, or let one be proposed."
            )
        state = State.ACCEPTED if any(mask.any() for mask in masks) else State.NOTHING
        return self._decide(key, revision, state, self.mask_path(key).read_bytes(), drawn=masks)

    def correct(self, key: str, revision: int, masks: Sequence[Mask]) -> Review:
        """Keep masks (H W) a person drew, one a class; empty ones say that nothing is there.

        Raises:
            Outdated: the image is no longer at this revision.
            InputError: the masks have another size than the image.
        """
        size_hw = self.size_hw(key)
        if len(masks) != len(self.classes) or any(mask.shape != size_hw for mask in masks):
            raise InputError(
                f"The masks of {key} have another size or number than they should.",
                f"Send {len(self.classes)} of {size_hw[1]} x {size_hw[0]} pixels.",
            )
        state = State.CORRECTED if any(mask.any() for mask in masks) else State.NOTHING
        return self._decide(key, revision, state, mask_png(masks), drawn=masks)

    def say_nothing(self, key: str, revision: int) -> Review:
        """Say that no class is in the image.

        Raises:
            Outdated: the image is no longer at this revision.
        """
        empty = [np.zeros(self.size_hw(key), dtype=bool)] * len(self.classes)
        return self._decide(key, revision, State.NOTHING, mask_png(empty), drawn=empty)

    def reopen(self, key: str, revision: int) -> Review:
        """Take a decision back: the mask becomes a proposal that the model may change.

        Raises:
            Outdated: the image is no longer at this revision.
        """
        path = self.mask_path(key)
        content = path.read_bytes() if path.exists() else None
        return self._decide(key, revision, State.UNTOUCHED if content is None else State.PROPOSED, content)

    def propose(
        self, key: str, revision: int, masks: Sequence[Mask], presence: dict[str, float], doubt: float
    ) -> Review:
        """Keep masks (H W) of the model, one a class.

        Raises:
            Outdated: the image is no longer at this revision, or a person has decided.
        """
        found: dict[str, Any] = {"presence": presence, "doubt": round(doubt, 4)}
        return self._decide(key, revision, State.PROPOSED, mask_png(masks), by_model=True, **found)

    def fail(self, key: str, revision: int, error: str) -> Review:
        """Note that an image cannot be used.

        Raises:
            Outdated: the image is no longer at this revision, or a person has decided.
        """
        return self._decide(key, revision, State.FAILED, None, by_model=True, error=error)

    def _decide(
        self,
        key: str,
        revision: int,
        state: State,
        mask: bytes | None,
        *,
        drawn: Sequence[Mask] | None = None,
        by_model: bool = False,
        **found: Any,
    ) -> Review:
        """Stage the mask, write the line that makes the decision, then put the mask in its place.

        Args:
            key: of the image.
            revision: that was decided about.
            state: from now on.
            mask: content of its file, or None for no file.
            drawn: the same, where a person vouches for it.
            by_model: it must not take the place of what a person decided.
            **found: other fields of the review.
        """
        self.item(key)
        with self._log.writing():
            last = self._log.get(key)
            if last.revision != revision or (by_model and last.is_reviewed):
                raise Outdated(
                    f"{key} is {last.state.value} at revision {last.revision}, not at {revision} any more.",
                    "Look at it again before you decide.",
                )
            if drawn is not None:  # what the model thought stays readable
                rejected = self._rejected(last, drawn)
                found = {"presence": last.presence, "doubt": last.doubt, "rejected": rejected}
            digest = None if mask is None else hashlib.sha256(mask).hexdigest()
            review = Review(key, revision + 1, state, digest, time=now(), **found)
            if mask is None:
                self._log.append(review)
            else:
                self._inside(self.mask_path(key))
                staged = self._staged / f"{digest}.png"
                write_whole(staged, mask)
                self._log.append(review)
                self._publish(key, mask)
                staged.unlink(missing_ok=True)
        return review

    def _rejected(self, last: Review, drawn: Sequence[Mask]) -> list[str]:
        """Classes that are not drawn though they were proposed."""
        absent = [index for index, mask in enumerate(drawn) if not mask.any()]
        before = None
        if absent:
            with suppress(InputError):  # a damaged file tells nothing
                before = self.masks(last.image)
        names = [(self.classes[i], before is not None and before[i].any()) for i in absent]
        return [name for name, was_there in names if was_there or name in last.rejected]

    def _publish(self, key: str, mask: bytes) -> None:
        path = self.mask_path(key)
        self._inside(path)
        write_whole(path, mask)

    def _inside(self, path: Path) -> Path:
        folder = path.parent.resolve()
        if self.out.resolve() not in (folder, *folder.parents):
            raise InputError(f"{path} leads out of {self.out}.", "Remove the link.")
        return path


def open_project(out: Path) -> Project:
    """The project of a folder of labels, with the images and classes it was begun with.

    Raises:
        InputError: the folder is no project, or its images are gone.
    """
    log = ReviewLog(out / REVIEW_LOG)
    if not log.project:
        raise InputError(
            f"{out} is no labelling project: it has no {REVIEW_LOG}.",
            f"Begin one with: diffseg serve --queries PHOTOS --out {out}",
        )
    return Project(resolve_path(out, str(log.project.get("images", ""))), out)


def _same_folder(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _sha256_of(path: Path) -> str | None:
    with suppress(OSError):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return None
