"""Every output format in one row: its name, and its files per image and per run.

A new format is a row of `FORMATS` and its encoders in `encoders.py`, under the same names. Help lists the
names, so this module imports nothing heavy.
"""

from collections.abc import Iterable, Mapping, Sequence
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
        shapes: of each, by format: of `shapes_of`.
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
        run: the names of its files per run.
        apart: each concept has a file of its own where there are several.
        shapes: whether files per run need more of an image than its row.
    """

    name: str
    pattern: str = ""
    run: tuple[str, ...] = ()
    apart: bool = False
    shapes: bool = False


FORMATS = {
    each.name: each
    for each in (
        Format("mask", "*_mask.png"),
        Format("overlay", "*_overlay.png"),
        Format("heatmap", "*_heatmap.png", apart=True),  # one image cannot show two maps
        Format("cutout", "*_cutout.png"),
        Format("score", "*_score.npy"),
        # What `diffseg threshold` needs, for a run of `segment` with the record of the run.
        Format("probability", "*_probability.png", ("run.json",), apart=True),
        Format("sheet", "*_sheet.png"),
        Format("instances", "*_instances.png", ("counts.csv",)),
        Format("json", run=("run.json",)),
        Format("coco", run=("coco.json",), shapes=True),
        Format("coco-polygons", run=("coco_polygons.json",), shapes=True),
        Format("labelme", "*_labelme.json"),
        Format("yolo", "labels/*.txt", ("data.yaml",)),
        Format("voc", "SegmentationClass/*.png", ("labelmap.txt", "ImageSets/Segmentation/train.txt")),
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

    `path` is where the file will be: some lead from there to the image.

    Raises:
        MissingDependency: matting is asked for and not installed.
        ValueError: no result is called this.
    """
    from diffseg_cli.results.encoders import PER_IMAGE

    chosen, _, name = what.partition(":")
    if chosen not in PER_IMAGE:
        raise ValueError(f"no result per image is called {what}")
    if name:
        scene = replace(scene, found=[each for each in scene.found if each.name == name])
    return PER_IMAGE[chosen](scene, path, matting)


def run_files(formats: Iterable[str]) -> dict[str, str]:
    """Result -> its file per run, below the folder of the results; a second one is called "FORMAT:STEM"."""
    return {
        chosen if number == 0 else f"{chosen}:{PurePosixPath(file).stem}": file
        for chosen in formats
        for number, file in enumerate(FORMATS[chosen].run)
    }


def encode_run(formats: Iterable[str], run: RunContents) -> dict[str, bytes]:
    """File of `run_files` -> its content."""
    from diffseg_cli.results.encoders import PER_RUN

    return {file: PER_RUN[file](run) for chosen in formats for file in FORMATS[chosen].run}


def shapes_of(formats: Iterable[str], scene: "Scene") -> dict[str, Shapes]:
    """What files per run need of an image besides its row, as JSON, by format."""
    from diffseg_cli.results.encoders import SHAPES

    return {chosen: SHAPES[chosen](scene) for chosen in formats if FORMATS[chosen].shapes}
