"""Does the guided filter improve borders? IoU and boundary IoU of one model with and without it.

    python -m tools.measure_borders --root data/fewshot [--episodes 10] [--checkpoint FILE]

Settings of the filter are compared on the episodes of seed 0; the best is then measured on those of
seed 1, and only that figure counts. Prints a table; writes nothing.
"""

import argparse
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.datasets.episode import FewShotDataset, draw_episode, read_folder
from diffseg_cli.evaluation.metrics import IouCounts
from diffseg_cli.reading.image_io import read_image, read_mask
from diffseg_cli.refine import RADIUS_SHARE, SMOOTHNESS, refine_borders
from diffseg_cli.segmenter import Segmenter

SOURCES = ("voc", "coco_mini")
RADII = (1 / 96, 1 / 64, 1 / 48, 1 / 32)
SMOOTH = (1e-5, 1e-4, 1e-3)
Setting = tuple[float, float] | None  # None: no refinement


@dataclass
class Table:
    """Counts of each setting."""

    rows: dict[Setting, IouCounts] = field(default_factory=dict)

    def figures(self, setting: Setting) -> dict[str, tuple[float, float]]:
        """Source -> mean IoU, mean boundary IoU."""
        counts = self.rows[setting]
        groups = {s: [n for n in counts.counts if n.startswith(f"{s}/")] for s in SOURCES}
        return {
            source: (counts.mean_iou(names), counts.mean_boundary_iou(names))
            for source, names in groups.items()
            if names
        }

    def mean(self, setting: Setting) -> float:
        return float(np.mean([value for pair in self.figures(setting).values() for value in pair]))


def measure(
    segmenter: Segmenter, dataset: FewShotDataset, settings: list[Setting], *, episodes: int, seed: int
) -> Table:
    """Every setting on the same episodes, one support each."""
    table = Table({setting: IouCounts() for setting in settings})
    for index in range(episodes * len(dataset.classes)):
        episode = draw_episode(dataset, index, shots=1, seed=seed)
        query, support = (dataset.samples[i] for i in (episode.query, episode.support[0]))
        image, truth = read_image(query.image), read_mask(query.mask)
        features = segmenter.encode_support([(support.image, support.mask)])
        probability = segmenter.segment(image, features, refine=False).probability
        for setting, counts in table.rows.items():
            refined = probability
            if setting:
                refined = refine_borders(probability, image, radius_share=setting[0], smoothness=setting[1])
            counts.add(episode.class_name, refined > segmenter.settings.threshold, truth)
    return table


def show(table: Table) -> None:
    for setting in table.rows:
        name = f"longer side / {1 / setting[0]:.0f}, {setting[1]:.0e}" if setting else "no refinement"
        cells = [f"{s} {iou:.4f} / {near:.4f}" for s, (iou, near) in table.figures(setting).items()]
        print(f"  {name:<24} {'   '.join(cells)}")


def main() -> None:
    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=10, help="of each class")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    segmenter = load_segmenter("compact", options.checkpoint, "cpu")
    dataset = read_folder(options.root, split="val", sources=SOURCES).with_enough(1)
    print(f"{len(dataset.classes)} classes, {options.episodes} episodes each; IoU / boundary IoU")
    tried: list[Setting] = [None, *product(RADII, SMOOTH)]
    table = measure(segmenter, dataset, tried, episodes=options.episodes, seed=0)
    print("seed 0, for choosing")
    show(table)
    best = max((s for s in tried if s), key=table.mean)
    print(f"best: {best}; built in: {(RADIUS_SHARE, SMOOTHNESS)}; seed 1, for judging")
    settings: list[Setting] = [None, best, (RADIUS_SHARE, SMOOTHNESS)]
    show(measure(segmenter, dataset, list(dict.fromkeys(settings)), episodes=options.episodes, seed=1))


if __name__ == "__main__":
    main()
