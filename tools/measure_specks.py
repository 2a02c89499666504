"""Does dropping specks improve masks? IoU, boundary IoU and parts of one model for several least areas.

    python -m tools.measure_specks --root data/fewshot [--episodes 5] [--seed 0] [--checkpoint FILE]

Every least area is applied to the same masks. Prints a table; writes nothing.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.datasets.episode import draw_episode, read_folder
from diffseg_cli.evaluation.metrics import IouCounts
from diffseg_cli.reading.image_io import read_image, read_mask
from diffseg_cli.specks import drop_specks

SOURCES = ("voc", "coco_mini")
AREAS = ("0", "0.3%", "1%", "3%", "10%")


def main() -> None:
    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=5, help="of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    segmenter = load_segmenter("compact", options.checkpoint, "cpu")
    dataset = read_folder(options.root, split="val", sources=SOURCES).with_enough(1)
    counts = {area: IouCounts() for area in AREAS}
    parts: dict[str, list[int]] = {area: [] for area in AREAS}
    for index in range(options.episodes * len(dataset.classes)):
        episode = draw_episode(dataset, index, shots=1, seed=options.seed)
        query, support = (dataset.samples[i] for i in (episode.query, episode.support[0]))
        image, truth = read_image(query.image), read_mask(query.mask)
        features = segmenter.encode_support([(support.image, support.mask)])
        mask = segmenter.segment(image, features, min_area="0").mask
        for area in AREAS:
            cleaned = drop_specks(mask, area)
            counts[area].add(episode.class_name, cleaned, truth)
            parts[area].append(cv2.connectedComponents(cleaned.astype(np.uint8))[0] - 1)
    print(f"{len(dataset.classes)} classes, {options.episodes} episodes each, seed {options.seed}")
    for area in AREAS:
        names = list(counts[area].counts)
        figures = counts[area].mean_iou(names), counts[area].mean_boundary_iou(names)
        print(
            f"  {area:>5}  IoU {figures[0]:.4f}  boundary {figures[1]:.4f}  parts {np.mean(parts[area]):.1f}"
        )


if __name__ == "__main__":
    main()
