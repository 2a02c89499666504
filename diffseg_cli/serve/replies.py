"""What was found in an image, as the body of a response."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.results.annotations import coco_shape
from diffseg_cli.results.formats import encode_image
from diffseg_cli.results.outputs import ConceptResult, Scene
from diffseg_cli.results.probability import probability_png
from diffseg_cli.results.render import png_bytes, shrunk

PNG, JSON = "image/png", "application/json"
SCORE_MAP_SIDE = 1024  # longest; the model's own map is far smaller


@dataclass(frozen=True)
class Reply:
    """The body of a response; headers say what an image cannot."""

    content: bytes
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)


def json_reply(record: Any) -> Reply:
    return Reply(json.dumps(record).encode(), JSON)


def image_reply(what: str, scene: Scene) -> Reply:
    """A PNG of the one concept in a scene: "mask", "overlay", "heatmap", "cutout" or "instances"."""
    (found,) = scene.found
    headers = {"X-Diffseg-Area": f"{found.mask.mean():.6f}"}
    if found.presence is not None:
        headers["X-Diffseg-Presence"] = f"{found.presence:.4f}"
    return Reply(encode_image(what, "", scene), PNG, headers)


def found_record(found: ConceptResult, extras: tuple[str, ...]) -> dict[str, Any]:
    """What JSON says of a concept in an image.

    Args:
        found: the concept in it.
        extras: what to say besides size, area, box and scores: rle, polygons (of the mask, and of each
            instance where there are any), probability, score_map.
    """
    h, w = found.mask.shape
    record = {"size_hw": [h, w], **found.record(), **_shapes(found.mask, extras)}
    for each, row in zip(found.instances or (), record.get("instances", ()), strict=True):
        row |= _shapes(each.whole_mask((h, w)), extras)
    if "probability" in extras:
        record["probability_png"] = _base64(probability_png(found.probability))
    if "score_map" in extras:
        record["score_map_png"] = _base64(png_bytes(_score_levels(found.score_map)))
    return record


def _shapes(mask: NDArray[np.bool_], extras: tuple[str, ...]) -> dict[str, Any]:
    filled, shapes = mask.any(), dict[str, Any]()
    if "rle" in extras:
        shapes["rle"] = coco_shape(mask, polygons=False)["segmentation"] if filled else None
    if "polygons" in extras:
        shapes["polygons"] = coco_shape(mask, polygons=True)["segmentation"] if filled else []
    return shapes


def _score_levels(score_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A map in [0, 1] as grey, shrunk where it is larger than it needs to be."""
    levels: NDArray[np.uint8] = np.rint(np.clip(shrunk(score_map, SCORE_MAP_SIDE), 0, 1) * 255).astype(
        np.uint8
    )
    return levels


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
