"""Is a support that `diffseg concept check` says hurts worth dropping?

    python -m tools.measure_support_check --root data/fewshot [--draws 2] [--first-draw 6] [--queries 8]

For every class, sets of five supports are drawn: good ones, and the same with one replaced by an image of
another class with its mask. Each set is checked, and other images of the class are searched with all five,
without the support that is said to hurt, without the one of least gain, and without one drawn at random.
The thresholds of the check were chosen on draws 0 to 5. Prints mean IoU over images, then sets.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.datasets.episode import read_folder
from diffseg_cli.evaluation.metrics import count_pixels
from diffseg_cli.reading.image_io import read_image, read_mask
from diffseg_cli.supports.support_check import check_supports

SHOTS = 5
SOURCES = ("voc", "coco_mini")


def main() -> None:
    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=2, help="sets of supports of each class")
    parser.add_argument("--first-draw", type=int, default=6)
    parser.add_argument("--queries", type=int, default=8, help="other images searched with each set")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    segmenter = load_segmenter("compact", options.checkpoint, "cpu")
    dataset = read_folder(options.root, split="val", sources=SOURCES).with_enough(SHOTS)
    changes: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    blamed: defaultdict[str, list[int]] = defaultdict(list)
    for number, members in enumerate(dataset.by_class.values()):
        for draw in range(options.first_draw, options.first_draw + options.draws):
            generator = np.random.default_rng([number, draw])
            order = [members[i] for i in generator.permutation(len(members))][: SHOTS + options.queries]
            stranger = dataset.by_class[dataset.classes[(number + 3) % len(dataset.classes)]]
            order.append(stranger[generator.integers(len(stranger))])
            samples = [dataset.samples[i] for i in order]
            *pairs, wrong = [(read_image(sample.image), read_mask(sample.mask)) for sample in samples]
            queries = [(segmenter.encode_queries([image]), truth) for image, truth in pairs[SHOTS:]]
            for kind, chosen in (("good", pairs[:SHOTS]), ("one wrong", [*pairs[: SHOTS - 1], wrong])):
                support = segmenter.encode_support(chosen)
                advice = check_supports(segmenter, support, chosen)
                hurting = [i for i, each in enumerate(advice) if each.verdict == "hurts"]
                worst = min(hurting, key=lambda i: advice[i].likeness) if hurting else None
                blamed[kind].append(-1 if worst is None else worst)
                left_out = {
                    "the one said to hurt, if any": worst,
                    "the one of least gain": int(np.argmin([each.gain for each in advice])),
                    "one at random": int(generator.integers(SHOTS)),
                    "the last (the wrong one)": SHOTS - 1,
                }
                means = {}
                for index in {None, *left_out.values()}:
                    rest = support.choose([i for i in range(SHOTS) if i != index])
                    ious = []
                    for query, truth in queries:
                        (prediction,) = segmenter.segment_encoded(query, rest)
                        hit, either = count_pixels(prediction.mask, truth)[:2]
                        ious.append(hit / max(either, 1))
                    means[index] = float(np.mean(ious))
                changes[kind, "mean IoU with all five"].append(means[None])
                for what, index in left_out.items():
                    changes[kind, f"change without {what}"].append(means[index] - means[None])
    for kind, indices in blamed.items():
        said, right = sum(i >= 0 for i in indices), sum(i == SHOTS - 1 for i in indices)
        print(f"{kind}: {len(indices)} sets; one is said to hurt in {said}, the last of them in {right}")
        for (group, what), values in changes.items():
            if group == kind:
                worse = sum(value < -1e-9 for value in values)
                print(f"  {what:<46} {np.mean(values):+.4f}  below 0 in {worse}")


if __name__ == "__main__":
    main()
