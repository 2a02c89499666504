"""What squeezing the query to a square costs: the same model on other shapes of it, episode by episode.

    python -m tools.measure_aspect --root data/fewshot [--episodes 10] [--seeds 0,1] [--checkpoint FILE]

Three frames with about the same number of pixels: the image squeezed to a square, as diffseg does it; shrunk
in its own shape and padded with grey; in the size in multiples of 64 that is nearest to its shape. Supports
stay as they are, and the modules were trained on squeezed images. Prints a table; writes nothing.
"""

import argparse
import math
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.datasets.episode import FewShotDataset, draw_episode, read_folder
from diffseg_cli.evaluation.metrics import IouCounts, count_pixels, gain_interval
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.reading.image_io import read_image, read_mask
from diffseg_cli.results.render import resized
from diffseg_cli.segmenter import Segmenter

STEP = 64  # the networks halve a frame six times
MOST_OFF = 1.2  # factor by which the pixels of the nearest size may differ from the square's
GREY = 0.5
SHAPES = ("squeezed", "padded", "nearest size")
BANDS = {
    "all": (1.0, math.inf),
    "up to 1.25": (1.0, 1.25),
    "up to 1.4": (1.25, 1.4),
    "longer": (1.4, math.inf),
}

# Band -> shape -> class -> counts of each episode.
Counts = dict[str, dict[str, dict[str, list[NDArray[np.int64]]]]]


def nearest_size(size_hw: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width in multiples of `STEP`, of about side * side pixels, that are nearest in aspect."""
    sizes = range(STEP, 4 * side, STEP)
    near = [(h, w) for h in sizes for w in sizes if side**2 / MOST_OFF <= h * w <= side**2 * MOST_OFF]
    aspect = math.log(size_hw[0] / size_hw[1])
    return min(near, key=lambda hw: (abs(math.log(hw[0] / hw[1]) - aspect), abs(hw[0] * hw[1] - side**2)))


def frame(image: NDArray[np.uint8], shape: str, side: int) -> tuple[Tensor, tuple[slice, slice]]:
    """An image uint8 (h w 3) in one of `SHAPES`: (1 3 h' w') in [0, 1], and where in it the image lies."""
    h, w = image.shape[:2]
    scale = side / max(h, w)
    inner = {
        "squeezed": (side, side),
        "padded": (max(1, round(h * scale)), max(1, round(w * scale))),
        "nearest size": nearest_size((h, w), side),
    }[shape]
    seen = torch.from_numpy(resized(image, inner)).permute(2, 0, 1).float() / 255
    if shape != "padded":
        return seen[None], (slice(None), slice(None))
    whole = torch.full((1, 3, side, side), GREY)
    top, left = ((side - each) // 2 for each in inner)
    inside = (slice(top, top + inner[0]), slice(left, left + inner[1]))
    whole[(0, slice(None), *inside)] = seen
    return whole, inside


@torch.inference_mode()
def find(
    segmenter: Segmenter, image: NDArray[np.uint8], support: SupportFeatures, shape: str
) -> NDArray[np.bool_]:
    """The mask (h w) of an image seen in one of `SHAPES`."""
    seen, inside = frame(image, shape, segmenter.backbone.image_size)
    output = segmenter.predict(segmenter.backbone.encode(seen), segmenter.find_edges(seen), support)
    return segmenter.finish(output.probability[0, 0][inside], image)[0]


def measure(
    segmenter: Segmenter, dataset: FewShotDataset, *, episodes: int, seed: int, counts: Counts
) -> None:
    """Add every shape's counts on the same episodes, one support each."""
    for index in range(episodes * len(dataset.classes)):
        episode = draw_episode(dataset, index, shots=1, seed=seed)
        query, support = (dataset.samples[i] for i in (episode.query, episode.support[0]))
        image, truth = read_image(query.image), read_mask(query.mask)
        features = segmenter.encode_support([(support.image, support.mask)])
        longer = max(image.shape[:2]) / min(image.shape[:2])
        for shape in SHAPES:
            counted = count_pixels(find(segmenter, image, features, shape), truth)
            for band, (low, high) in BANDS.items():
                if low <= longer < high:
                    counts[band][shape][episode.class_name].append(counted)


def table(counts: Counts) -> str:
    """A row for each shape and band of aspects, with the 95 % interval of its gain over squeezing."""
    lines = [
        "| longer / shorter side | episodes | shape | IoU | boundary IoU | gain, 95 % |",
        "|---|---|---|---|---|---|",
    ]
    for band in (band for band in BANDS if counts[band]):
        drawn = {
            shape: {name: np.array(rows) for name, rows in classes.items()}
            for shape, classes in counts[band].items()
        }
        for shape, classes in drawn.items():
            sums = IouCounts()
            for name, rows in classes.items():
                sums.add_counts(name, rows.sum(0), len(rows))
            ends = gain_interval(drawn[SHAPES[0]], classes)
            gain = "" if shape == SHAPES[0] else "{:+.4f} to {:+.4f}".format(*ends)
            lines.append(
                f"| {band} | {sum(sums.episodes.values())} | {shape} | {sums.mean_iou():.4f} | "
                f"{sums.mean_boundary_iou():.4f} | {gain} |"
            )
    return "\n".join(lines)


def new_counts() -> Counts:
    return defaultdict(lambda: defaultdict(lambda: defaultdict(list)))


def main() -> None:
    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--sources", default="voc,coco_mini")
    parser.add_argument("--episodes", type=int, default=10, help="of each class and seed")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    segmenter = load_segmenter("compact", options.checkpoint, "cpu")
    dataset = read_folder(options.root, split=options.split, sources=options.sources.split(",")).with_enough(
        1
    )
    counts = new_counts()
    for seed in map(int, options.seeds.split(",")):
        measure(segmenter, dataset, episodes=options.episodes, seed=seed, counts=counts)
    print(table(counts))


if __name__ == "__main__":
    main()
