"""Results out as annotations: COCO, LabelMe, YOLO segmentation and label maps of VOC.

What each file holds is what its own tools read; names and numbers of concepts are the same in all of them:
the i-th concept of a run is COCO category i, VOC label i, YOLO class i - 1.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.remote import relative_path
from diffseg_cli.results.outlines import one_ring, outlines
from diffseg_cli.results.palette import label_map, label_map_png, voc_color
from diffseg_cli.version import __version__

Masks = Sequence[NDArray[np.bool_]]


def json_bytes(record: Any, indent: int | None = None) -> bytes:
    """A JSON file in ASCII, so that any file name can be in it."""
    return (json.dumps(record, indent=indent) + "\n").encode()


def box_xywh(mask: NDArray[np.bool_]) -> list[int]:
    """Left, top, width and height in pixels of a mask (H W) that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def run_json(record: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> bytes:
    """The record of a run and a row per image."""
    return json_bytes({"version": __version__, **record, "images": rows}, indent=2)


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


def coco_objects(masks: Masks, scores: Sequence[float], *, polygons: bool) -> list[dict[str, Any]]:
    """COCO's annotations of one image, without the numbers that `CocoFile` gives them.

    Args:
        masks: (H W) of each concept.
        scores: how sure each is, in [0, 1]; not part of COCO, and kept by its readers.
        polygons: outlines instead of run lengths: for tools that edit them; a hole is cut open to the outline
            and borders are straightened by up to a pixel. Run lengths are exact.
    """
    return [
        {
            "category_id": number,
            "iscrowd": 0,
            "score": round(score, 4),
            **coco_shape(mask, polygons=polygons),
        }
        for number, (mask, score) in enumerate(zip(masks, scores, strict=True), start=1)
        if mask.any()
    ]


class CocoFile:
    """One COCO data set of all images of a run; one annotation per concept that was found in an image.

    Args:
        names: of the concepts, category 1 onwards.
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


def labelme_bytes(path: str | Path, image: Path, masks: Masks, names: Sequence[str]) -> bytes:
    """Outlines for LabelMe, which finds the image beside the file by a relative path.

    Args:
        path: where the JSON file will be.
        image: the photograph.
        masks: (H W) of each concept, as a viewer shows the image.
        names: of the concepts.
    """
    shapes = [
        {
            "label": name,
            "points": one_ring(rings).tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for mask, name in zip(masks, names, strict=True)
        for rings in outlines(mask)
    ]
    folder = Path(path).parent if isinstance(path, str) else path.parent
    record = {
        "version": "5.5.0",  # of LabelMe, whose fields these are
        "flags": {},
        "shapes": shapes,
        "imagePath": relative_path(folder, image),
        "imageData": None,
        "imageHeight": masks[0].shape[0],
        "imageWidth": masks[0].shape[1],
    }
    return json_bytes(record, indent=2)


def yolo_bytes(masks: Masks) -> bytes:
    """A line per part, `class x y x y ...` in shares of width and height; nothing for no part."""
    h, w = masks[0].shape
    lines = [
        f"{number} " + " ".join(f"{value:.6f}" for value in (one_ring(rings) / (w, h)).ravel())
        for number, mask in enumerate(masks)
        for rings in outlines(mask)
    ]
    return "".join(f"{line}\n" for line in lines).encode()


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
