"""Draw what `--adapt` changes: support, plain and adapted answer for a crack, a darn and a bird.

    python -m tools.plot_adaptation --out docs/adapt.png [--scenes DIR]

Crack and darn are drawn here, under the project's licence; the photographs are those of examples/. Each case
has three supports, of which the first is shown. Prints IoU before and after.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.adaptation import adapt_steps
from diffseg_cli.assembly import load_segmenter
from diffseg_cli.reading.image_io import read_pair
from diffseg_cli.results.render import overlay
from diffseg_cli.results.sheet import Tile, draw_sheet
from diffseg_cli.views import Pair

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOTS = 3
HW = (360, 480)
BIRDS = (
    "bird/support",
    "bird/query2",
    "hard_bird/query",
    "bird/query",
)  # first and last, which are shown, CC0


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the figure, a PNG")
    parser.add_argument("--scenes", type=Path, help="folder to write the drawn scenes to as well")
    options = parser.parse_args()
    segmenter = load_segmenter(device="cpu")
    cases = {
        "A crack in a wall, drawn": [draw_crack(seed) for seed in range(SHOTS + 1)],
        "A darn in cloth, drawn": [draw_darn(seed) for seed in range(SHOTS + 1)],
        "A bird": [_photograph(name) for name in BIRDS],
    }
    rows = []
    for case, (*supports, query) in cases.items():
        *_, last = adapt_steps(segmenter, supports)
        assert last.adapted is not None
        support, (image, truth) = segmenter.encode_support(supports), query
        tiles = [Tile(overlay(*supports[0]), f"support, 1 of {SHOTS}"), Tile(image, "query")]
        figures = []
        for name, answering in (
            ("plain", segmenter),
            ("adapted", segmenter.with_trained(last.adapted.trained)),
        ):
            mask = answering.segment(image, support).mask
            figures.append((mask & truth).sum() / (mask | truth).sum())
            tiles.append(Tile(overlay(image, mask), f"{name}, IoU {figures[-1]:.2f}"))
        print(f"{case}: IoU {figures[0]:.3f} -> {figures[1]:.3f}, reach {last.adapted.reach:g}", flush=True)
        rows.append((f"{case}; reach {last.adapted.reach:g}", tiles))
        if options.scenes and "drawn" in case:
            _write_scenes(options.scenes, case.split()[1], cases[case])
    page = draw_sheet(rows, heading="What --adapt changes", tile_hw=(216, 288))
    Image.fromarray(page).save(options.out, optimize=True)


# --- scenes --------------------------------------------------------------------------------------------


def draw_crack(seed: int) -> Pair:
    """A thin crack across plaster with stains and lamp light, none of which is the crack."""
    generator = np.random.default_rng([seed, 0])
    base = _lit(np.array([178, 170, 158]), generator, grain=9)
    for _ in range(6):  # stains: as dark as the crack, and round
        place = tuple(int(generator.integers(0, side)) for side in HW[::-1])
        stain = np.zeros(HW, np.float32)
        cv2.circle(stain, place, int(generator.integers(6, 22)), 1.0, -1)
        base -= 60 * cv2.GaussianBlur(stain, (0, 0), 3)[..., None]
    steps = generator.normal(0, 0.25, 60).cumsum() + generator.uniform(-0.6, 0.6)
    heading = steps - steps.mean() + generator.uniform(-0.5, 0.5)
    points = np.stack([np.cos(heading), np.sin(heading)], 1).cumsum(0) * 8
    points += np.array(HW[::-1]) / 2 - points.mean(0) + generator.uniform(-40, 40, 2)
    mask = np.zeros(HW, np.uint8)
    for start, end in pairwise(points):
        ends = [(int(point[0]), int(point[1])) for point in (start, end)]
        cv2.line(mask, ends[0], ends[1], 1, int(generator.integers(4, 8)))
    edge = np.roll(mask, (2, 1), (0, 1)).astype(np.float32)[..., None]
    pixels = np.where(mask[..., None] > 0, base * 0.35, base + 30 * edge)
    return _as_pair(pixels, mask, generator)


def draw_darn(seed: int) -> Pair:
    """A patch woven the other way, in nearly the colour of the cloth around it."""
    generator = np.random.default_rng([seed, 1])
    rows, columns = np.mgrid[: HW[0], : HW[1]].astype(np.float32)
    cloth = _lit(np.array([96, 112, 140]), generator, grain=6)
    pitch = generator.uniform(7, 10)
    along = 26 * np.sin(2 * np.pi * (rows + 0.4 * columns) / pitch)
    across = 26 * np.sin(2 * np.pi * columns / pitch) * np.sign(np.sin(2 * np.pi * rows / (2 * pitch)))
    mask = np.zeros(HW, np.uint8)
    centre = (int(generator.integers(150, 330)), int(generator.integers(120, 240)))
    axes = (int(generator.integers(60, 100)), int(generator.integers(45, 75)))
    cv2.ellipse(mask, centre, axes, float(generator.uniform(0, 180)), 0, 360, 1, -1)
    pixels = cloth + np.where(mask > 0, across, along)[..., None]
    return _as_pair(pixels + 8 * mask[..., None], mask, generator)


def _lit(colour: NDArray[np.int_], generator: np.random.Generator, *, grain: float) -> NDArray[np.float32]:
    """A surface of one colour under light from one side."""
    rows, columns = np.mgrid[: HW[0], : HW[1]].astype(np.float32)
    slope = generator.uniform(-0.12, 0.12, 2)
    light = 1 + slope[0] * (rows / HW[0] - 0.5) + slope[1] * (columns / HW[1] - 0.5)
    noise = cv2.GaussianBlur(generator.normal(0, 3 * grain, HW).astype(np.float32), (0, 0), 1.5)
    surface: NDArray[np.float32] = (colour * light[..., None] + noise[..., None]).astype(np.float32)
    return surface


def _as_pair(pixels: NDArray[np.floating], mask: NDArray[np.uint8], generator: np.random.Generator) -> Pair:
    noisy = cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 0.8) + generator.normal(0, 3, pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), mask > 0


def _photograph(name: str) -> Pair:
    return read_pair(EXAMPLES / f"{name}.jpg", EXAMPLES / f"{name}_mask.png")


def _write_scenes(folder: Path, name: str, pairs: list[Pair]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, (image, mask) in enumerate(pairs):
        Image.fromarray(image).save(folder / f"{name}_{index}.png")
        Image.fromarray(mask).save(folder / f"{name}_{index}_mask.png")


if __name__ == "__main__":
    main()
