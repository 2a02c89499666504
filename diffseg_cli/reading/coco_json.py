"""Annotations of COCO: a data set, a list of results, one segmentation alone; and of SA-1B, much like it."""

from collections import defaultdict
from typing import Any
from urllib.parse import unquote, urlsplit

from diffseg_cli.reading.annotated import (
    CROWD,
    HW,
    AnnotatedImage,
    AnnotationFile,
    Bools,
    Box,
    MarkedObject,
    UnreadFormat,
)
from diffseg_cli.reading.mask_shapes import box_of, draw_rings, draw_runs, points_of, sort_rings

URLS = ("coco_url", "flickr_url", "url")  # that hold a file name where there is no other
OFFICIAL = ("cocodataset.org", "mscoco.org")


def read_coco(document: Any) -> AnnotationFile:
    """A data set `{"images", "annotations", "categories"}`, or results without names."""
    if isinstance(document, dict) and "counts" in document:
        document = [{"segmentation": document}]
    if isinstance(document, list):
        return _results(document, {})
    if "image" in document:  # SA-1B: a file per image, and no classes
        image = document["image"]
        return AnnotationFile("SA-1B", [_image(image, _names(image), document["annotations"], {}, False)])
    is_official = _is_official(document.get("info"))
    names = {
        str(each["id"]): str(each["name"])
        for each in document.get("categories") or []
        if isinstance(each, dict) and "id" in each and each.get("name") is not None
    }
    if not document.get("images"):
        return _results(document["annotations"], names)
    of_image: dict[str, list[Any]] = defaultdict(list)
    unusable = 0
    for record in document["annotations"]:
        if isinstance(record, dict) and "image_id" in record:
            of_image[str(record["image_id"])].append(record)
        else:
            unusable += 1
    images, nameless = [], 0
    for image in document["images"]:
        if isinstance(image, dict) and "id" in image and _names(image):
            records = of_image[str(image["id"])]
            images.append(_image(image, _names(image), records, names, is_official))
        else:
            nameless += 1
    if not images:
        raise ValueError("none of its images has an id and a file name")
    counts = ((nameless, "image entries without id or file name"), (unusable, "annotations without image_id"))
    return AnnotationFile("COCO", images, [f"{count} {what}" for count, what in counts if count])


def _results(records: list[Any], names: dict[str, str]) -> AnnotationFile:
    """Annotations without the names of their images."""
    images = {str(record.get("image_id")) for record in records}
    if len(images) > 1:
        raise UnreadFormat(
            "a list of COCO results for several images, without their names",
            "Use the data set's own file, which has them.",
        )
    return AnnotationFile("COCO results", [_image({}, (), records, names, False)])


def _is_official(info: Any) -> bool:
    """Whether a file is one of COCO's own, where `iscrowd` is a crowd; exporters mean run lengths by it."""
    said = str(info.get("url", "")) + str(info.get("description", "")) if isinstance(info, dict) else ""
    return any(site in said for site in OFFICIAL) or (said.startswith("COCO 20") and "Dataset" in said)


def _names(image: Any) -> tuple[str, ...]:
    names = [str(image["file_name"])] if image.get("file_name") else []
    return (*names, *(unquote(urlsplit(str(image[key])).path) for key in URLS if image.get(key)))


def _image(
    image: Any, names: tuple[str, ...], records: list[Any], classes: dict[str, str], is_official: bool
) -> AnnotatedImage:
    runs = (record.get("segmentation") for record in records if isinstance(record, dict))
    of_runs = next((each.get("size") for each in runs if isinstance(each, dict)), None)
    height, width = of_runs if isinstance(of_runs, list) and len(of_runs) == 2 else (None, None)

    def objects() -> list[MarkedObject]:
        return [_object(record, index, classes, is_official) for index, record in enumerate(records, start=1)]

    return AnnotatedImage(names, (image.get("height", height), image.get("width", width)), objects)


def _object(record: Any, index: int, classes: dict[str, str], is_official: bool) -> MarkedObject:
    class_id = None if record.get("category_id") is None else str(record["category_id"])
    segmentation, bbox = record.get("segmentation"), record.get("bbox")
    lacks = dropped = ""
    rings: list[Any] = []
    if not isinstance(segmentation, dict):
        rings, dropped = sort_rings(segmentation)
        lacks = "" if rings else dropped or "no outline"
    elif not segmentation.get("counts"):
        lacks = "no outline"

    def draw(size_hw: HW) -> Bools:
        if isinstance(segmentation, dict):
            return draw_runs(segmentation["counts"], segmentation.get("size"), size_hw)
        return draw_rings([points_of(ring, size_hw, 3) for ring in rings], size_hw)

    def box(_: HW) -> Box:
        return box_of(*bbox)

    is_boxed = bool(bbox) and not segmentation
    return MarkedObject(
        id=str(record.get("id", index)),
        class_name=None if class_id is None else classes.get(class_id),
        class_id=class_id,
        draw=draw,
        lacks="" if is_boxed else lacks,
        dropped=dropped,
        ignored=CROWD if record.get("iscrowd") and is_official else "",
        is_crowd=bool(record.get("iscrowd")),
        box=box if is_boxed else None,
    )
