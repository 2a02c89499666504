"""Annotations of LabelMe and of what writes its format (X-AnyLabeling, AnyLabeling)."""

from typing import Any

import numpy as np

from diffseg_cli.reading.annotated import HW, AnnotatedImage, AnnotationFile, Bools, MarkedObject
from diffseg_cli.reading.mask_shapes import (
    draw_bitmap,
    draw_circle,
    draw_polygon,
    draw_rectangle,
    point_count,
    points_of,
)

IGNORE, BACKGROUND = "__ignore__", "_background_"  # LabelMe's own
SHAPES = {
    "polygon": (draw_polygon, 3),
    "oriented_rectangle": (draw_polygon, 3),
    "rotation": (draw_polygon, 3),  # X-AnyLabeling's four corners
    "rectangle": (draw_rectangle, 2),
    "circle": (draw_circle, 2),
}


def read_labelme(document: dict[str, Any]) -> AnnotationFile:
    """Shapes are numbered from 1. They are in pixels of the image: LabelMe scales nothing."""
    shapes = document["shapes"]

    def objects() -> list[MarkedObject]:
        return [
            _object(shape, number)
            for number, shape in enumerate(shapes, start=1)
            if shape["label"] != BACKGROUND
        ]

    stated = document.get("imageHeight"), document.get("imageWidth")
    return AnnotationFile("LabelMe", [AnnotatedImage((), stated, objects, _reach(shapes))])


def _reach(shapes: list[Any]) -> tuple[float, float]:
    """Height and width that hold all shapes; circles and bitmaps may stand out."""
    largest = [0.0, 0.0]
    for shape in shapes:
        if shape.get("shape_type", "polygon") in SHAPES and shape.get("points"):
            x, y = np.array(shape["points"], dtype=np.float64).reshape(-1, 2).max(axis=0)
            largest = [max(largest[0], float(y)), max(largest[1], float(x))]
    return largest[0], largest[1]


def _object(shape: dict[str, Any], number: int) -> MarkedObject:
    kind, label = shape.get("shape_type") or "polygon", str(shape["label"])

    def draw(size_hw: HW) -> Bools:
        if kind == "mask":
            return draw_bitmap(shape["mask"], points_of(shape["points"], size_hw, 1), size_hw)
        paint, least = SHAPES[kind]
        return paint(points_of(shape["points"], size_hw, least), size_hw)

    lacks = ""
    if kind == "mask":
        lacks = "" if shape.get("mask") else "no bitmap"
    elif kind not in SHAPES:
        lacks = f"no area: {kind}"
    elif point_count(shape.get("points")) < SHAPES[kind][1]:
        lacks = f"{point_count(shape.get('points'))} points, which enclose nothing"
    ignored = "an ignored area" if label == IGNORE else ""
    return MarkedObject(str(number), label, None, draw, lacks, ignored=ignored)
