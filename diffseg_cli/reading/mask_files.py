"""Masks from annotation files: one of their images is found, objects are chosen, and those are drawn.

File names inside such a file are compared with the image's name and never opened.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from diffseg_cli.errors import InputError
from diffseg_cli.reading.annotated import (
    CROWD,
    HW,
    AnnotatedImage,
    AnnotationFile,
    Bools,
    MarkedObject,
    Target,
)
from diffseg_cli.reading.documents import BROKEN, why
from diffseg_cli.reading.image_files import MAX_PIXELS
from diffseg_cli.reading.mask_checks import AmbiguousMask, checked_mask
from diffseg_cli.reading.mask_shapes import listed, plain, whole_number
from diffseg_cli.reading.notes import note

MOST_JOINED = 2_000  # objects in one mask
MOST_DRAWN = 200  # objects as large as an image may be; drawing one takes time with every pixel
BY_ID = "id:"  # before a class number in --category
CHOOSE = "Choose one of these."


def draw_mask(
    name: str,
    document: AnnotationFile,
    target: Target,
    *,
    label: int | None = None,
    category: str | None = None,
    annotation: str | None = None,
    ignore_crowd: bool = False,
    invert: bool = False,
    most_pixels: int = MAX_PIXELS,
) -> Bools:
    """The mask (H W) of the chosen objects of a file, with pixels of both kinds.

    Choices are as of `image_io.read_mask`. The size is what the file gives its image, else the target's.

    Raises:
        InputError: the file does not know the image or its size, or the choice is unclear or matches nothing.
    """
    image = find_image(name, document, target)
    size_hw = _size_of(name, document.kind, image, target)
    h, w = size_hw
    called = f", image {plain(image.names[0])}" if image.names else ""
    where = f"{name} ({w} x {h}, {document.kind}{called})"
    if h * w > most_pixels:
        raise InputError(
            f"{where} is for an image of more than {most_pixels / 10**6:g} megapixels.",
            "Scale it down first.",
        )
    objects = objects_of(name, image)
    if ignore_crowd:
        objects = [replace(each, ignored=CROWD) if each.is_crowd else each for each in objects]
    same = choose(objects, where, label=label, category=category, annotation=annotation)
    if (number := len(same) * h * w) > MOST_DRAWN * most_pixels:
        raise AmbiguousMask(
            f"{where} holds {len(same)} such objects, {number / 1e9:.0f} billion pixels to draw.",
            "Choose one with --annotation.",
        )
    drawn, left_out = _draw(same, size_hw, where, keep_ignored=annotation is not None)
    if parts := [*document.left_out, *left_out]:
        note(f"{name}: left out: {listed(parts)}.")
    ignored = np.zeros(size_hw, dtype=bool)
    for each in objects:
        if each.ignored and not each.lacks and not (annotation is not None and each in same):
            ignored |= _drawn(each, size_hw, where)
    return checked_mask(
        drawn, ignored & ~drawn, invert, where, f"{len(same) - len(left_out)} of {len(objects)} objects"
    )


# --- the image -----------------------------------------------------------------------------------------


def objects_of(name: str, image: AnnotatedImage) -> list[MarkedObject]:
    """The objects of an image.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return image.objects()
    except BROKEN as error:
        raise InputError(
            f"{name} is damaged: {why(error)}.", "Export it again; a mask as PNG is always understood."
        ) from error


def find_image(name: str, document: AnnotationFile, target: Target) -> AnnotatedImage:
    """The target among the images of a file: by name, by as many folders as tell it apart, or the only one.

    Raises:
        InputError: it is not there, or several might be it.
    """
    images = document.images
    if not images[0].names:
        return images[0]
    if target.name is None:
        matching = images
    else:
        depths = [max(common_end(target.name, each) for each in image.names) for image in images]
        deepest = max(depths)
        matching = [image for image, depth in zip(images, depths, strict=True) if depth == deepest > 0]
    if not matching and len(images) == 1 and _may_be(images[0], target):
        note(f"{name} is about {plain(images[0].names[0])}, taken for {_parts(target.name or '')[-1]}.")
        return images[0]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise InputError(
            f"{name} ({document.kind}) holds {len(matching)} images this could be about.",
            "Give the image under its own name and folder, as the file has it.",
        )
    raise InputError(
        f"{name} ({document.kind}) does not know {_parts(target.name or '')[-1]}. "
        f"It holds {listed(plain(image.names[0]) for image in images)}.",
        "The image's file name must be the one in the file.",
    )


def _may_be(image: AnnotatedImage, target: Target) -> bool:
    stated = stated_size(image)
    return stated is None or target.size_hw is None or stated in (target.size_hw, target.stored_hw)


def _parts(path: str) -> tuple[str, ...]:
    """Folders and name, however the accents in them are written."""
    return PurePosixPath(unicodedata.normalize("NFC", path).replace("\\", "/")).parts or ("",)


def common_end(own: str, other: str) -> int:
    """How many parts, from the last, two paths share."""
    same = 0
    for ours, theirs in zip(reversed(_parts(own)), reversed(_parts(other)), strict=False):
        if ours != theirs:
            break
        same += 1
    return same


def stated_size(image: AnnotatedImage) -> HW | None:
    """The size a file gives; None where that is no size: null, -1, words."""
    try:
        h, w = map(whole_number, image.stated_hw)
    except BROKEN:
        return None
    return (h, w) if h > 0 and w > 0 else None


def _size_of(name: str, kind: str, image: AnnotatedImage, target: Target) -> HW:
    """The size at which objects are drawn: the file's, else the target's."""
    stated, size_hw = stated_size(image), target.size_hw
    if stated is None and size_hw is None:
        raise InputError(
            f"{name} ({kind}) does not say how large its image is.", "Give the image together with it."
        )
    if stated is None or size_hw is None:
        return stated or size_hw or (0, 0)
    if image.reach_hw is None or stated in (size_hw, target.stored_hw):
        return stated
    if any(reach > side for reach, side in zip(image.reach_hw, size_hw, strict=True)):
        return stated
    note(
        f"{name} ({kind}) states {stated[1]} x {stated[0]} and its image has {size_hw[1]} x {size_hw[0]} "
        "pixels: its points were taken as they are."
    )
    return size_hw


# --- the objects ---------------------------------------------------------------------------------------


def choose(
    objects: Sequence[MarkedObject],
    where: str,
    *,
    label: int | None,
    category: str | None,
    annotation: str | None,
) -> list[MarkedObject]:
    """The objects that are meant, with those of their class that cannot be drawn; as `draw_mask`."""
    if annotation is not None:
        chosen = [each for each in objects if each.id == annotation]
        if not chosen:
            held = listed(plain(each.id) for each in objects) or "none"
            raise InputError(f"{where} has no annotation {plain(annotation)}. It holds {held}.", CHOOSE)
        return chosen
    if label is not None or category is not None:
        return _of_class(objects, where, label, category)
    classes = Counter((each.class_name, each.class_id) for each in objects if each.is_outlined or each.box)
    if len(classes) > 1:
        held = listed(f"{class_text(*key)} ({count})" for key, count in classes.most_common())
        raise AmbiguousMask(
            f"{where} holds objects of {len(classes)} classes: {held}.",
            f"Say which one is meant, for example {_choice_of(*classes.most_common(1)[0][0])}.",
        )
    if classes and next(iter(classes)) == (None, None) and classes.total() > 1:
        numbers = listed(plain(each.id) for each in objects if each.is_outlined)
        raise AmbiguousMask(
            f"{where} holds {classes.total()} objects and no classes.",
            f"Choose one with --annotation: {numbers}.",
        )
    if not classes:
        return list(objects)
    return [each for each in objects if (each.class_name, each.class_id) in classes]


def _of_class(
    objects: Sequence[MarkedObject], where: str, label: int | None, category: str | None
) -> list[MarkedObject]:
    """Of one class: by name first, by number only where that is said or there are no names."""
    keys = list(dict.fromkeys((each.class_name, each.class_id) for each in objects))
    if label is not None or (
        category and category.startswith(BY_ID) and not any(category == k[0] for k in keys)
    ):
        wanted = str(label) if label is not None else (category or "").removeprefix(BY_ID).strip()
        found = [key for key in keys if wanted == (key[0] if key[1] is None else key[1])]
    else:
        wanted = category or ""
        found = [key for key in keys if _folded(key[0] or key[1]) == _folded(wanted)]
        found = [key for key in found if (key[0] or key[1]) == wanted] or found
    if len(found) > 1:
        names = [f"--category '{plain(key[0] or '')}'" for key in found]
        numbers = [f"--category {BY_ID}{key[1]}" for key in found]
        raise AmbiguousMask(
            f"{where} has {len(found)} classes called '{plain(wanted)}'.",
            f"Choose one: {' or '.join(names if len(set(names)) == len(names) else numbers)}.",
        )
    if not found:
        held = listed(class_text(*key) for key in keys) or "no object"
        by_id = (
            f" --category {BY_ID}{plain(wanted)} chooses by number." if wanted in (k[1] for k in keys) else ""
        )
        raise InputError(f"{where} has no class '{plain(wanted)}'. It holds {held}.", CHOOSE + by_id)
    return [each for each in objects if (each.class_name, each.class_id) == found[0]]


def _folded(name: str | None) -> str | None:
    return None if name is None else unicodedata.normalize("NFC", name).casefold()


def class_text(name: str | None, number: str | None) -> str:
    return plain(name or number or "no class")


def _choice_of(name: str | None, number: str | None) -> str:
    if name is None and number is None:
        return "one object with --annotation"
    return f"--category '{plain(name or number or '')}'"


# --- drawing -------------------------------------------------------------------------------------------


def _draw(
    chosen: Sequence[MarkedObject], size_hw: HW, where: str, *, keep_ignored: bool
) -> tuple[Bools, list[str]]:
    """Objects as one mask, and what was left out of them.

    Raises:
        InputError: nothing can be drawn, or an object is damaged.
    """
    drawable = [
        each for each in chosen if each.is_outlined or (keep_ignored and each.ignored and not each.lacks)
    ]
    if len(drawable) > MOST_JOINED:
        raise AmbiguousMask(f"{where} holds {len(drawable)} such objects.", "Choose one with --annotation.")
    if not drawable:
        raise _undrawable(chosen, size_hw, where)
    left_out = [
        f"annotation {plain(each.id)} ({each.lacks or each.ignored or 'a box and no outline'})"
        for each in chosen
        if each not in drawable
    ]
    mask = np.zeros(size_hw, dtype=bool)
    for each in drawable:
        drawn = _drawn(each, size_hw, where)
        if each.dropped or not drawn.any():
            left_out.append(f"annotation {plain(each.id)} ({each.dropped or 'no pixel inside the image'})")
        mask |= drawn
    if len(drawable) > 1:
        key = class_text(drawable[0].class_name, drawable[0].class_id)
        note(
            f"{where}: {len(drawable)} objects of '{key}' together are the mask "
            f"(--annotation N takes one of {listed(plain(each.id) for each in drawable)})."
        )
    return mask, left_out


def _drawn(each: MarkedObject, size_hw: HW, where: str) -> Bools:
    try:
        return each.draw(size_hw)
    except BROKEN as error:
        raise InputError(
            f"{where}: annotation {plain(each.id)} has {why(error)}.",
            "Export it again, or choose another with --annotation.",
        ) from error


def _undrawable(chosen: Sequence[MarkedObject], size_hw: HW, where: str) -> InputError:
    """Why nothing of a choice can be drawn."""
    boxed = next((each for each in chosen if each.box), None)
    if boxed and boxed.box:
        box = ",".join(map(str, boxed.box(size_hw)))
        return InputError(
            f"{where} holds a box of '{class_text(boxed.class_name, boxed.class_id)}' and no outline.",
            f"Make a mask of it: diffseg mask IMAGE --box {box}",
        )
    if ignored := next((each for each in chosen if each.ignored and not each.lacks), None):
        return InputError(
            f"{where} holds this class only as {ignored.ignored}.",
            f"If it is the object, choose it with --annotation {plain(ignored.id)}.",
        )
    if chosen:
        held = listed(f"annotation {plain(each.id)} has {each.lacks}" for each in chosen)
        return InputError(f"{where} holds no outlined object: {held}.", "Is this the right file?")
    return InputError(f"{where} holds no outlined object.", "Is this the right file?")
