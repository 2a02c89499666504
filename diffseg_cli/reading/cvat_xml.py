"""Annotations of CVAT, exported as "CVAT for images".

Read element by element: a document type, and with it any entity, is refused before it is looked at.
"""

from collections.abc import Callable
from typing import Any
from xml.parsers import expat

from diffseg_cli.reading.annotated import (
    HW,
    AnnotatedImage,
    AnnotationFile,
    Bools,
    MarkedObject,
    UnreadFormat,
)
from diffseg_cli.reading.mask_shapes import (
    box_of,
    draw_ellipse,
    draw_rings,
    draw_row_runs,
    points_of,
    whole_number,
)

Attributes = dict[str, str]
MOST_ELEMENTS = 1_000_000
SHAPES = ("polygon", "mask", "ellipse", "box", "polyline", "points", "cuboid", "skeleton")


class _Parser:
    """The images of a document with their shapes, each its kind and attributes."""

    def __init__(self) -> None:
        self.images: list[tuple[Attributes, list[tuple[str, Attributes]]]] = []
        self._path: list[str] = []
        self._count = 0

    def read(self, text: str) -> None:
        parser = expat.ParserCreate("utf-8")  # whatever it was before
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = lambda _: self._path.pop()
        try:
            parser.Parse(text.encode(), True)
        except expat.ExpatError as error:
            raise ValueError(f"XML that breaks off or is none ({error})") from error

    def _refuse(self, *_: Any) -> None:
        raise ValueError("XML with a document type, which CVAT does not write")

    def _start(self, name: str, attributes: Attributes) -> None:
        self._count += 1
        if self._count > MOST_ELEMENTS or len(self._path) > 20:
            raise ValueError("XML with too many elements")
        if not self._path and name != "annotations":
            raise UnreadFormat("a Pascal VOC file of boxes", "Make a mask of one: diffseg mask IMAGE --box")
        if name == "track":
            raise UnreadFormat("a CVAT file for video", "Export it as 'CVAT for images' or as COCO.")
        if name == "image" and len(self._path) == 1:
            self.images.append((attributes, []))
        elif name in SHAPES and self._path[-1:] == ["image"]:
            self.images[-1][1].append((name, attributes))
        self._path.append(name)


def read_cvat(text: str) -> AnnotationFile:
    """Shapes of an image are numbered from 1."""
    parser = _Parser()
    parser.read(text)
    if not parser.images:
        raise ValueError("no image in it")
    return AnnotationFile("CVAT", [_image(attributes, shapes) for attributes, shapes in parser.images])


def _image(attributes: Attributes, shapes: list[tuple[str, Attributes]]) -> AnnotatedImage:
    def objects() -> list[MarkedObject]:
        return [_object(kind, shape, number) for number, (kind, shape) in enumerate(shapes, start=1)]

    stated = tuple(int(attributes[side]) if attributes.get(side) else None for side in ("height", "width"))
    return AnnotatedImage((attributes["name"],), (stated[0], stated[1]), objects)


def _object(kind: str, shape: Attributes, number: int) -> MarkedObject:
    draw, lacks = _drawing(kind, shape)
    box = None
    if kind == "box":
        left, top, right, bottom = (float(shape[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        pixels = box_of(left, top, right - left, bottom - top)
        box = lambda _: pixels  # noqa: E731
    return MarkedObject(str(number), shape["label"], None, draw, lacks, box=box)


def _drawing(kind: str, shape: Attributes) -> tuple[Callable[[HW], Bools], str]:
    """How a shape is drawn, and what it lacks."""

    def draw(size_hw: HW) -> Bools:
        if kind == "mask":
            box = tuple(whole_number(float(shape[side])) for side in ("left", "top", "width", "height"))
            runs = [int(run) for run in shape["rle"].split(",")]
            return draw_row_runs(runs, (box[0], box[1], box[2], box[3]), size_hw)
        if kind == "ellipse":
            x, y, radius_x, radius_y = (float(shape[side]) for side in ("cx", "cy", "rx", "ry"))
            return draw_ellipse((x, y), (radius_x, radius_y), float(shape.get("rotation", 0)), size_hw)
        return draw_rings([points_of(ring, size_hw, 3)], size_hw)

    ring = []
    if kind == "polygon":
        ring = [[float(value) for value in point.split(",")] for point in shape["points"].split(";") if point]
        if len(ring) < 3:
            return draw, f"{len(ring)} points, which enclose nothing"
    elif kind not in ("mask", "ellipse", "box"):
        return draw, f"no area: {kind}"
    return draw, ""
