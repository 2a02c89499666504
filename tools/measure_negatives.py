"""Measure what `--not` does where there is a look-alike, with and without it.

IoU on the class, the share of the look-alike that is marked, and IoU over the images of both, in which a
marked look-alike is an error.

    python -m tools.measure_negatives --root data/fewshot --pair cat_dog/cat=cat_dog/dog

The look-alikes given with `--not` are not among those that are searched.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diffseg_cli.adaptation import Negative, adapt_steps
from diffseg_cli.assembly import load_segmenter
from diffseg_cli.datasets.episode import FewShotDataset, read_folder
from diffseg_cli.reading.image_io import read_pair
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.views import Pair

PAIRS = (
    "cat_dog/cat=cat_dog/dog",
    "car_parts/front_light=car_parts/back_light",
    "flowers17/sunflower=flowers17/dandelion",
    "endangered_animals/bear=endangered_animals/otter",
    "ccp_clothing/skirt=ccp_clothing/shorts",
    "weapons/gun=weapons/blade_weapon",
    "voc/cat=voc/dog",
    "circuit_parts/led=circuit_parts/push_button",
)


def draw(
    dataset: FewShotDataset, name: str, other: str, count: int, generator: np.random.Generator
) -> list[Pair]:
    """Images of a class in which the other one is not known to be."""
    absent = other.rsplit("/", 1)[-1]
    free = [i for i in dataset.by_class[name] if absent not in dataset.samples[i].present]
    chosen = [dataset.samples[free[i]] for i in generator.permutation(len(free))[:count]]
    return [read_pair(sample.image, sample.mask) for sample in chosen]


def overlap(segmenter: Segmenter, supports: Sequence[Pair], queries: Sequence[Pair]) -> tuple[int, int, int]:
    """Pixels over all queries: found and marked, found or marked, marked."""
    support = segmenter.encode_support(supports)
    total = np.zeros(3, dtype=np.int64)
    for image, marked in queries:
        found: NDArray[np.bool_] = segmenter.segment(image, support).mask
        total += ((found & marked).sum(), (found | marked).sum(), marked.sum())
    hit, either, all_marked = (int(value) for value in total)
    return hit, either, all_marked


def main() -> None:
    """Print a row per pair, draw and way of adapting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="few-shot images with their index")
    parser.add_argument("--pair", action="append", metavar="CLASS=LOOK_ALIKE", help="default: eight of them")
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--negatives", type=int, default=2, help="look-alikes given with --not")
    parser.add_argument("--masks", action="store_true", help="give them with --not-mask")
    parser.add_argument("--queries", type=int, default=8, help="of the class, and of the look-alike")
    parser.add_argument("--draws", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset, segmenter = read_folder(options.root), load_segmenter()
    print("pair draw way IoU look-alike_marked IoU_over_both reach", flush=True)
    for pair in options.pair or PAIRS:
        name, other = pair.split("=")
        for seed in range(options.draws):
            generator = np.random.Generator(np.random.PCG64([seed, 0]))
            images = draw(dataset, name, other, options.shots + options.queries, generator)
            supports, queries = images[: options.shots], images[options.shots :]
            others = draw(dataset, other, name, options.negatives + options.queries, generator)
            wrong, unseen = others[: options.negatives], others[options.negatives :]
            negatives = [(image, mask if options.masks else None) for image, mask in wrong]
            ways: dict[str, Sequence[Negative] | None] = {"plain": None, "adapted": (), "with_not": negatives}
            for way, given in ways.items():
                answering, reach = segmenter, 0.0
                if given is not None:
                    *_, last = adapt_steps(segmenter, supports, negatives=given)
                    assert last.adapted is not None
                    answering, reach = segmenter.with_trained(last.adapted.trained), last.adapted.reach
                hit, either, _ = overlap(answering, supports, queries)
                leaked, _, marked = overlap(answering, supports, unseen)
                figures = hit / either, leaked / marked, hit / (either + leaked), reach
                print(pair, seed, way, *(f"{value:.3f}" for value in figures), flush=True)


if __name__ == "__main__":
    main()
