"""COCO-20i and the paper's 40/20/20 protocol on COCO 2014.

COCO-20i: Nguyen and Todorovic, "Feature Weighting and Boosting for Few-Shot Segmentation" (ICCV 2019). The
80 classes in the order of their category ids; fold i holds every fourth from the i-th on (class c is in
fold c mod 4), the convention of PFENet and HSNet, which nearly every published figure uses. 60 classes
train, 20 test.

40/20/20: the paper's section 5.1 trains on 40 classes, validates on 20 and tests on 20, after CANet (Zhang
et al., CVPR 2019), without naming the classes. Here fold i tests on fold i of COCO-20i, validates on fold i
+ 1 and trains on the other two. Figures of the two protocols are never put side by side.

Test and validation images are `val2014`, training images `train2014`. An image counts for a class when
its annotations of that class, crowds left out, cover at least 2 * 32 * 32 pixels. Crowds of the class are
ignored.
"""

import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.datasets.episode import FewShotDataset, Sample, group_by_class
from diffseg_cli.datasets.truth import Truth, turn_upright
from diffseg_cli.errors import InputError

# In the order of category ids in instances_*.json (ids 1 to 90 with ten gaps).
CLASS_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
    backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball
    bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife,
    spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair,
    couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone,
    microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
    toothbrush
"""
CLASSES = tuple(" ".join(CLASS_NAMES.split()).split(", "))
FOLDS = 4
LEAST_PIXELS = 2 * 32 * 32


def fold_classes(fold: int) -> tuple[str, ...]:
    """The twenty classes of a fold, 0 to 3."""
    return CLASSES[fold::FOLDS]


def split_classes(fold: int, split: str, *, forty_twenty_twenty: bool = False) -> tuple[str, ...]:
    """Classes of a part of a protocol.

    Args:
        fold: 0 to 3.
        split: "test" or "train"; "val" too in 40/20/20.
        forty_twenty_twenty: the paper's protocol instead of COCO-20i.
    """
    if split == "test":
        return fold_classes(fold)
    if split == "val":
        return fold_classes((fold + 1) % FOLDS)
    away = {fold, (fold + 1) % FOLDS} if forty_twenty_twenty else {fold}
    return tuple(name for index, name in enumerate(CLASSES) if index % FOLDS not in away)


def read_coco(
    root: Path, *, fold: int, split: str = "test", forty_twenty_twenty: bool = False
) -> FewShotDataset:
    """Images of a part of a fold; no mask is decoded.

    Args:
        root: folder with `annotations/instances_val2014.json` and `val2014/` (or `images/val2014/`).
        fold: 0 to 3.
        split: "test" or "train"; "val" too in 40/20/20.
        forty_twenty_twenty: the paper's protocol instead of COCO-20i.

    Raises:
        InputError: the annotations, the images' folder or an image is missing.
    """
    part = "train2014" if split == "train" else "val2014"
    path = root / "annotations" / f"instances_{part}.json"
    index = _read_annotations(path)
    folder = next((c for c in (root / part, root / "images" / part) if c.is_dir()), None)
    if folder is None:
        raise InputError(f"{root / part} was not found: it holds the images.", "Unpack COCO 2014 there.")
    wanted = split_classes(fold, split, forty_twenty_twenty=forty_twenty_twenty)
    missing = [name for name in wanted if name not in index.categories]
    if missing:
        raise InputError(f"{path} has no category '{missing[0]}'.", "Take the published COCO annotations.")
    names = {index.categories[name]: name for name in CLASSES if name in index.categories}
    samples = []
    for image_id, by_category in index.annotations.items():
        image = folder / str(index.images[image_id]["file_name"])
        present = {category for category in by_category if category in names}
        for category in present:
            if names[category] in wanted and _area(by_category[category]) >= LEAST_PIXELS:
                if not image.is_file():
                    raise InputError(f"{image} was not found, and {path.name} names it.", "Unpack it again.")
                others = tuple(names[other] for other in sorted(present - {category}))
                samples.append(Sample(image, path, names[category], others, category))
    return group_by_class(samples, root)


def read_coco_truth(sample: Sample) -> Truth:
    """Annotations of one class in one image, drawn; crowds are ignored where no object covers them.

    Raises:
        InputError: an annotation cannot be drawn.
    """
    index = _read_annotations(sample.mask)
    image_id = index.ids[sample.image.name]
    record = index.images[image_id]
    size_hw = (int(record["height"]), int(record["width"]))
    mask, crowd = np.zeros(size_hw, dtype=bool), np.zeros(size_hw, dtype=bool)
    for annotation in index.annotations[image_id][sample.label or 0]:
        drawn = _draw(annotation, size_hw, sample.mask)
        (crowd if annotation.get("iscrowd") else mask)[drawn] = True
    return Truth(turn_upright(mask, sample.image), turn_upright(crowd & ~mask, sample.image))


class _Annotations:
    """An instances file by image and category."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.categories: dict[str, int] = {entry["name"]: entry["id"] for entry in content["categories"]}
        self.images: dict[int, dict[str, Any]] = {entry["id"]: entry for entry in content["images"]}
        self.ids: dict[str, int] = {entry["file_name"]: entry["id"] for entry in content["images"]}
        self.annotations: dict[int, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for entry in content["annotations"]:
            self.annotations[entry["image_id"]][entry["category_id"]].append(entry)


@lru_cache(maxsize=2)  # parsing takes seconds, and every mask needs it
def _read_annotations(path: Path) -> _Annotations:
    try:
        return _Annotations(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} was not found.", "Unpack annotations_trainval2014.zip into the folder given with --root."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as COCO annotations: {error}.", "Unpack it again."
        ) from error


def _area(annotations: list[dict[str, Any]]) -> float:
    return sum(float(entry["area"]) for entry in annotations if not entry.get("iscrowd"))


def _draw(annotation: dict[str, Any], size_hw: tuple[int, int], path: Path) -> NDArray[np.bool_]:
    """Polygons, or run lengths as numbers or packed, as bool (h w)."""
    from pycocotools import mask as coco_mask

    shape = annotation["segmentation"]
    try:
        if isinstance(shape, list):
            runs = coco_mask.merge(coco_mask.frPyObjects(shape, *size_hw))
        else:
            runs = coco_mask.frPyObjects(shape, *size_hw) if isinstance(shape["counts"], list) else shape
        drawn: NDArray[np.uint8] = coco_mask.decode(runs)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(
            f"{path} has annotation {annotation.get('id')} that cannot be drawn: {error}.", "Unpack it again."
        ) from error
    if drawn.shape != size_hw:
        raise InputError(
            f"{path} has annotation {annotation.get('id')} of another size than its image.",
            "Take the published COCO annotations.",
        )
    return drawn.astype(bool)
