"""Are touching objects told apart, and single ones left whole? AP50 of instances against connected parts.

    python -m tools.measure_instances [--scenes 60] [--seed 0]
    python -m tools.measure_instances --root data/fewshot [--per-class 4]

A drawn scene holds up to 8 ellipses of like sizes as one smoothed mask; about half of them touch another or
overlap it by up to a fifth of their width. With `--root` the shapes are those of labelled photographs, masks
of one connected part that no border of the image cuts: each alone, and each with another of its class pushed
against it until at most a twelfth of it is covered. (Masks with several parts say nothing of objects that
touch: each is the union of all objects of its class.) Scores are equal, so AP50 is precision times recall at
IoU 0.5.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.datasets.episode import read_folder
from diffseg_cli.datasets.truth import read_pair_truth
from diffseg_cli.results.instances import find_instances

Mask = NDArray[np.bool_]
SIZE = 400
LONGER = 120  # side in pixels of a shape of a photograph
COVERED = 1 / 12
CLUSTERS = ("mandarins/",)  # sources whose masks hold several objects that touch


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


def read_shapes(root: Path, per_class: int) -> Iterator[list[Mask]]:
    """Shapes (h w) of each class that has two."""
    dataset = read_folder(root)
    for name, members in dataset.by_class.items():
        shapes: list[Mask] = []
        for index in members[: 3 * per_class]:
            mask = np.pad(read_pair_truth(dataset.samples[index]).mask.astype(np.uint8), 1, mode="edge")
            count, _, figures, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            left, top, w, h, area = figures[-1]
            inside = top > 1 and left > 1 and top + h < mask.shape[0] - 1 and left + w < mask.shape[1] - 1
            if count == 2 and inside and area > 400 and not name.startswith(CLUSTERS):
                scale = LONGER / max(h, w)
                shape = cv2.resize(mask[top : top + h, left : left + w], None, fx=scale, fy=scale)
                if cv2.connectedComponents(_smooth(np.pad(shape, 3)), connectivity=8)[0] == 2:
                    shapes.append(shape > 0)
        if len(shapes) > 1:
            yield shapes[:per_class]


def push_together(one: Mask, other: Mask, angle: float) -> list[Mask]:
    """Two shapes (H W), the second moved in from one side until it touches or covers some of the first."""
    middle = np.array([SIZE, SIZE]) / 2
    first, whole = _at(one, middle), None
    for away in range(SIZE // 2, 0, -2):
        second = _at(other, middle + away * np.array([np.sin(angle), np.cos(angle)]))
        if (first & second).sum() > COVERED * min(first.sum(), second.sum()):
            break
        whole = second
    return [first] if whole is None else [first, whole & ~first]


def _smooth(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask (H W) of 0 and 1 with borders as a model's have."""
    smooth: NDArray[np.uint8] = cv2.medianBlur(mask, 5)
    return smooth


def _at(shape: Mask, middle: NDArray[np.floating]) -> Mask:
    page = np.zeros((SIZE, SIZE), dtype=bool)
    top, left = (
        min(max(round(place - side / 2), 0), SIZE - side)
        for place, side in zip(middle, shape.shape, strict=True)
    )
    page[top : top + shape.shape[0], left : left + shape.shape[1]] = shape
    return page


def ap50(found: list[Mask], objects: list[Mask]) -> tuple[int, int, int]:
    """Right, found and true objects; each object counts once."""
    left, right = list(objects), 0
    for mask in found:
        ious = [float((mask & each).sum() / (mask | each).sum()) for each in left]
        if ious and max(ious) >= 0.5:
            left.pop(int(np.argmax(ious)))
            right += 1
    return right, len(found), len(objects)


def report(title: str, scenes: list[list[Mask]]) -> None:
    """Print both figures of some scenes."""
    sums = {"connected parts": np.zeros(3), "instances": np.zeros(3)}
    for objects in scenes:
        mask = _smooth(np.logical_or.reduce(objects).astype(np.uint8))
        count, parts = cv2.connectedComponents(mask, connectivity=8)
        apart = find_instances(mask > 0, np.ones(mask.shape, dtype=np.float32), None)
        sums["connected parts"] += ap50([parts == part for part in range(1, count)], objects)
        sums["instances"] += ap50([each.whole_mask((SIZE, SIZE)) for each in apart], objects)
    print(f"{title}, {len(scenes)} scenes")
    for name, (right, found, true) in sums.items():
        precision, recall = right / found, right / true
        print(
            f"  {name:<16} AP50 {precision * recall:.3f}  found {found:.0f} of {true:.0f}, right {right:.0f}"
        )


def main() -> None:
    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, help="folder of labelled photographs, for real shapes")
    parser.add_argument("--per-class", type=int, default=4)
    options = parser.parse_args()
    draw = np.random.default_rng(options.seed)
    if options.root is None:
        report("drawn", [draw_scene(draw) for _ in range(options.scenes)])
        return
    classes = list(read_shapes(options.root, options.per_class))
    alone = [[_at(shape, np.array([SIZE, SIZE]) / 2)] for shapes in classes for shape in shapes]
    pairs = [
        push_together(shape, shapes[index - 1], draw.uniform(0, 2 * np.pi))
        for shapes in classes
        for index, shape in enumerate(shapes)
    ]
    report("alone", alone)
    report("touching", [pair for pair in pairs if len(pair) == 2])


if __name__ == "__main__":
    main()
