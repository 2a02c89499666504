"""Results out: what was found in one picture, in every format it can leave in.

A format is a file a picture, a file a run (`RUN_FILES`), or both. Letters: H W size of the picture.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.results import annotations
from diffseg_cli.results.cutout import cut_out
from diffseg_cli.results.palette import label_map, label_map_png, overlay_things, settle_overlaps, thing_color
from diffseg_cli.results.render import (
    heatmap,
    mask_pixels,
    png_bytes,
    whole_file,
    write_heatmap,
    write_picture,
)
from diffseg_cli.results.sheet import Tile, draw_sheet, tile_size
from diffseg_cli.version import __version__

# What follows the picture's stem in the name of its file.
PICTURE_FILES = {
    "mask": "_mask.png",
    "overlay": "_overlay.png",
    "heatmap": "_heatmap.png",
    "cutout": "_cutout.png",
    "score": "_score.npy",
    "labelme": "_labelme.json",
    "yolo": ".txt",
    "voc": "_voc.png",
    "sheet": "_sheet.png",
}
RUN_FILES = {
    "coco": "coco.json",
    "coco-polygons": "coco_polygons.json",
    "yolo": "data.yaml",
    "voc": "labelmap.txt",
    "json": "run.json",
}
DEFAULT_FORMATS = ("mask", "heatmap", "overlay")
SHEET_TILE, SHEET_SUPPORTS = 320, 5  # longest side in pixels; supports shown


@dataclass(frozen=True)
class Found:
    """One thing in one picture.

    Attributes:
        name: of the thing.
        mask: bool (H W), without pixels another thing has a better claim to.
        probability: float32 (H W) in [0, 1].
        score_map: float32 (H W) in [0, 1].
        presence: in [0, 1], or None without calibration.
    """

    name: str
    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    score_map: NDArray[np.float32]
    presence: float | None

    @property
    def score(self) -> float:
        """How sure it is, in [0, 1]: mean probability inside the mask, times presence where it is known."""
        if not self.mask.any():
            return 0.0
        return float(self.probability[self.mask].mean()) * (1 if self.presence is None else self.presence)


@dataclass(frozen=True)
class Scene:
    """Everything found in one picture.

    Attributes:
        picture: where it was read from.
        image: uint8 (H W 3).
        things: at least one, in the order of the run.
        supports: small pictures uint8 (h w 3) of what was looked for, with a title each.
    """

    picture: Path
    image: NDArray[np.uint8]
    things: list[Found]
    supports: Sequence[tuple[NDArray[np.uint8], str]] = ()

    @property
    def masks(self) -> list[NDArray[np.bool_]]:
        return [thing.mask for thing in self.things]

    @property
    def names(self) -> list[str]:
        return [thing.name for thing in self.things]


def settle(things: Sequence[Found]) -> list[Found]:
    """Several things without overlaps.

    A pixel two masks claim goes to the thing that is more probably there: its probability is that of the
    pixel if the thing is in the picture, times the calibrated presence that it is.
    """
    if len(things) < 2:
        return list(things)
    claims = [
        thing.probability * np.float32(1 if thing.presence is None else thing.presence) for thing in things
    ]
    masks = settle_overlaps([thing.mask for thing in things], claims)
    return [
        Found(thing.name, mask, thing.probability, thing.score_map, thing.presence)
        for thing, mask in zip(things, masks, strict=True)
    ]


def picture_files(formats: Iterable[str], names: Sequence[str]) -> dict[str, str]:
    """Result -> what follows the picture's stem, of a run that looks for these things.

    Heatmaps of several things are files apart: one picture cannot show two maps.
    """
    files: dict[str, str] = {}
    for chosen in formats:
        if chosen == "heatmap" and len(names) > 1:
            files |= {f"heatmap:{name}": f"_heatmap_{name}.png" for name in names}
        elif chosen in PICTURE_FILES:
            files[chosen] = PICTURE_FILES[chosen]
    return files


def write_result(what: str, path: Path, scene: Scene, *, matting: bool = False) -> None:
    """Write one result of `picture_files`.

    Raises:
        InputError: the file cannot be written.
        MissingDependency: matting is asked for and not installed.
    """
    kind, _, name = what.partition(":")
    if kind == "mask":
        with whole_file(path) as stream:
            stream.write(mask_png(scene.masks))
    elif kind == "overlay":
        write_picture(path, overlay_things(scene.image, scene.masks, scene.names))
    elif kind == "heatmap":
        found = next(thing for thing in scene.things if name in ("", thing.name))
        write_heatmap(path, found.score_map, scene.image)
    elif kind == "cutout":
        write_picture(path, cut_out(scene.image, np.logical_or.reduce(scene.masks), matting=matting))
    elif kind == "score":
        write_scores(path, scene)
    elif kind == "labelme":
        annotations.write_labelme(path, scene.picture, scene.masks, scene.names)
    elif kind == "yolo":
        annotations.write_yolo(path, scene.masks)
    elif kind == "voc":
        annotations.write_voc(path, scene.masks)
    elif kind == "sheet":
        write_picture(path, scene_sheet(scene))
    else:
        raise ValueError(f"no result is called {what}")


def mask_png(masks: Sequence[NDArray[np.bool_]]) -> bytes:
    """One mask (H W) as a PNG file of 0 and 255; several as a palette PNG whose value i is the i-th thing."""
    if len(masks) == 1:
        return png_bytes(mask_pixels(masks[0]))
    return label_map_png(label_map(masks), [(0, 0, 0), *(thing_color(index) for index in range(len(masks)))])


def write_scores(path: Path, scene: Scene) -> None:
    """Write probabilities as NPY: float32 (H W), of several things (n H W) in their order."""
    maps = [thing.probability for thing in scene.things]
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(maps[0] if len(maps) == 1 else np.stack(maps)), allow_pickle=False)
    with whole_file(path) as stream:
        stream.write(content.getbuffer())


def scene_sheet(scene: Scene) -> NDArray[np.uint8]:
    """Supports, query, maps and result side by side: uint8 (h w 3)."""
    tile_hw = tile_size((scene.image.shape[0], scene.image.shape[1]), SHEET_TILE)
    several = len(scene.things) > 1
    tiles = [Tile(_fitted(pixels, tile_hw), title) for pixels, title in scene.supports[:SHEET_SUPPORTS]]
    tiles.append(Tile(scene.image, "query", scene.picture.name))
    for thing in scene.things:
        title = f"score map, {thing.name}" if several else "score map"
        presence = "" if thing.presence is None else f"presence {thing.presence:.2f}"
        tiles.append(Tile(heatmap(thing.score_map, scene.image), title, presence))
    share = float(np.logical_or.reduce(scene.masks).mean())
    found = overlay_things(scene.image, scene.masks, scene.names)
    tiles.append(Tile(found, "result", f"{share:.1%} of the picture"))
    columns = min(len(tiles), 6)
    return draw_sheet(
        [("", tiles)],
        heading=f"{' and '.join(scene.names)} in {scene.picture.name}",
        tile_hw=tile_hw,
        most_columns=columns,
    )


def support_tile(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A support (H W 3) as it is meant: its background (H W) darkened, at most a sheet's tile large."""
    meant = np.where(mask[..., None], image, image // 4)
    return _shrunk(meant, SHEET_TILE)


def support_sheet(
    things: Sequence[tuple[str, Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_], str]]]],
) -> NDArray[np.uint8]:
    """Supports of things on one page, a row each: (name, [picture (h w 3), mask (h w), title])."""
    tile_hw = (SHEET_TILE * 3 // 4, SHEET_TILE)
    rows = [
        (name, [Tile(_fitted(support_tile(image, mask), tile_hw), title) for image, mask, title in supports])
        for name, supports in things
    ]
    return draw_sheet(rows, heading="Supports", tile_hw=tile_hw, most_columns=6)


class RunFiles:
    """The files of a whole run; pictures are added one by one.

    Args:
        paths: format -> file, of those in `RUN_FILES`.
        names: of the things.
        record: what `json` says of the run besides its pictures.
    """

    def __init__(self, paths: dict[str, Path], names: Sequence[str], record: dict[str, Any]) -> None:
        self.paths, self._names, self._record = paths, names, record
        self._rows: list[dict[str, Any]] = []
        self._coco = {
            what: annotations.CocoFile(names, polygons=what == "coco-polygons")
            for what in paths
            if what.startswith("coco")
        }

    def add(self, scene: Scene, row: dict[str, Any]) -> None:
        """Add a picture, and what `json` says of it."""
        for coco in self._coco.values():
            coco.add(scene.picture.name, scene.masks, [thing.score for thing in scene.things])
        if "json" in self.paths:
            self._rows.append(row)

    def write(self) -> None:
        """Write all of them.

        Raises:
            InputError: a file cannot be written.
        """
        for what, path in self.paths.items():
            if what in self._coco:
                self._coco[what].write(path)
            elif what == "yolo":
                annotations.write_yolo_names(path, self._names)
            elif what == "voc":
                annotations.write_voc_names(path, self._names)
            else:
                record = {"version": __version__, **self._record, "pictures": self._rows}
                annotations.write_json(path, record, indent=2)


def _fitted(pixels: NDArray[np.uint8], tile_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture of another shape in the middle of a tile, not stretched."""
    h, w = pixels.shape[:2]
    scale = min(tile_hw[0] / h, tile_hw[1] / w)
    size_hw = max(1, round(h * scale)), max(1, round(w * scale))
    tile = np.full((*tile_hw, 3), 40, dtype=np.uint8)
    top, left = (tile_hw[0] - size_hw[0]) // 2, (tile_hw[1] - size_hw[1]) // 2
    resized = cv2.resize(pixels, size_hw[::-1], interpolation=cv2.INTER_AREA)
    tile[top : top + size_hw[0], left : left + size_hw[1]] = resized
    return tile


def _shrunk(pixels: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    scale = longest / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    size_wh = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    shrunk: NDArray[np.uint8] = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)
    return shrunk
