"""Results out: what was found in one image, and what its files hold; `formats.py` lists the files there are.

Letters: H W size of the image.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.errors import UsageError
from diffseg_cli.results.annotations import AnnotatedObject, box_xywh
from diffseg_cli.results.cutout import load_matting
from diffseg_cli.results.formats import DEFAULT
from diffseg_cli.results.instances import Instance, find_instances
from diffseg_cli.results.palette import (
    concept_color,
    label_map,
    label_map_png,
    overlay_concepts,
    overlay_instances,
    settle_overlaps,
)
from diffseg_cli.results.render import heatmap, jpeg_bytes, mask_pixels, png_bytes, shrunk
from diffseg_cli.results.sheet import Tile, draw_sheet, tile_size
from diffseg_cli.specks import drop_specks
from diffseg_cli.zoom import Window

SPECK = 0.01  # of a mask: regions that are smaller are not counted
THUMBNAIL, QUALITY = 240, 80  # longest side in pixels; of its JPEG
SHEET_TILE, SHEET_SUPPORTS = 320, 5  # longest side in pixels; supports shown


@dataclass(frozen=True)
class ConceptResult:
    """One concept in one image.

    Attributes:
        name: of the concept.
        mask: bool (H W), without pixels another concept has a better claim to.
        probability: float32 (H W) in [0, 1].
        score_map: float32 (H W) in [0, 1].
        presence: in [0, 1], or None without calibration.
        windows: where the model looked again, closer.
        instances: of the mask; None where they were not asked for.
    """

    name: str
    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    score_map: NDArray[np.float32]
    presence: float | None
    windows: Sequence[Window] = ()
    instances: list[Instance] | None = None

    @property
    def score(self) -> float:
        """How sure it is, in [0, 1]: mean probability inside the mask, times presence where it is known."""
        if not self.mask.any():
            return 0.0
        return float(self.probability[self.mask].mean()) * (1 if self.presence is None else self.presence)

    @property
    def regions(self) -> int:
        """Connected regions of the mask, without specks."""
        _, _, figures, _ = cv2.connectedComponentsWithStats(self.mask.astype(np.uint8))
        sizes = figures[1:, cv2.CC_STAT_AREA]  # the first is the background
        return int(np.count_nonzero(sizes >= SPECK * sizes.sum()))

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        apart: dict[str, Any] = {}
        if self.instances is not None:
            apart = {"count": len(self.instances), "instances": [each.record() for each in self.instances]}
        return {
            "name": self.name,
            "mask_area": float(self.mask.mean()),
            "pixels": int(self.mask.sum()),
            "box_xywh": box_xywh(self.mask) if self.mask.any() else None,
            "regions": self.regions,
            "presence": self.presence,
            "score": round(self.score, 4),
            "looks": 1 + len(self.windows),
            **apart,
        }


@dataclass(frozen=True)
class Scene:
    """Everything found in one image.

    Attributes:
        path: where it was read from.
        image: uint8 (H W 3).
        found: of each concept, at least one, in the order of the run.
        supports: small images uint8 (h w 3) of what was looked for, with a title each.
    """

    path: Path
    image: NDArray[np.uint8]
    found: list[ConceptResult]
    supports: Sequence[tuple[NDArray[np.uint8], str]] = ()

    @property
    def masks(self) -> list[NDArray[np.bool_]]:
        return [found.mask for found in self.found]

    @property
    def names(self) -> list[str]:
        return [found.name for found in self.found]

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    @property
    def instances(self) -> list[Instance] | None:
        """Of all concepts, or None where they were not asked for."""
        if self.found[0].instances is None:
            return None
        return [each for found in self.found for each in found.instances or []]

    def objects(self) -> Iterator[AnnotatedObject]:
        """What annotations hold: the instances where they were asked for, else the concepts."""
        for category, found in enumerate(self.found):
            if found.instances is None:
                yield AnnotatedObject(category, found.name, found.mask, found.score)
            for each in found.instances or []:
                mask = each.whole_mask(self.size_hw)
                yield AnnotatedObject(category, found.name, mask, each.score, each.id)


def settle(found: Sequence[ConceptResult], min_area: str) -> list[ConceptResult]:
    """Several concepts without overlaps.

    A pixel that two masks claim goes to the concept that is more probably there: its probability is that of
    the pixel if the concept is in the image, times the calibrated presence that it is.

    Args:
        found: their masks, without specks.
        min_area: as in `drop_specks`, of the parts of a mask that lost pixels.
    """
    if len(found) < 2:
        return list(found)
    claims = [each.probability * np.float32(1 if each.presence is None else each.presence) for each in found]
    masks = settle_overlaps([each.mask for each in found], claims)
    # Only parts are dropped: what is in a hole may be another concept's.
    masks = [mask & drop_specks(mask, min_area) for mask in masks]
    return [replace(each, mask=mask) for each, mask in zip(found, masks, strict=True)]


def number_instances(found: Sequence[ConceptResult]) -> list[ConceptResult]:
    """Settled concepts with their instances, numbered through the image."""
    numbered, first = [], 1
    for each in found:
        instances = find_instances(each.mask, each.probability, each.presence, first)
        numbered.append(replace(each, instances=instances))
        first += len(instances)
    return numbered


def choose_formats(wanted: Sequence[str] | None, *, matting: bool, instances: bool) -> list[str]:
    """The formats of a run, each once.

    Raises:
        UsageError: matting without cut-outs, or a map of instances that nobody asked to tell apart.
        MissingDependency: matting is asked for and not installed.
    """
    chosen = list(dict.fromkeys(wanted or (*DEFAULT, *(["instances"] if instances else []))))
    if "instances" in chosen and not instances:
        raise UsageError("--format instances needs objects told apart.", "Add --instances.")
    if matting and "cutout" not in chosen:
        raise UsageError("--matting is for cut-outs.", "Add --format cutout, or leave it out.")
    if matting:
        load_matting()
    return chosen


def mask_png(masks: Sequence[NDArray[np.bool_]]) -> bytes:
    """One mask (H W) as a PNG file of 0 and 255; several as a palette PNG, value i for the i-th concept."""
    if len(masks) == 1:
        return png_bytes(mask_pixels(masks[0]))
    return label_map_png(
        label_map(masks), [(0, 0, 0), *(concept_color(index) for index in range(len(masks)))]
    )


def score_npy(scene: Scene) -> bytes:
    """Probabilities as an NPY file: float32 (H W), of several concepts (n H W) in their order."""
    maps = [found.probability for found in scene.found]
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(maps[0] if len(maps) == 1 else np.stack(maps)), allow_pickle=False)
    return content.getvalue()


def scene_sheet(scene: Scene) -> NDArray[np.uint8]:
    """Supports, query, maps and result side by side: uint8 (h w 3)."""
    tile_hw = tile_size((scene.image.shape[0], scene.image.shape[1]), SHEET_TILE)
    several = len(scene.found) > 1
    tiles = [Tile(fitted(pixels, tile_hw), title) for pixels, title in scene.supports[:SHEET_SUPPORTS]]
    tiles.append(Tile(scene.image, "query", scene.path.name))
    for each in scene.found:
        title = f"score map, {each.name}" if several else "score map"
        presence = "" if each.presence is None else f"presence {each.presence:.2f}"
        tiles.append(Tile(heatmap(each.score_map, scene.image), title, presence))
    share = float(np.logical_or.reduce(scene.masks).mean())
    counted = "" if scene.instances is None else f"{len(scene.instances)} instances, "
    tiles.append(Tile(scene_overlay(scene), "result", f"{counted}{share:.1%} of the image"))
    columns = min(len(tiles), 6)
    return draw_sheet(
        [("", tiles)],
        heading=f"{' and '.join(scene.names)} in {scene.path.name}",
        tile_hw=tile_hw,
        most_columns=columns,
    )


def scene_overlay(scene: Scene) -> NDArray[np.uint8]:
    """The image with what was found: uint8 (H W 3)."""
    if scene.instances is None:
        return overlay_concepts(scene.image, scene.masks, scene.names)
    several = len(scene.found) > 1
    titles = [
        f"{found.name} {each.id}" if several else str(each.id)
        for found in scene.found
        for each in found.instances or []
    ]
    return overlay_instances(scene.image, scene.instances, titles)


def thumbnail_jpeg(scene: Scene) -> bytes:
    """A small overlay for the contact sheet."""
    if scene.instances is not None:
        return jpeg_bytes(shrunk(scene_overlay(scene), THUMBNAIL), QUALITY)
    masks = [shrunk(mask.astype(np.uint8), THUMBNAIL) > 0 for mask in scene.masks]
    return jpeg_bytes(overlay_concepts(shrunk(scene.image, THUMBNAIL), masks, scene.names), QUALITY)


def support_tile(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A support (H W 3) as it is meant: its background (H W) darkened, at most a sheet's tile large."""
    meant = np.where(mask[..., None], image, image // 4)
    return shrunk(meant, SHEET_TILE)


def support_sheet(
    concepts: Sequence[tuple[str, Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_], str]]]],
) -> NDArray[np.uint8]:
    """Supports of concepts on one page, one row per concept: (name, [image (h w 3), mask (h w), title])."""
    tile_hw = (SHEET_TILE * 3 // 4, SHEET_TILE)
    rows = [
        (name, [Tile(fitted(support_tile(image, mask), tile_hw), title) for image, mask, title in supports])
        for name, supports in concepts
    ]
    return draw_sheet(rows, heading="Supports", tile_hw=tile_hw, most_columns=6)


def fitted(pixels: NDArray[np.uint8], tile_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """An image of another shape in the middle of a tile, not stretched."""
    h, w = pixels.shape[:2]
    scale = min(tile_hw[0] / h, tile_hw[1] / w)
    size_hw = max(1, round(h * scale)), max(1, round(w * scale))
    tile = np.full((*tile_hw, 3), 40, dtype=np.uint8)
    top, left = (tile_hw[0] - size_hw[0]) // 2, (tile_hw[1] - size_hw[1]) // 2
    resized = cv2.resize(pixels, size_hw[::-1], interpolation=cv2.INTER_AREA)
    tile[top : top + size_hw[0], left : left + size_hw[1]] = resized
    return tile
