"""How good the masks of `diffseg mask` are: IoU of boxes and points drawn from known masks.

    python tools/measure_masks.py FOLDER [--per-class 9] [--sources voc coco_mini] [--split val]

FOLDER is laid out as for `diffseg evaluate`. The box is the tightest round the mask, the point the one
deepest in it, the other point the one deepest in its surroundings.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.datasets.episode import Sample, read_folder
from diffseg_cli.reading.image_io import read_pair
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.supports.mask_making import (
    Bools,
    Point,
    box_region,
    discs,
    grabcut,
    mask_from_box,
    mask_from_points,
    score_from,
)


def deepest(mask: Bools) -> Point:
    """The x, y furthest from everything outside."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def tightest(mask: Bools) -> tuple[int, int, int, int]:
    """x, y, width, height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def made(segmenter: Segmenter, image: NDArray[np.uint8], truth: Bools) -> dict[str, Bools]:
    """Every way of making a mask, by name."""
    box = box_region(tightest(truth), (truth.shape[0], truth.shape[1]))
    inside, outside = deepest(truth), deepest(~truth)
    alone = np.where(box, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    return {
        "box, filled": box,
        "box, GrabCut alone": grabcut(image, alone),
        "box, backbone and GrabCut (default)": mask_from_box(segmenter, image, box),
        "point, score map above 0.5": score_from(segmenter, image, discs([inside], truth.shape[:2])) > 0.5,
        "point, score map and GrabCut (default)": mask_from_points(segmenter, image, [inside], []),
        "point and another, the same": mask_from_points(segmenter, image, [inside], [outside]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--per-class", type=int, default=9)
    parser.add_argument("--sources", nargs="*")
    parser.add_argument("--split")
    chosen = parser.parse_args()
    dataset = read_folder(chosen.folder, split=chosen.split, sources=chosen.sources)
    generator = np.random.default_rng(0)
    samples: list[Sample] = []
    for members in dataset.by_class.values():
        drawn = generator.choice(len(members), size=min(chosen.per_class, len(members)), replace=False)
        samples += [dataset.samples[members[index]] for index in drawn]
    segmenter = load_segmenter("compact", head="attention", device="cpu")
    ious: dict[str, list[float]] = defaultdict(list)
    start = time.perf_counter()
    for sample in samples:
        image, truth = read_pair(sample.image, sample.mask)
        for name, mask in made(segmenter, image, truth).items():
            ious[name].append(float((mask & truth).sum() / (mask | truth).sum()))
    print(f"{len(samples)} images of {len(dataset.classes)} classes, {time.perf_counter() - start:.0f} s")
    for name, values in ious.items():
        print(f"{name:<40} mean IoU {np.mean(values):.3f}, median {np.median(values):.3f}")


if __name__ == "__main__":
    main()
