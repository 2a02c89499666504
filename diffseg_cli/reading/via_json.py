"""Annotations of the VGG Image Annotator, version 1 and 2: a project, or what it exports as JSON."""

from collections.abc import Callable
from typing import Any

import numpy as np

from diffseg_cli.reading.annotated import HW, AnnotatedImage, AnnotationFile, Bools, MarkedObject
from diffseg_cli.reading.mask_shapes import box_of, draw_ellipse, draw_rings, point_count, points_of

PROJECT = "_via_img_metadata"
CLASS_FIELDS = ("class", "label", "category", "name", "type", "object")  # of those a user may define


def is_via(document: dict[str, Any]) -> bool:
    """A project, or images under keys of their own."""
    entries = list(document.values())
    return PROJECT in document or bool(
        entries
        and all(isinstance(entry, dict) and {"filename", "regions"} <= entry.keys() for entry in entries)
    )


def read_via(document: dict[str, Any]) -> AnnotationFile:
    """Regions are numbered from 1; of their attributes one is the class."""
    entries = document.get(PROJECT, document).values()
    return AnnotationFile("VIA", [_image(entry) for entry in entries])


def _image(entry: dict[str, Any]) -> AnnotatedImage:
    regions = entry["regions"]
    listed = list(regions.values()) if isinstance(regions, dict) else regions  # version 1 numbers them itself

    def objects() -> list[MarkedObject]:
        return [_object(region, number) for number, region in enumerate(listed, start=1)]

    return AnnotatedImage((str(entry["filename"]),), (None, None), objects)


def _class_of(attributes: dict[str, Any]) -> str | None:
    """The attribute that is called as classes are, or the only one; a chosen box of several, by its name."""
    field = next((name for name in CLASS_FIELDS if attributes.get(name)), next(iter(attributes), None))
    value = attributes.get(field) if field else None
    if isinstance(value, dict):
        value = ", ".join(name for name, is_on in value.items() if is_on)
    return str(value) if value else None


def _object(region: dict[str, Any], number: int) -> MarkedObject:
    shape = region["shape_attributes"]
    kind = shape["name"]
    class_name = _class_of(region.get("region_attributes") or {})
    if kind == "rect":
        box = box_of(*(shape[side] for side in ("x", "y", "width", "height")))
        return MarkedObject(str(number), class_name, None, _nothing, box=lambda _: box)
    if kind in ("circle", "ellipse"):
        radii = (shape["r"], shape["r"]) if kind == "circle" else (shape["rx"], shape["ry"])
        turn = np.degrees(float(shape.get("theta") or 0))

        def draw_round(size_hw: HW) -> Bools:
            return draw_ellipse((shape["cx"], shape["cy"]), radii, turn, size_hw)

        return MarkedObject(str(number), class_name, None, draw_round)
    if kind != "polygon":
        return MarkedObject(str(number), class_name, None, _nothing, lacks=f"no area: {kind}")
    return MarkedObject(str(number), class_name, None, *_outline(shape))


def _outline(shape: dict[str, Any]) -> tuple[Callable[[HW], Bools], str]:
    ring = [[x, y] for x, y in zip(shape["all_points_x"], shape["all_points_y"], strict=True)]

    def draw(size_hw: HW) -> Bools:
        return draw_rings([points_of(ring, size_hw, 3)], size_hw)

    count = point_count(ring)
    return draw, "" if count >= 3 else f"{count} points, which enclose nothing"


def _nothing(size_hw: HW) -> Bools:
    return np.zeros(size_hw, dtype=bool)
