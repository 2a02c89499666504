"""Results out as annotations: COCO, LabelMe, YOLO segmentation and label maps of VOC.

What each file holds is what its own tools read; names and numbers of concepts are the same in all of them:
the i-th concept of a run is COCO category i, VOC label i, YOLO class i - 1.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.remote import relative_path
from diffseg_cli.results.outlines import Ring, one_ring, outlines
from diffseg_cli.results.palette import label_map, label_map_png, voc_color
from diffseg_cli.version import __version__

Masks = Sequence[NDArray[np.bool_]]


@dataclass(frozen=True)
class AnnotatedObject:
    """What an annotation is about: a concept in an image, or one instance of it.

    Attributes:
        category: index of the concept, from 0.
        name: of the concept.
        mask: bool (H W).
        score: how sure it is, in [0, 1].
        instance: its id; None for a whole concept.
    """

    category: int
    name: str
    mask: NDArray[np.bool_]
    score: float
    instance: int | None = None

    def rings(self) -> list[Ring]:
        """Its outlines: one for each part of a concept, one for all of an instance."""
        parts = outlines(self.mask)
        if self.instance is not None:
            parts = [[ring for rings in parts for ring in rings]] if parts else []
        return [one_ring(rings) for rings in parts]


def json_bytes(record: Any, indent: int | None = None) -> bytes:
    """A JSON file in ASCII, so that any file name can be in it."""
    return (json.dumps(record, indent=indent) + "\n").encode()


def box_xywh(mask: NDArray[np.bool_]) -> list[int]:
    """Left, top, width and height in pixels of a mask (H W) that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def coco_shape(mask: NDArray[np.bool_], *, polygons: bool) -> dict[str, Any]:
    """Segmentation, box and area of a mask (H W) that is not empty, as COCO writes them."""
    from pycocotools import mask as coco_mask

    segmentation: Any
    if polygons:
        segmentation = [one_ring(rings).ravel().tolist() for rings in outlines(mask)]
    else:
        runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        segmentation = {"size": [*mask.shape], "counts": runs["counts"].decode("ascii")}
    return {"segmentation": segmentation, "bbox": box_xywh(mask), "area": int(mask.sum())}


def coco_objects(objects: Iterable[AnnotatedObject], *, polygons: bool) -> list[dict[str, Any]]:
    """COCO's annotations of one image, without the numbers that `CocoFile` gives them.

    Args:
        objects: in the image; their scores are not part of COCO, and kept by its readers.
        polygons: outlines instead of run lengths: for tools that edit them; a hole is cut open to the outline
            and borders are straightened by up to a pixel. Run lengths are exact.
    """
    return [
        {
            "category_id": each.category + 1,
            "iscrowd": 0,
            "score": round(each.score, 4),
            **coco_shape(each.mask, polygons=polygons),
        }
        for each in objects
        if each.mask.any()
    ]


class CocoFile:
    """One COCO data set of all images of a run; one annotation per concept or instance in an image.

    Names of concepts are its categories, from 1.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._record: dict[str, Any] = {
            "info": {"description": "Masks found by diffseg", "version": __version__},
            "licenses": [],
            "images": [],
            "annotations": [],
            "categories": [
                {"id": number, "name": name, "supercategory": ""}
                for number, name in enumerate(names, start=1)
            ],
        }

    def add(self, file_name: str, size_hw: Sequence[int], objects: Sequence[dict[str, Any]]) -> None:
        """Add an image and what `coco_objects` says of it."""
        images, annotations = self._record["images"], self._record["annotations"]
        h, w = size_hw
        images.append({"id": len(images) + 1, "file_name": file_name, "height": h, "width": w})
        for each in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": len(images), **each})

    def content(self) -> bytes:
        """The file with all images added so far."""
        return json_bytes(self._record)


def labelme_bytes(
    path: str | Path, image: Path, size_hw: tuple[int, int], objects: Iterable[AnnotatedObject]
) -> bytes:
    """Outlines for LabelMe, which finds the image beside the file by a relative path.

    Args:
        path: where the JSON file will be.
        image: the photograph.
        size_hw: of the image as a viewer shows it.
        objects: in the image; the outlines of an instance share a `group_id`.
    """
    shapes = [
        {
            "label": each.name,
            "points": one_ring(rings).tolist(),
            "group_id": each.instance,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for each in objects
        for rings in outlines(each.mask)
    ]
    folder = Path(path).parent if isinstance(path, str) else path.parent
    record: dict[str, Any] = {
        "version": "5.5.0",  # of LabelMe, whose fields these are
        "flags": {},
        "shapes": shapes,
        "imagePath": relative_path(folder, image),
        "imageData": None,
        "imageHeight": size_hw[0],
        "imageWidth": size_hw[1],
    }
    return json_bytes(record, indent=2)


def yolo_bytes(size_hw: tuple[int, int], objects: Iterable[AnnotatedObject]) -> bytes:
    """A line per part of a concept, `class x y x y ...` in shares of width and height; nothing for no part.

    An instance is one line: its parts are joined by cuts of no width, as Ultralytics' converter does.
    """
    h, w = size_hw
    lines = [
        f"{each.category} " + " ".join(f"{value:.6f}" for value in (ring / (w, h)).ravel())
        for each in objects
        for ring in each.rings()
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def counts_csv(keys: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """How many instances of each concept an image holds, and their pixels: a line per image and concept."""
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(["image", "concept", "count", "pixels"])
    for key, row in zip(keys, rows, strict=True):
        for each in row["concepts"]:
            table.writerow([key, each["name"], each["count"], each["pixels"]])
    return lines.getvalue().encode("utf-8", "surrogateescape")


def yolo_data(names: Sequence[str]) -> bytes:
    """The `data.yaml` YOLO's tools ask for. They look for `labels/a/b.txt` where `images/a/b.jpg` is."""
    lines = [
        "# Copy or link the images to images/ beside this file, in the same folders as in labels/.",
        "train: images",
        "val: images  # replace by images that were left out of training",
        f"nc: {len(names)}",
        f"names: {json.dumps(list(names))}",
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def voc_png(masks: Masks) -> bytes:
    """A label map with the palette of PASCAL VOC, as in its folder SegmentationClass."""
    return label_map_png(label_map(masks), [voc_color(label) for label in range(256)])


def voc_names(names: Sequence[str]) -> bytes:
    """Names and colours as the `labelmap.txt` that CVAT and Datumaro read beside VOC masks."""
    lines = ["# label:color_rgb:parts:actions"]
    for label, name in enumerate(["background", *names]):
        lines.append(f"{name}:{','.join(map(str, voc_color(label)))}::")
    return ("\n".join(lines) + "\n").encode()
