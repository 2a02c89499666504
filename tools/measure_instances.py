"""Are touching objects told apart? AP50 of instances against plain connected parts, on drawn scenes.

    python -m tools.measure_instances [--scenes 60] [--seed 0]

A scene holds up to 8 ellipses of like sizes as one smoothed mask; about half of them touch another or overlap
it by up to a fifth of their width. Scores are equal, so AP50 is precision times recall at IoU 0.5.
"""

import argparse

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.results.instances import find_instances

Mask = NDArray[np.bool_]
SIZE = 400


def draw_scene(draw: np.random.Generator) -> list[Mask]:
    """Objects (H W) of one scene, none over another; half of them touch one drawn before."""
    radius, places, objects = float(draw.uniform(15, 35)), [], []
    taken = np.zeros((SIZE, SIZE), dtype=bool)
    for _ in range(int(draw.integers(2, 9))):
        axes = radius * draw.uniform(0.75, 1.25, 2)
        place = draw.uniform(50, SIZE - 50, 2)
        if places and draw.random() < 0.5:
            angle = draw.uniform(0, 2 * np.pi)
            away = 2 * radius * draw.uniform(0.8, 1)
            place = places[-1] + away * np.array([np.cos(angle), np.sin(angle)])
        page = np.zeros((SIZE, SIZE), dtype=np.uint8)
        cv2.ellipse(
            page, place.round().astype(int).tolist(), axes.round().astype(int).tolist(), 0, 0, 360, 1, -1
        )
        new = (page > 0) & ~taken
        if new.sum() > 0.7 * np.pi * axes.prod():
            objects.append(new)
            places.append(place)
            taken |= new
    return objects


def ap50(found: list[Mask], objects: list[Mask]) -> tuple[int, int, int]:
    """Right, found and true objects; each object counts once."""
    left, right = list(objects), 0
    for mask in found:
        ious = [float((mask & each).sum() / (mask | each).sum()) for each in left]
        if ious and max(ious) >= 0.5:
            left.pop(int(np.argmax(ious)))
            right += 1
    return right, len(found), len(objects)


def main() -> None:
    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = np.random.default_rng(options.seed)
    sums = {"connected parts": np.zeros(3), "instances": np.zeros(3)}
    for _ in range(options.scenes):
        objects = draw_scene(draw)
        mask = np.logical_or.reduce(objects).astype(np.uint8)
        mask = cv2.medianBlur(mask, 5) > 0
        count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        apart = find_instances(mask, np.ones(mask.shape, dtype=np.float32), None)
        sums["connected parts"] += ap50([parts == part for part in range(1, count)], objects)
        sums["instances"] += ap50([each.whole_mask((SIZE, SIZE)) for each in apart], objects)
    for name, (right, found, true) in sums.items():
        precision, recall = right / found, right / true
        print(
            f"  {name:<16} AP50 {precision * recall:.3f}  found {found:.0f} of {true:.0f}, right {right:.0f}"
        )


if __name__ == "__main__":
    main()
