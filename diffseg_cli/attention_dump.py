"""Everything a look at one query shows, as named arrays and as sheets to look at (`diffseg attn`).

Letters: H W size of the latents, h w grid of one scale, n = h*w, a heads, t image tokens (of all supports,
one support after the other). All arrays are float32. The region is the place or area whose affinity is asked
for; where none was chosen it is where the score map is above 0.5.

| name | shape | what |
|---|---|---|
| `score_map` | (H W) | `M_a`, min-max normalised, in [0, 1] |
| `cross_map` | (H W) | `M_cross`: share of attention the prompt takes up, or its variant by `--cross-map` |
| `raw_map` | (H W) | `M_self vec(M_cross)` before normalisation |
| `region` | (H W) | the region, share of each cell, sums to 1 |
| `affinity` | (H W) | attention the region pays to each place, sums to 1 |
| `points/{i}/affinity` | (H W) | with `parts`: of the i-th point alone, from 1 |
| `scales/{h}x{w}/cross` | (h w) | the same of the layers of this scale |
| `scales/{h}x{w}/score_map` | (H W) | `M_a` of this scale alone |
| `scales/{h}x{w}/affinity` | (H W) | affinity of the region in this scale alone |
| `scales/{h}x{w}/self` | (n n) | with `matrices`: mean affinity of this scale, rows sum to 1 |
| `layers/{name}/t{step}/cross` | (h w) | with `layers`: the same of one layer at one timestep |
| `layers/{name}/t{step}/affinity` | (H W) | with `layers` |
| `layers/{name}/t{step}/head_cross` | (a h w) | with `heads`: of each head |
| `layers/{name}/t{step}/head_affinity` | (a H W) | with `heads` |
| `layers/{name}/t{step}/tokens` | (t h w) | with `tokens`: share of each image token, mean of heads |
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffseg_cli.config import SegmentConfig
from diffseg_cli.files import whole_file
from diffseg_cli.models.attention import (
    AttentionMaps,
    GridHW,
    LayerAttention,
    affinity_of,
    score_maps,
    split_joint_attention,
)
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.results.outputs import fitted
from diffseg_cli.results.palette import LEAST_TEXT, PANEL, concept_color
from diffseg_cli.results.render import heatmap, overlay, resized, shrunk
from diffseg_cli.results.sheet import Tile, draw_sheet, tile_size
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.zoom import Window, WindowLook

Floats = NDArray[np.float32]

REGION_LEVEL = 0.5
MAIN_TILE = 300  # pixels along the longer side
SMALL_TILE = 220
MOST_SUPPORTS = 3  # on the sheet
DETAILS = {  # array names of each kind of detail, and what the sheets call them
    "layers": {"cross": "M_cross", "affinity": "affinity of the region"},
    "heads": {"head_cross": "share of the prompt", "head_affinity": "affinity of the region"},
    "tokens": {"tokens": "share of each image token"},
}


@dataclass(frozen=True)
class AttentionDump:
    """What a look showed.

    Attributes:
        arrays: see the table above.
        layers_of: "{h}x{w}" -> how many layers (times timesteps) the scale has.
    """

    arrays: dict[str, Floats]
    layers_of: dict[str, int]


def dump_attention(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    support: SupportFeatures,
    *,
    region: NDArray[np.bool_] | None = None,
    parts: Sequence[NDArray[np.bool_]] = (),
    seed: int = 0,
    layers: bool = False,
    heads: bool = False,
    tokens: bool = False,
    matrices: bool = False,
) -> AttentionDump:
    """Look at a query and keep what is seen.

    Layers are reduced one by one as the look passes them: their full probabilities are never kept. They need
    a second look, because the region may follow from the first.

    Args:
        segmenter: with the model to look through.
        image: the query, uint8 (h w 3) at its own size.
        support: of the same model.
        region: bool (h w), True somewhere; whose affinity to show.
        parts: of the region, bool (h w) each: the affinity of each alone is kept as well.
        seed: of the noise.
        layers: keep the maps of each layer and timestep.
        heads: keep those of each head.
        tokens: keep the share of each image token.
        matrices: keep the whole affinity of each scale.
    """
    look = segmenter.look(image, support, seed=seed)
    size_hw = (look.scores.score_map.shape[2], look.scores.score_map.shape[3])
    weights = _region_weights(region, look.scores.score_map[:, 0])
    arrays = {
        "score_map": _array(look.scores.score_map[0, 0]),
        "cross_map": _array(look.scores.cross_map[0, 0]),
        "raw_map": _array(look.scores.raw_map[0, 0]),
        "region": _array(weights[0]),
        "affinity": _array(affinity_of(look.maps, weights)[0]),
    }
    for number, part in enumerate(parts, start=1):
        weights_of = _region_weights(part, look.scores.score_map[:, 0])
        arrays[f"points/{number}/affinity"] = _array(affinity_of(look.maps, weights_of)[0])
    for grid_hw, count in look.maps.layers.items():
        scale, alone = f"scales/{_grid_name(grid_hw)}", look.maps.only(grid_hw)
        arrays[f"{scale}/cross"] = _array(look.maps.cross[grid_hw][0].view(grid_hw) / count)
        arrays[f"{scale}/score_map"] = _array(score_maps(alone, size_hw).score_map[0, 0])
        arrays[f"{scale}/affinity"] = _array(affinity_of(alone, weights)[0])
        if matrices:
            arrays[f"{scale}/self"] = _array(look.maps.affinity[grid_hw][0] / count)
    if layers or heads or tokens:
        keep = _keeper(arrays, weights, layers=layers, heads=heads, tokens=tokens)
        segmenter.look(image, support, seed=seed, on_layer=keep)
    return AttentionDump(arrays, {_grid_name(grid_hw): count for grid_hw, count in look.maps.layers.items()})


def _keeper(
    arrays: dict[str, Floats], weights: Tensor, *, layers: bool, heads: bool, tokens: bool
) -> Callable[[LayerAttention], None]:
    """A callback that reduces each layer of a look to its maps."""

    def maps_of(layer: LayerAttention, head: slice) -> tuple[Floats, Floats]:
        cross, affinity = split_joint_attention(layer.probabilities[:1, head], layer.image_tokens)
        alone = AttentionMaps()
        alone.add(layer.grid_hw, cross, affinity)
        return _array(cross[0].view(layer.grid_hw)), _array(affinity_of(alone, weights)[0])

    def keep(layer: LayerAttention) -> None:
        name = f"layers/{layer.name}/t{layer.timestep}"
        if layers:
            arrays[f"{name}/cross"], arrays[f"{name}/affinity"] = maps_of(layer, slice(None))
        if heads:
            each = [maps_of(layer, slice(a, a + 1)) for a in range(layer.probabilities.shape[1])]
            arrays[f"{name}/head_cross"] = np.stack([cross for cross, _ in each])
            arrays[f"{name}/head_affinity"] = np.stack([affinity for _, affinity in each])
        if tokens:
            share = layer.probabilities[0, :, :, : layer.image_tokens].float().mean(0).T  # (t n)
            arrays[f"{name}/tokens"] = _array(share.reshape(-1, *layer.grid_hw))

    return keep


def _region_weights(region: NDArray[np.bool_] | None, score_map: Tensor) -> Tensor:
    """A region at the query's own size -> (1 H W) share of each cell, summing to 1."""
    if region is None:
        weights = (score_map > REGION_LEVEL).to(score_map)
        weights = weights if bool(weights.any()) else torch.ones_like(weights)
    else:
        size_wh = (score_map.shape[2], score_map.shape[1])
        covered = cv2.resize(region.astype(np.float32), size_wh, interpolation=cv2.INTER_AREA)
        if not covered.any():  # a point in an image smaller than the latents can fall between cells
            y, x = np.argwhere(region)[0]
            covered[y * size_wh[1] // region.shape[0], x * size_wh[0] // region.shape[1]] = 1
        weights = torch.from_numpy(covered)[None].to(score_map)
    return weights / weights.sum()


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().float().cpu().numpy()
    return array


def _grid_name(grid_hw: GridHW) -> str:
    return f"{grid_hw[0]}x{grid_hw[1]}"


# --- files ---------------------------------------------------------------------------------------------


def write_arrays(path: Path, arrays: Mapping[str, Floats], info: Mapping[str, Any]) -> None:
    """Write arrays as NPZ or, by the suffix, safetensors.

    Args:
        path: ends in ".npz" or ".safetensors".
        arrays: name -> float32.
        info: how they came about; the NPZ entry "info" holds it as JSON text, in safetensors the metadata do.
    """
    with whole_file(path) as stream:
        if path.suffix == ".npz":
            np.savez(stream, allow_pickle=False, info=np.array(json.dumps(info)), **arrays)
        else:
            from safetensors.numpy import save

            contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            stream.write(save(contiguous, {"info": json.dumps(info)}))


# --- sheets --------------------------------------------------------------------------------------------


def main_sheet(
    dump: AttentionDump,
    image: NDArray[np.uint8],
    region: NDArray[np.bool_] | None,
    heading: str,
    *,
    supports: Sequence[NDArray[np.uint8]] = (),
    mask: NDArray[np.bool_] | None = None,
    looks: Sequence[WindowLook] = (),
    points: Sequence[tuple[int, int]] = (),
) -> NDArray[np.uint8]:
    """Supports and answer, closer looks, the query with its region, the maps of all layers and of each scale.

    Args:
        dump: of the query.
        image: the query, uint8 (h w 3).
        region: bool (h w) that was chosen, or None.
        heading: top line.
        supports: small images uint8 (h w 3), their background darkened.
        mask: bool (h w) of the answer, or None to leave it out.
        looks: closer looks that count in the mask.
        points: (x, y) of the `parts` of the dump.

    Returns:
        uint8 (h w 3).
    """
    arrays = dump.arrays
    tile_hw = tile_size((image.shape[0], image.shape[1]), MAIN_TILE)
    small = resized(image, tile_hw)
    answer = [
        Tile(fitted(each, tile_hw), "support", "its mask is bright") for each in supports[:MOST_SUPPORTS]
    ]
    if mask is not None:
        found = overlay(image, mask)
        answer.append(Tile(found, "mask", f"{mask.mean():.1%} of the image"))
    shown = (arrays["region"] > 0 if region is None else _thicken(region)).astype(np.float32)
    tinted = overlay(small, resized(shown, tile_hw) > 0.5)
    rows = [("supports and answer", answer)] if answer else []
    if looks:
        windows = Tile(draw_windows(small, image.shape[:2], [each.window for each in looks]), "closer looks")
        rows.append(("where it looked again", [windows, *_look_tiles(image, looks, tile_hw)]))
    rows += [
        (
            "all layers",
            [
                Tile(tinted, "query", "the region is tinted"),
                _map_tile(arrays["cross_map"], small, "M_cross: share of the prompt"),
                _map_tile(arrays["score_map"], small, "M_a: score map"),
                _map_tile(arrays["affinity"], small, "affinity of the region"),
            ],
        )
    ]
    if points:
        marked = [_marked(image, point) for point in points]
        tiles = [
            _map_tile(arrays[f"points/{i}/affinity"], resized(each, tile_hw), f"affinity of {x},{y}")
            for i, ((x, y), each) in enumerate(zip(points, marked, strict=True), start=1)
        ]
        rows.append(("each point", tiles))
    for scale, count in dump.layers_of.items():
        h, w = map(int, scale.split("x"))
        cells = cv2.resize(resized(image, (h, w)), tile_hw[::-1], interpolation=cv2.INTER_NEAREST)
        tiles = [
            Tile(cells, "query", "as many cells as places"),
            _map_tile(arrays[f"scales/{scale}/cross"], small, "M_cross"),
            _map_tile(arrays[f"scales/{scale}/score_map"], small, "M_a of this scale alone"),
            _map_tile(arrays[f"scales/{scale}/affinity"], small, "affinity of the region"),
        ]
        rows.append((f"{h} x {w} places, {count} layer{'s' if count > 1 else ''}", tiles))
    return draw_sheet(rows, heading=heading, tile_hw=tile_hw, most_columns=4)


def detail_sheet(dump: AttentionDump, image: NDArray[np.uint8], kind: str, heading: str) -> NDArray[np.uint8]:
    """All maps of one kind, layer after layer; each map is stretched by itself.

    Args:
        dump: that has them.
        image: the query.
        kind: "layers", "heads" or "tokens".
        heading: top line.
    """
    tile_hw = tile_size((image.shape[0], image.shape[1]), SMALL_TILE)
    small = resized(image, tile_hw)
    rows: list[tuple[str, list[Tile]]] = []
    for name, array in dump.arrays.items():
        layer, _, what = name.removeprefix("layers/").rpartition("/")
        if not name.startswith("layers/") or what not in DETAILS[kind]:
            continue
        if kind == "layers" and what == "affinity":
            rows[-1][1].append(_map_tile(array, small, DETAILS[kind][what]))
        elif kind == "layers":
            rows.append((layer, [_map_tile(array, small, DETAILS[kind][what])]))
        else:
            tiles = [_map_tile(each, small, f"{kind[:-1]} {i}") for i, each in enumerate(array)]
            rows.append((f"{layer}: {DETAILS[kind][what]}", tiles))
    return draw_sheet(rows, heading=heading, tile_hw=tile_hw)


def _map_tile(values: Floats, image: NDArray[np.uint8], title: str) -> Tile:
    """A map stretched from its smallest to its largest value, over the greyed image."""
    return Tile(_drawn(values, image), title, scale=(f"{values.min():.2g}", f"{values.max():.2g}"))


def _drawn(values: Floats, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    stretched = (values - low) / max(high - low, 1e-12)
    return heatmap(np.clip(resized(stretched, (image.shape[0], image.shape[1])), 0, 1), image)


def draw_maps(dump: AttentionDump, image: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Every map as on the sheets, at the size of the image (h w 3): name with folders, uint8 (h w 3)."""
    for name, array in dump.arrays.items():
        if name.endswith("/self"):  # a matrix
            continue
        several = array.ndim == 3
        for number, values in enumerate(array if several else [array]):
            yield f"{name}_{number}" if several else name, _drawn(values, image)


def draw_windows(
    image: NDArray[np.uint8], size_hw: tuple[int, ...], windows: Sequence[Window]
) -> NDArray[np.uint8]:
    """Frames of windows, numbered from 1 in colours of their own, on an image that may be shrunk.

    Args:
        image: uint8 (h w 3).
        size_hw: size at which the windows are told.
        windows: of the image.
    """
    page = Image.fromarray(image)
    draw, width = ImageDraw.Draw(page), max(2, min(image.shape[:2]) // 200)
    font = ImageFont.load_default(max(LEAST_TEXT, min(image.shape[:2]) // 20))
    scale_y, scale_x = image.shape[0] / size_hw[0], image.shape[1] / size_hw[1]
    for number, (left, top, w, h) in enumerate((each.box_xywh for each in windows), start=1):
        corner, color = (left * scale_x, top * scale_y), concept_color(number - 1)
        draw.rectangle((corner, ((left + w) * scale_x - 1, (top + h) * scale_y - 1)), None, color, width)
        draw.text(corner, f" {number}", color, font, stroke_width=width, stroke_fill=PANEL)
    return np.array(page)


def _look_tiles(
    image: NDArray[np.uint8], looks: Sequence[WindowLook], tile_hw: tuple[int, int]
) -> Iterator[Tile]:
    """Each window with what its look alone marks, in the colour of its frame."""
    for number, look in enumerate(looks, start=1):
        pixels = shrunk(image[look.window.slices], MAIN_TILE)
        marked = resized(look.probability, pixels.shape[:2]) > SegmentConfig.threshold
        tile = fitted(overlay(pixels, marked, concept_color(number - 1)), tile_hw)
        yield Tile(
            tile,
            f"window {number}, {look.window.width} x {look.window.height} px",
            f"presence {look.presence:.2f}",
        )


def _marked(image: NDArray[np.uint8], point: tuple[int, int]) -> NDArray[np.uint8]:
    """The image with a ring around a place."""
    radius, marked = max(image.shape) // 50, image.copy()
    for color, width in (((0, 0, 0), 5), ((255, 255, 255), 2)):
        cv2.circle(marked, point, radius, color, max(1, width * radius // 8), cv2.LINE_AA)
    return marked


def _thicken(region: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A region that can be seen on a small tile, also when it is one pixel."""
    radius = max(region.shape) // 60
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    few = region.mean() < 0.001
    thick: NDArray[np.uint8] = cv2.dilate(region.astype(np.uint8), kernel) if few else region.astype(np.uint8)
    return thick
