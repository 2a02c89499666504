"""Every output format in one row: its name, its files per image and per run, and what writes them.

A new format is a row of `FORMATS` with its encoders, here and nowhere else. Help lists the names, so this
module imports nothing heavy: encoders import what they need when they are called.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from diffseg_cli.results.outputs import Scene

Shapes = list[dict[str, Any]]
DEFAULT = ("mask", "heatmap", "overlay")
UNNAMED = "object"  # what a concept without a name is called in results


@dataclass(frozen=True)
class RunContents:
    """What files of a whole run are made from.

    Attributes:
        names: of the concepts.
        record: what is said of the run besides its images.
        keys: of the images: where each lies below what was searched.
        rows: what is said of each.
        shapes: of each, by format: of `Format.shapes`.
    """

    names: Sequence[str]
    record: Mapping[str, Any]
    keys: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    shapes: list[Mapping[str, Shapes]] = field(default_factory=list)

    def add(self, key: str, row: dict[str, Any], shapes: Mapping[str, Shapes]) -> None:
        """Add an image; `row` holds its `size_hw`."""
        self.keys.append(key)
        self.rows.append(row)
        self.shapes.append(shapes)


@dataclass(frozen=True)
class Format:
    """One output format: a file per image, files per run, or both.

    Attributes:
        name: of `--format`.
        pattern: the name of its file per image, where "*" stands for the image; "" for none.
        encode: (what was found, where the file will be, whether to use matting) -> its content.
        apart: each concept has a file of its own where there are several.
        run: its files per run -> their content.
        shapes: what those need of an image besides its row, as JSON.
    """

    name: str
    pattern: str = ""
    encode: "Callable[[Scene, str | Path, bool], bytes] | None" = None
    apart: bool = False
    run: Mapping[str, Callable[[RunContents], bytes]] = field(default_factory=dict)
    shapes: "Callable[[Scene], Shapes] | None" = None


# --- encoders ------------------------------------------------------------------------------------------


def _mask(scene: "Scene", *_: Any) -> bytes:
    from diffseg_cli.results.outputs import mask_png

    return mask_png(scene.masks)


def _overlay(scene: "Scene", *_: Any) -> bytes:
    from diffseg_cli.results.outputs import scene_overlay
    from diffseg_cli.results.render import png_bytes

    return png_bytes(scene_overlay(scene))


def _heatmap(scene: "Scene", *_: Any) -> bytes:
    from diffseg_cli.results.render import heatmap, png_bytes

    return png_bytes(heatmap(scene.found[0].score_map, scene.image))


def _cutout(scene: "Scene", _path: "str | Path", matting: bool) -> bytes:
    import numpy as np

    from diffseg_cli.results.cutout import cut_out
    from diffseg_cli.results.render import png_bytes

    return png_bytes(cut_out(scene.image, np.logical_or.reduce(scene.masks), matting=matting))


def _score(scene: "Scene", *_: Any) -> bytes:
    from diffseg_cli.results.outputs import score_npy

    return score_npy(scene)


def _probability(scene: "Scene", *_: Any) -> bytes:
    from diffseg_cli.results.probability import probability_png

    return probability_png(scene.found[0].probability)


def _sheet(scene: "Scene", *_: Any) -> bytes:
    from diffseg_cli.results.outputs import scene_sheet
    from diffseg_cli.results.render import png_bytes

    return png_bytes(scene_sheet(scene))


def _run_json(run: RunContents) -> bytes:
    from diffseg_cli.results.annotations import run_json

    return run_json(run.record, run.rows)


def _coco_format(name: str, file: str, *, polygons: bool) -> Format:
    def shapes(scene: "Scene") -> Shapes:
        from diffseg_cli.results.annotations import coco_objects

        return coco_objects(scene.objects(), polygons=polygons)

    def content(run: RunContents) -> bytes:
        from diffseg_cli.results.annotations import CocoFile

        coco = CocoFile(run.names)
        for key, row, found in zip(run.keys, run.rows, run.shapes, strict=True):
            coco.add(key, row["size_hw"], found[name])
        return coco.content()

    return Format(name, run={file: content}, shapes=shapes)


def _labelme(scene: "Scene", path: "str | Path", _matting: bool) -> bytes:
    from diffseg_cli.results.annotations import labelme_bytes

    return labelme_bytes(path, scene.path, scene.size_hw, scene.objects())


def _yolo(scene: "Scene", *_: Any) -> bytes:
    from diffseg_cli.results.annotations import yolo_bytes

    return yolo_bytes(scene.size_hw, scene.objects())


def _yolo_data(run: RunContents) -> bytes:
    from diffseg_cli.results.annotations import yolo_data

    return yolo_data(run.names)


def _voc(scene: "Scene", *_: Any) -> bytes:
    from diffseg_cli.results.annotations import voc_png

    return voc_png(scene.masks)


def _voc_names(run: RunContents) -> bytes:
    from diffseg_cli.results.annotations import voc_names

    return voc_names(run.names)


def _voc_images(run: RunContents) -> bytes:
    return "".join(f"{stem(key)}\n" for key in run.keys).encode("utf-8", "surrogateescape")


def _instances(scene: "Scene", *_: Any) -> bytes:
    from diffseg_cli.results.instances import instance_map_png

    return instance_map_png(scene.instances or [], scene.size_hw)


def _counts(run: RunContents) -> bytes:
    from diffseg_cli.results.annotations import counts_csv

    return counts_csv(run.keys, run.rows)


# --- the table -----------------------------------------------------------------------------------------

FORMATS = {
    each.name: each
    for each in (
        Format("mask", "*_mask.png", _mask),
        Format("overlay", "*_overlay.png", _overlay),
        Format("heatmap", "*_heatmap.png", _heatmap, apart=True),  # one image cannot show two maps
        Format("cutout", "*_cutout.png", _cutout),
        Format("score", "*_score.npy", _score),
        # What `diffseg threshold` needs, for a run of `segment` with the record of the run.
        Format("probability", "*_probability.png", _probability, apart=True, run={"run.json": _run_json}),
        Format("sheet", "*_sheet.png", _sheet),
        Format("instances", "*_instances.png", _instances, run={"counts.csv": _counts}),
        Format("json", run={"run.json": _run_json}),
        _coco_format("coco", "coco.json", polygons=False),
        _coco_format("coco-polygons", "coco_polygons.json", polygons=True),
        Format("labelme", "*_labelme.json", _labelme),
        Format("yolo", "labels/*.txt", _yolo, run={"data.yaml": _yolo_data}),
        Format(
            "voc",
            "SegmentationClass/*.png",
            _voc,
            run={"labelmap.txt": _voc_names, "ImageSets/Segmentation/train.txt": _voc_images},
        ),
    )
}


# --- what follows from it ------------------------------------------------------------------------------


def stem(key: str) -> str:
    """An image's key without its suffix: what its results are named after."""
    return key[: len(key) - len(PurePosixPath(key).suffix)]


def image_name(pattern: str, key: str) -> str:
    """The name of an image's file below the folder of the results."""
    return pattern.replace("*", stem(key), 1)


def format_of(name: str) -> str | None:
    """The format that a file's name asks for, or None: `scene_overlay.png` is an overlay, other PNG masks."""
    ends = {each.name: each.pattern.rpartition("*")[2] for each in FORMATS.values() if each.pattern}
    named = [form for form, end in ends.items() if end.startswith("_") and name.endswith(end)]
    suffix = PurePosixPath(name).suffix.lower()
    alike = [form for form, end in ends.items() if suffix and end.endswith(suffix)]
    return next(iter([*named, *alike]), None)


def image_patterns(formats: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """Result -> the pattern of its file per image, of a run that looks for concepts of these names.

    Results have the names of their formats; where each concept has a file of its own, "FORMAT:CONCEPT".
    """
    patterns: dict[str, str] = {}
    for chosen in (FORMATS[name] for name in formats):
        if chosen.apart and len(names) > 1:
            root, dot, kind = chosen.pattern.rpartition(".")
            patterns |= {f"{chosen.name}:{name}": f"{root}_{name}{dot}{kind}" for name in names}
        elif chosen.pattern:
            patterns[chosen.name] = chosen.pattern
    return patterns


def encode_image(what: str, path: "str | Path", scene: "Scene", *, matting: bool = False) -> bytes:
    """The content of one result of `image_patterns`.

    Args:
        what: the result.
        path: where the file will be, for formats that lead from there to the image.
        scene: what was found.
        matting: softer borders of cut-outs.

    Raises:
        MissingDependency: matting is asked for and not installed.
        ValueError: no result is called this.
    """
    chosen, _, name = what.partition(":")
    encode = FORMATS[chosen].encode if chosen in FORMATS else None
    if encode is None:
        raise ValueError(f"no result per image is called {what}")
    if name:
        scene = replace(scene, found=[each for each in scene.found if each.name == name])
    return encode(scene, path, matting)


def run_files(formats: Iterable[str]) -> dict[str, str]:
    """Result -> its file per run, below the folder of the results; a second one is called "FORMAT:STEM"."""
    return {
        chosen if number == 0 else f"{chosen}:{PurePosixPath(file).stem}": file
        for chosen in formats
        for number, file in enumerate(FORMATS[chosen].run)
    }


def encode_run(formats: Iterable[str], run: RunContents) -> dict[str, bytes]:
    """File of `run_files` -> its content."""
    return {file: encode(run) for chosen in formats for file, encode in FORMATS[chosen].run.items()}


def shapes_of(formats: Iterable[str], scene: "Scene") -> dict[str, Shapes]:
    """What files per run need of an image besides its row, by format."""
    wanted = {chosen: FORMATS[chosen].shapes for chosen in formats}
    return {chosen: shapes(scene) for chosen, shapes in wanted.items() if shapes}
