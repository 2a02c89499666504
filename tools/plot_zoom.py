"""Draw what `--zoom` and `--instances` do: a small windmill in a large scene, twelve windmills told apart.

    python -m tools.plot_zoom --zoom docs/zoom.jpg --instances docs/instances.jpg

The scenes are put together from photographs of examples/ that are CC0 or in the public domain, with masks
made for the project. Prints IoU, and how many instances were found.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.attention_dump import draw_windows
from diffseg_cli.datasets.pasting import mosaic, paste
from diffseg_cli.datasets.truth import Truth
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.reading.image_io import read_image, read_pair
from diffseg_cli.results.instances import find_instances
from diffseg_cli.results.palette import overlay_instances
from diffseg_cli.results.render import overlay
from diffseg_cli.results.sheet import Tile, draw_sheet
from diffseg_cli.segmenter import Segmenter

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZE_HW = (1200, 1600)
BACKGROUND = ("giraffe/query", "hard_spotted_cats/query", "cat/query", "horse/query")
SHARE, SEED = 0.006, 1  # of the scene that the windmill covers; of its place
COLUMNS, ROWS = 4, 3  # of the twelve
TILE_HW = (405, 540)


def main() -> None:
    """Write both figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoom", type=Path, required=True, help="the figure of closer looks, a JPEG")
    parser.add_argument("--instances", type=Path, required=True, help="the figure of instances, a JPEG")
    options = parser.parse_args()
    segmenter = load_segmenter(device="cpu")
    support = segmenter.encode_support(
        [(EXAMPLES / "windmill/support.jpg", EXAMPLES / "windmill/support_mask.png")]
    )
    _save(options.zoom, draw_zoom(segmenter, support))
    _save(options.instances, draw_instances(segmenter, support))


def draw_zoom(segmenter: Segmenter, support: SupportFeatures) -> NDArray[np.uint8]:
    """The scene, the answer of one look, where it looked again, and the answer with closer looks."""
    scene = mosaic([read_image(EXAMPLES / f"{name}.jpg") for name in BACKGROUND], SIZE_HW)
    truth = _paste_windmill(scene, SHARE, np.random.default_rng(SEED))
    plain, closer = (segmenter.segment(scene, support, zoom=zoom) for zoom in ("off", "auto"))
    figures = [(found.mask & truth).sum() / (found.mask | truth).sum() for found in (plain, closer)]
    print(f"zoom: IoU {figures[0]:.3f} -> {figures[1]:.3f}, {len(closer.looks)} further looks", flush=True)
    windows = draw_windows(
        cv2.resize(scene, TILE_HW[::-1], interpolation=cv2.INTER_AREA), SIZE_HW, closer.windows
    )
    rows = [
        Tile(scene, "scene", f"a windmill on {truth.mean():.1%} of it"),
        Tile(overlay(scene, plain.mask), "one look", f"IoU {figures[0]:.2f}, presence {plain.presence:.2f}"),
        Tile(windows, "where it looked again", "tiles propose, closer looks at marked places decide"),
        Tile(
            overlay(scene, closer.mask),
            "--zoom auto",
            f"IoU {figures[1]:.2f}, presence {closer.presence:.2f}",
        ),
    ]
    return draw_sheet([("", rows)], heading="Small objects in large images", tile_hw=TILE_HW, most_columns=2)


def draw_instances(segmenter: Segmenter, support: SupportFeatures) -> NDArray[np.uint8]:
    """Twelve windmills, each with its number, before the colours that a meadow has from top to bottom."""
    meadow = cv2.resize(read_image(EXAMPLES / "horse/query.jpg"), SIZE_HW[::-1])
    colours = cv2.blur(meadow.mean(axis=1, keepdims=True), (1, SIZE_HW[0] // 4)).round().astype(np.uint8)
    scene, draw = np.repeat(colours, SIZE_HW[1], axis=1), np.random.default_rng(SEED)
    cell_h, cell_w = SIZE_HW[0] // ROWS, SIZE_HW[1] // COLUMNS
    for number in range(ROWS * COLUMNS):
        row, column = divmod(number, COLUMNS)
        cell = scene[row * cell_h : (row + 1) * cell_h, column * cell_w : (column + 1) * cell_w]
        facing = cell[:, :: 1 - 2 * (number % 2)]  # a view: every other windmill is mirrored
        _paste_windmill(facing, draw.uniform(0.15, 0.3), draw)
    found = segmenter.segment(scene, support)
    apart = find_instances(found.mask, found.probability, found.presence)
    print(f"instances: {len(apart)} of {ROWS * COLUMNS}", flush=True)
    numbered = overlay_instances(scene, apart, [str(each.id) for each in apart])
    rows = [Tile(scene, "scene", "twelve windmills"), Tile(numbered, "--instances", f"{len(apart)} found")]
    return draw_sheet([("", rows)], heading="Each object apart", tile_hw=TILE_HW)


def _paste_windmill(scene: NDArray[np.uint8], share: float, draw: np.random.Generator) -> NDArray[np.bool_]:
    """Paste a windmill at a drawn place; its mask (h w) in the scene."""
    image, mask = read_pair(EXAMPLES / "windmill/query.jpg", EXAMPLES / "windmill/query_mask.png")
    return paste(scene, image, Truth(mask, np.zeros_like(mask)), share, draw).mask


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(path, quality=88, optimize=True)


if __name__ == "__main__":
    main()
