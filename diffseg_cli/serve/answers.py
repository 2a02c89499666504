"""What was found in a picture, as the body of a response."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.results.annotations import coco_shape
from diffseg_cli.results.cutout import cut_out
from diffseg_cli.results.outputs import Found, mask_png
from diffseg_cli.results.palette import overlay_things
from diffseg_cli.results.render import heatmap, png_bytes

PNG, JSON = "image/png", "application/json"
FORMATS = ("mask", "overlay", "heatmap", "cutout", "json")
EXTRAS = ("rle", "polygons", "probability", "score_map")  # of JSON
LEVELS = 200  # steps of half a percent: thresholds in percent cut exactly between two of them
GRID = (np.arange(LEVELS + 1) / LEVELS).astype(np.float32)
SCORE_MAP_SIDE = 1024  # longest; the model's own map is far smaller


@dataclass(frozen=True)
class Answer:
    """The body of a response.

    Attributes:
        content: all of it.
        media_type: of it.
        headers: what a picture cannot say.
    """

    content: bytes
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)


def json_answer(record: Any) -> Answer:
    return Answer(json.dumps(record).encode(), JSON)


def picture_answer(what: str, image: NDArray[np.uint8], found: Found) -> Answer:
    """A PNG: "mask", "overlay", "heatmap" or "cutout"; presence and area are in the headers."""
    if what == "mask":
        content = mask_png([found.mask])
    elif what == "overlay":
        content = png_bytes(overlay_things(image, [found.mask], [found.name]))
    elif what == "heatmap":
        content = png_bytes(heatmap(found.score_map, image))
    else:
        content = png_bytes(cut_out(image, found.mask))
    headers = {"X-Diffseg-Area": f"{found.mask.mean():.6f}"}
    if found.presence is not None:
        headers["X-Diffseg-Presence"] = f"{found.presence:.4f}"
    return Answer(content, PNG, headers)


def found_record(found: Found, extras: tuple[str, ...]) -> dict[str, Any]:
    """What JSON says of a thing in a picture.

    Args:
        found: the thing.
        extras: of `EXTRAS`, what to say besides size, area, box and scores.
    """
    filled = found.mask.any()
    record: dict[str, Any] = {
        "name": found.name,
        "size_hw": list(found.mask.shape),
        "mask_area": float(found.mask.mean()),
        "pixels": int(found.mask.sum()),
        "box_xywh": coco_shape(found.mask, polygons=False)["bbox"] if filled else None,
        "presence": found.presence,
        "score": round(found.score, 4),
    }
    if "rle" in extras:
        record["rle"] = coco_shape(found.mask, polygons=False)["segmentation"] if filled else None
    if "polygons" in extras:
        record["polygons"] = coco_shape(found.mask, polygons=True)["segmentation"] if filled else []
    if "probability" in extras:
        record["probability_png"] = _base64(png_bytes(probability_levels(found.probability)))
    if "score_map" in extras:
        record["score_map_png"] = _base64(png_bytes(_score_levels(found.score_map)))
    return record


def probability_levels(probability: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Probability (H W) in half percents, rounded up: above a threshold of k % are just the levels over 2 k.

    Returns:
        uint8 (H W), 0 to 200.
    """
    levels = np.ceil(probability * np.float32(LEVELS)).astype(np.int16)
    levels -= (levels > 0) & (probability <= GRID[levels - 1])  # float32 may round across a step
    levels += (levels < LEVELS) & (probability > GRID[levels])
    half_percents: NDArray[np.uint8] = levels.astype(np.uint8)
    return half_percents


def _score_levels(score_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map in [0, 1] as grey, shrunk where it is larger than it needs to be."""
    h, w = score_map.shape
    scale = min(1.0, SCORE_MAP_SIDE / max(h, w))
    size_wh = max(1, round(w * scale)), max(1, round(h * scale))
    shrunk = cv2.resize(score_map, size_wh, interpolation=cv2.INTER_AREA)
    levels: NDArray[np.uint8] = np.rint(np.clip(shrunk, 0, 1) * 255).astype(np.uint8)
    return levels


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
