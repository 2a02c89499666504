"""Results out as annotations: COCO, LabelMe, YOLO segmentation and label maps of VOC.

What each file holds is what its own tools read; names and numbers of things are the same in all of them: the
i-th thing of a run is COCO category i, VOC label i, YOLO class i - 1.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.results.outlines import one_ring, outlines
from diffseg_cli.results.palette import label_map, label_map_png, voc_color
from diffseg_cli.results.render import whole_file
from diffseg_cli.version import __version__

Masks = Sequence[NDArray[np.bool_]]


def write_json(path: str | Path, record: Any, indent: int | None = None) -> None:
    """Write JSON in ASCII, so that any file name can be in it."""
    with whole_file(path) as stream:
        stream.write((json.dumps(record, indent=indent) + "\n").encode())


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8."""
    with whole_file(path) as stream:
        stream.write(text.encode())


class CocoFile:
    """One COCO data set of all pictures of a run; an annotation a thing that was found in a picture.

    Args:
        names: of the things, category 1 onwards.
        polygons: outlines instead of run lengths: for tools that edit them; a hole is cut open to the outline
            and borders are straightened by up to a pixel. Run lengths are exact.
    """

    def __init__(self, names: Sequence[str], *, polygons: bool = False) -> None:
        self._polygons = polygons
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

    def add(self, file_name: str, masks: Masks, scores: Sequence[float]) -> None:
        """Add a picture.

        Args:
            file_name: of the picture.
            masks: (H W) of each thing.
            scores: how sure each is, in [0, 1]; not part of COCO, and kept by its readers.
        """
        images, annotations = self._record["images"], self._record["annotations"]
        h, w = masks[0].shape
        images.append({"id": len(images) + 1, "file_name": file_name, "height": h, "width": w})
        for number, (mask, score) in enumerate(zip(masks, scores, strict=True), start=1):
            if mask.any():
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": number,
                        "iscrowd": 0,
                        "score": round(score, 4),
                        **_coco_shape(mask, self._polygons),
                    }
                )

    def write(self, path: str | Path) -> None:
        """Write all pictures added so far."""
        write_json(path, self._record)


def _coco_shape(mask: NDArray[np.bool_], polygons: bool) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    segmentation: Any
    if polygons:
        segmentation = [one_ring(rings).ravel().tolist() for rings in outlines(mask)]
    else:
        runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        segmentation = {"size": [*mask.shape], "counts": runs["counts"].decode("ascii")}
    return {"segmentation": segmentation, "bbox": box, "area": int(mask.sum())}


def write_labelme(path: str | Path, picture: Path, masks: Masks, names: Sequence[str]) -> None:
    """Write outlines for LabelMe, which finds the picture beside the file by a relative path.

    Args:
        path: of the JSON file.
        picture: the photograph.
        masks: (H W) of each thing, as a viewer shows the picture.
        names: of the things.
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
    try:
        where = os.path.relpath(picture.absolute(), Path(path).absolute().parent)
    except ValueError:  # another drive
        where = str(picture.absolute())
    record = {
        "version": "5.5.0",  # of LabelMe, whose fields these are
        "flags": {},
        "shapes": shapes,
        "imagePath": where,
        "imageData": None,
        "imageHeight": masks[0].shape[0],
        "imageWidth": masks[0].shape[1],
    }
    write_json(path, record, indent=2)


def write_yolo(path: str | Path, masks: Masks) -> None:
    """Write a line a part, `class x y x y ...` in shares of width and height; an empty file for no part."""
    h, w = masks[0].shape
    lines = [
        f"{number} " + " ".join(f"{value:.6f}" for value in (one_ring(rings) / (w, h)).ravel())
        for number, mask in enumerate(masks)
        for rings in outlines(mask)
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_yolo_names(path: str | Path, names: Sequence[str]) -> None:
    """Write the classes of a run as the `data.yaml` YOLO's tools ask for."""
    write_text(path, f"nc: {len(names)}\nnames: {json.dumps(list(names))}\n")


def write_voc(path: str | Path, masks: Masks) -> None:
    """Write a label map with the palette of PASCAL VOC, as in its folder SegmentationClass."""
    with whole_file(path) as stream:
        stream.write(label_map_png(label_map(masks), [voc_color(label) for label in range(256)]))


def write_voc_names(path: str | Path, names: Sequence[str]) -> None:
    """Write names and colours as the `labelmap.txt` that CVAT and Datumaro read beside VOC masks."""
    lines = ["# label:color_rgb:parts:actions"]
    for label, name in enumerate(["background", *names]):
        lines.append(f"{name}:{','.join(map(str, voc_color(label)))}::")
    write_text(path, "\n".join(lines) + "\n")
