"""What writes each output format: a row of `formats.FORMATS` has its encoders here, under its names."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffseg_cli.results.annotations import (
    CocoFile,
    coco_objects,
    counts_csv,
    json_bytes,
    labelme_bytes,
    voc_names,
    voc_png,
    yolo_bytes,
    yolo_data,
)
from diffseg_cli.results.cutout import cut_out
from diffseg_cli.results.formats import RunContents, Shapes, stem
from diffseg_cli.results.instances import instance_map_png
from diffseg_cli.results.outputs import Scene, mask_png, scene_overlay, scene_sheet, score_npy
from diffseg_cli.results.probability import probability_png
from diffseg_cli.results.render import heatmap, png_bytes
from diffseg_cli.version import __version__


def _cutout(scene: Scene, _: str | Path, matting: bool) -> bytes:
    return png_bytes(cut_out(scene.image, np.logical_or.reduce(scene.masks), matting=matting))


def _coco(run: RunContents, name: str) -> bytes:
    coco = CocoFile(run.names)
    for key, row, found in zip(run.keys, run.rows, run.shapes, strict=True):
        coco.add(key, row["size_hw"], found[name])
    return coco.content()


def _voc_images(run: RunContents) -> bytes:
    return "".join(f"{stem(key)}\n" for key in run.keys).encode("utf-8", "surrogateescape")


# Format -> its file per image, from what was found, where the file will be, and whether to use matting.
PER_IMAGE: dict[str, Callable[[Scene, str | Path, bool], bytes]] = {
    "mask": lambda scene, *_: mask_png(scene.masks),
    "overlay": lambda scene, *_: png_bytes(scene_overlay(scene)),
    "heatmap": lambda scene, *_: png_bytes(heatmap(scene.found[0].score_map, scene.image)),
    "cutout": _cutout,
    "score": lambda scene, *_: score_npy(scene),
    "probability": lambda scene, *_: probability_png(scene.found[0].probability),
    "sheet": lambda scene, *_: png_bytes(scene_sheet(scene)),
    "instances": lambda scene, *_: instance_map_png(scene.instances or [], scene.size_hw),
    "labelme": lambda scene, path, _: labelme_bytes(path, scene.path, scene.size_hw, scene.objects()),
    "yolo": lambda scene, *_: yolo_bytes(scene.size_hw, scene.objects()),
    "voc": lambda scene, *_: voc_png(scene.masks),
}
# File per run -> its content.
PER_RUN: dict[str, Callable[[RunContents], bytes]] = {
    "run.json": lambda run: json_bytes({"version": __version__, **run.record, "images": run.rows}, indent=2),
    "counts.csv": lambda run: counts_csv(run.keys, run.rows),
    "coco.json": lambda run: _coco(run, "coco"),
    "coco_polygons.json": lambda run: _coco(run, "coco-polygons"),
    "data.yaml": lambda run: yolo_data(run.names),
    "labelmap.txt": lambda run: voc_names(run.names),
    "ImageSets/Segmentation/train.txt": _voc_images,
}
# Format -> what its files per run need of an image besides its row, as JSON.
SHAPES: dict[str, Callable[[Scene], Shapes]] = {
    "coco": lambda scene: coco_objects(scene.objects(), polygons=False),
    "coco-polygons": lambda scene: coco_objects(scene.objects(), polygons=True),
}
