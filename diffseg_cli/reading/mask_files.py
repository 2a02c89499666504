"""Masks from annotation files: COCO JSON, LabelMe JSON, YOLO segmentation text.

A file is read into objects first, one or several of them are chosen, and only those are drawn. File names
inside such a file are compared with the picture's name and never opened.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.reading.image_files import MAX_PIXELS
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.reading.mask_shapes import (
    HW,
    Annotations,
    Bools,
    Target,
    Thing,
    draw_bitmap,
    draw_circle,
    draw_polygon,
    draw_rectangle,
    draw_rings,
    draw_runs,
    listed,
    plain,
    points_of,
    whole_number,
)
from diffseg_cli.reading.mask_values import checked_mask
from diffseg_cli.reading.notes import note

MOST_BYTES = 64_000_000  # of a file; brackets take 24 times their length in memory
MOST_JOINED = 2_000  # objects in one mask
LABELME_IGNORE, LABELME_BACKGROUND = "__ignore__", "_background_"  # LabelMe's own
YOLO_LINE = re.compile(rb"\d+(\.\d*)?(\s|$)")  # how its first line begins
BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)


class UnnamedImage(InputError):
    """A file of several images, and nothing says which is meant."""


def is_annotation_file(file: InputFile) -> bool:
    """By content: JSON, or text that begins with a number."""
    head = file.head(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head[:1] in (b"{", b"[") or YOLO_LINE.match(head) is not None


def read_annotations(file: InputFile, target: Target) -> Annotations:
    """Read what a file says of one picture.

    Raises:
        InputError: the file is damaged, too large, of no known kind, or does not speak of the picture.
    """
    content = file.read(MOST_BYTES, "Cut it down to the pictures that are needed, or save one mask as PNG.")
    path = file.name
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip()[:1] not in ("{", "["):
            return _yolo(text, path, target)
        document = json.loads(text)
        if isinstance(document, dict) and "shapes" in document:
            return _labelme(document, path, target)
        return _coco(document, path, target)
    except BROKEN as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise InputError(
            f"{path} is damaged, or not COCO, LabelMe or YOLO: {plain(what, 120)}.",
            "Export it again; a mask as PNG is always understood.",
        ) from error


def annotated_mask(
    file: InputFile, target: Target, *, category: str | None, annotation: int | None, invert: bool
) -> Bools:
    """The mask of the chosen objects of a file.

    Args:
        file: the annotations.
        target: the picture it is for.
        category: class by name or number, where there are several.
        annotation: one object by its number.
        invert: the object is everything else, but for ignored areas.

    Returns:
        bool (H W), with pixels of both kinds.

    Raises:
        InputError: as `read_annotations`; or the choice is unclear, or matches nothing.
    """
    if category is not None and annotation is not None:
        raise UsageError("--category and --annotation both choose the object.", "Give one of them.")
    return draw_mask(read_annotations(file, target), category=category, annotation=annotation, invert=invert)


def draw_mask(
    found: Annotations, *, category: str | None = None, annotation: int | None = None, invert: bool = False
) -> Bools:
    """The mask of the chosen objects; arguments, result and errors as in `annotated_mask`."""
    chosen = choose(found, category=category, annotation=annotation)
    mask = _draw(found, chosen)
    ignored = _draw(found, [thing for thing in found.things if thing.ignored and thing not in chosen])
    return checked_mask(
        mask, ignored & ~mask, invert, found.where, f"{len(chosen)} of {len(found.things)} objects"
    )


def choose(found: Annotations, *, category: str | None, annotation: int | None) -> list[Thing]:
    """The objects that are meant; arguments and errors as in `annotated_mask`."""
    things, where = found.things, found.where
    if not things:
        raise InputError(f"{where} holds no outlined object.", "Is this the right file?")
    if annotation is not None:
        chosen = [thing for thing in things if thing.number == annotation]
        numbers = listed(str(thing.number) for thing in things)
        if not chosen:
            raise InputError(
                f"{where} has no annotation {annotation}. It holds {numbers}.", "Choose one of these."
            )
    else:
        names = Counter(thing.category for thing in things if not thing.ignored)
        if category is None and len(names) > 1:
            held = listed(f"{plain(name)} ({count})" for name, count in names.most_common())
            raise InputError(
                f"{where} holds objects of {len(names)} classes: {held}.",
                f"Say which one is meant, for example --category '{plain(names.most_common(1)[0][0])}'.",
            )
        same = [t for t in things if category in (None, t.category, t.category_id)]
        if not same and category is not None:
            same = [t for t in things if t.category.casefold() == category.casefold()]
        chosen = [thing for thing in same if not thing.ignored]
        if not same:
            held = listed(plain(name) for name in names)
            raise InputError(f"{where} has no class '{category}'. It holds {held}.", "Choose one of these.")
        if not chosen:
            raise InputError(
                f"{where} holds this class only as a crowd or ignored area.",
                f"If it is the object, choose it with --annotation {same[0].number}.",
            )
    if len(chosen) > MOST_JOINED:
        raise InputError(f"{where} holds {len(chosen)} such objects.", "Choose one with --annotation.")
    if boxed := next((thing.box for thing in chosen if thing.box), None):
        raise InputError(
            f"{where} holds a box of '{plain(chosen[0].category)}' and no outline.",
            f"Make a mask of it: diffseg mask PICTURE --box {','.join(map(str, boxed))}",
        )
    if len(chosen) > 1:
        numbers = listed(str(thing.number) for thing in chosen)
        note(
            f"{where}: {len(chosen)} objects of '{plain(chosen[0].category)}' together are the mask "
            f"(--annotation N takes one of {numbers})."
        )
    return chosen


def _draw(found: Annotations, things: Sequence[Thing]) -> Bools:
    mask = np.zeros(found.size_hw, dtype=bool)
    for thing in things:
        try:
            mask |= thing.draw(found.size_hw)
        except BROKEN as error:
            raise InputError(
                f"{found.where}: annotation {thing.number} has {plain(str(error), 120)}.",
                "Export it again, or choose another with --annotation.",
            ) from error
    return mask


# --- COCO ----------------------------------------------------------------------------------------------


def _coco(document: Any, path: str, target: Target) -> Annotations:
    """A data set, a list of results, or one segmentation alone."""
    if isinstance(document, dict) and "counts" in document:
        document = [{"segmentation": document}]
    if isinstance(document, list):  # results know no pictures and no names
        document = {"annotations": document, "images": [], "categories": []}
    image = _coco_image(document["images"], path, target)
    annotations = document["annotations"]
    if image is not None:
        annotations = [each for each in annotations if each["image_id"] == image["id"]]
    elif len({str(each.get("image_id")) for each in annotations}) > 1:
        raise InputError(
            f"{path} (COCO results) speaks of several pictures and names none.",
            "Use the data set's own file, which has their names.",
        )
    names = {each["id"]: str(each["name"]) for each in document.get("categories", [])}
    things = [_coco_thing(each, index, names) for index, each in enumerate(annotations)]
    size_hw = _coco_size(image, annotations) or target.size_hw
    kind = f"COCO, picture {plain(str(image['file_name']))}" if image else "COCO results"
    return _annotations(path, kind, size_hw, [thing for thing in things if thing])


def _coco_image(images: list[Any], path: str, target: Target) -> Any:
    """The record of the target: by name, by as many of its folders as tell it apart, or the only one."""
    if not images:
        return None
    if target.name is None:
        matching = images
    else:
        own = PurePosixPath(target.name.replace("\\", "/")).parts
        depths = [_common_end(own, str(image["file_name"])) for image in images]
        matching = [
            image for image, depth in zip(images, depths, strict=True) if depth and depth == max(depths)
        ]
    if (
        not matching
        and len(images) == 1
        and target.size_hw in (None, (images[0]["height"], images[0]["width"]))
    ):
        note(f"{path} is about {plain(str(images[0]['file_name']))}, taken for {target.name}.")
        return images[0]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UnnamedImage(
            f"{path} (COCO) holds {len(matching)} pictures this could be about.",
            "Give the picture under its own name and folder, as the file has it.",
        )
    names = listed(plain(str(image["file_name"])) for image in images)
    raise InputError(
        f"{path} (COCO) does not know {(target.name or '').replace(chr(92), '/').rpartition('/')[2]}. "
        f"It holds {names}.",
        "The picture's file name must be the one in the file.",
    )


def _common_end(own: Sequence[str], other: str) -> int:
    """How many parts, from the last, two paths share."""
    pairs = zip(reversed(own), reversed(PurePosixPath(other.replace("\\", "/")).parts), strict=False)
    same = 0
    for ours, theirs in pairs:
        if ours != theirs:
            break
        same += 1
    return same


def _coco_size(image: Any, annotations: list[Any]) -> HW | None:
    if image is not None:
        return image["height"], image["width"]
    for each in annotations:
        segmentation = each.get("segmentation")
        if isinstance(segmentation, dict):
            h, w = segmentation["size"]
            return h, w
    return None


def _coco_thing(record: Any, index: int, names: dict[Any, str]) -> Thing | None:
    category_id = record.get("category_id")
    segmentation = record.get("segmentation")
    if not segmentation and not record.get("bbox"):
        return None

    def draw(size_hw: HW) -> Bools:
        if isinstance(segmentation, dict):
            return draw_runs(segmentation["counts"], segmentation.get("size"), size_hw)
        rings = [points_of(ring, size_hw, 3) for ring in segmentation]
        return draw_rings(rings, size_hw)

    return Thing(
        number=whole_number(record.get("id", index + 1)),
        category=names.get(category_id, str(category_id)),
        category_id=str(category_id),
        ignored=bool(record.get("iscrowd")),
        draw=draw,
        box=None if segmentation else _box(*record["bbox"]),
    )


# --- LabelMe -------------------------------------------------------------------------------------------


def _labelme(document: dict[str, Any], path: str, target: Target) -> Annotations:
    """Shapes are numbered from 1; those without area (points, lines) are left out."""
    h, w = document.get("imageHeight"), document.get("imageWidth")
    size_hw = target.size_hw if h is None or w is None else (h, w)
    things = [
        _labelme_thing(shape, number)
        for number, shape in enumerate(document["shapes"], start=1)
        if shape.get("shape_type", "polygon") in (*LABELME_SHAPES, "mask")
        and shape["label"] != LABELME_BACKGROUND
    ]
    return _annotations(path, "LabelMe", size_hw, things)


LABELME_SHAPES = {
    "polygon": (draw_polygon, 3),
    "oriented_rectangle": (draw_polygon, 3),
    "rectangle": (draw_rectangle, 2),
    "circle": (draw_circle, 2),
}


def _labelme_thing(shape: dict[str, Any], number: int) -> Thing:
    kind = shape.get("shape_type", "polygon")

    def draw(size_hw: HW) -> Bools:
        if kind == "mask":
            corners = points_of(shape["points"], size_hw, 1)
            return draw_bitmap(shape["mask"], corners, size_hw)
        paint, least = LABELME_SHAPES[kind]
        return paint(points_of(shape["points"], size_hw, least), size_hw)

    label = str(shape["label"])
    return Thing(number, label, None, label == LABELME_IGNORE, draw)


# --- YOLO ----------------------------------------------------------------------------------------------


def _yolo(text: str, path: str, target: Target) -> Annotations:
    """A line an object: class and x, y of its outline, as shares of the picture; numbered from 1."""
    if target.size_hw is None:
        raise InputError(
            f"{path} (YOLO) holds shares of a picture and not its size.", "Give the picture with it."
        )
    things = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = line.split()
        shares = [float(each) for each in rest]
        if not name.isdecimal() or len(shares) < 4 or len(shares) % 2:
            raise ValueError(f"line {number} is not a class and pairs of x and y")
        if not all(math.isfinite(share) and -0.01 <= share <= 1.01 for share in shares):
            raise ValueError(f"line {number} holds values outside 0 to 1")
        things.append(_yolo_thing(number, str(int(name)), shares, target.size_hw))
    return _annotations(path, "YOLO", target.size_hw, things)


def _yolo_thing(number: int, name: str, shares: list[float], size_hw: HW) -> Thing:
    h, w = size_hw
    if len(shares) == 4:
        x, y, width, height = shares[0] * w, shares[1] * h, shares[2] * w, shares[3] * h
        box = _box(x - width / 2, y - height / 2, width, height)
    else:
        box = None

    def draw(size_hw: HW) -> Bools:
        ring = points_of(shares, size_hw, 3) * np.array(size_hw[::-1], dtype=np.float64)
        return draw_rings([ring], size_hw)

    return Thing(number, name, name, False, draw, box)


# --- small things --------------------------------------------------------------------------------------


def _annotations(path: str, kind: str, size_hw: HW | None, things: list[Thing]) -> Annotations:
    if size_hw is None:
        raise InputError(
            f"{path} ({kind}) does not say how large its picture is.", "Give the picture with it."
        )
    h, w = (whole_number(side) for side in size_hw)
    if h < 1 or w < 1:
        raise ValueError(f"a picture of {w} x {h} pixels")
    if h * w > MAX_PIXELS:
        raise InputError(
            f"{path} ({kind}) is for a picture of {w} x {h}: more than {MAX_PIXELS // 10**6} megapixels.",
            "Scale it down first.",
        )
    return Annotations(path, kind, (h, w), things)


def _box(x: float, y: float, width: float, height: float) -> tuple[int, int, int, int]:
    return max(0, round(x)), max(0, round(y)), max(1, round(width)), max(1, round(height))
