"""Annotations of Label Studio: its JSON and JSON-MIN exports, polygons and ellipses."""

import re
from typing import Any
from urllib.parse import unquote

from diffseg_cli.reading.annotated import HW, AnnotatedImage, AnnotationFile, Bools, Box, MarkedObject
from diffseg_cli.reading.mask_shapes import box_of, draw_ellipse, draw_rings, points_of, sort_rings

UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what it puts before the name of an uploaded file
BRUSH = "a brush mask: export it as 'Brush labels to PNG'"
SETS = ("annotations", "completions")  # of a task; older files call them completions
LABELS = ("polygonlabels", "ellipselabels", "rectanglelabels", "brushlabels", "labels")


def is_label_studio(document: list[Any]) -> bool:
    """A list of tasks, or of rows of JSON-MIN."""
    first = document[0] if document and isinstance(document[0], dict) else {}
    return isinstance(first.get("data"), dict) or {"annotator", "annotation_id"} <= first.keys()


def read_label_studio(tasks: list[dict[str, Any]]) -> AnnotationFile:
    """Coordinates are percent; objects are called by the ids of their regions."""
    images, left_out = [], []
    for task in tasks:
        made = [each for key in SETS for each in task.get(key) or [] if not each.get("was_cancelled")]
        if len(made) > 1:
            left_out.append(f"{len(made) - 1} more annotations of task {task.get('id')}")
        regions = made[0]["result"] if made else _rows(task)
        images.append(_image(_names(task.get("data", task)), [each for each in regions if _is_region(each)]))
    return AnnotationFile("Label Studio", images, left_out)


def _rows(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Regions of JSON-MIN, where the value lies beside the size."""
    return [
        {**each, "value": each}
        for rows in task.values()
        if isinstance(rows, list)
        for each in rows
        if isinstance(each, dict)
    ]


def _is_region(region: dict[str, Any]) -> bool:
    """Marks pixels; choices and texts do not."""
    return isinstance(region.get("value"), dict) and "original_width" in region


def _names(data: dict[str, Any]) -> tuple[str, ...]:
    """Names of the image, as it was uploaded and before: "/data/upload/1/0123abcd-dog.jpg" is dog.jpg."""
    names = []
    for text in data.values():
        if isinstance(text, str) and ("/" in text or "." in text):
            path = unquote(text.rpartition("?d=")[2])
            folder, slash, name = path.rpartition("/")
            names += [path, f"{folder}{slash}{UPLOADED.sub('', name)}"]
    return tuple(names)


def _image(names: tuple[str, ...], regions: list[dict[str, Any]]) -> AnnotatedImage:
    def objects() -> list[MarkedObject]:
        return [_object(region, number) for number, region in enumerate(regions, start=1)]

    first = regions[0] if regions else {}
    return AnnotatedImage(names, (first.get("original_height"), first.get("original_width")), objects)


def _object(region: dict[str, Any], number: int) -> MarkedObject:
    value = region["value"]
    rings, lacks = ([], "") if "points" not in value else sort_rings([value["points"]])

    def draw(size_hw: HW) -> Bools:
        h, w = size_hw
        if rings:
            points = points_of(rings[0], (100, 100), 3) * (w / 100, h / 100)
            return draw_rings([points], size_hw)
        x, y, across, down = (float(value[side]) for side in ("x", "y", "radiusX", "radiusY"))
        radii = across * w / 100, down * h / 100
        return draw_ellipse((x * w / 100, y * h / 100), radii, float(value.get("rotation", 0)), size_hw)

    def box(size_hw: HW) -> Box:
        sides = (float(value[side]) / 100 for side in ("x", "y", "width", "height"))
        return box_of(*(side * length for side, length in zip(sides, size_hw[::-1] * 2, strict=True)))

    if "rle" in value:
        lacks = BRUSH
    elif region.get("image_rotation"):
        lacks = "an image that was turned while it was annotated"
    elif not (rings or lacks or "radiusX" in value or "width" in value):
        lacks = "no outline"
    labels = next((value[key] for key in LABELS if value.get(key)), None)
    return MarkedObject(
        id=str(region.get("id") or number),
        class_name=", ".join(map(str, labels)) if labels else None,
        class_id=None,
        draw=draw,
        lacks=lacks,
        box=box if "width" in value and not (lacks or rings) else None,
    )
