"""PASCAL-5i: the 20 classes of PASCAL VOC 2012 in four folds of five, fold i being classes 5i to 5i + 4.

Shaban, Bansal, Liu, Essa and Boots, "One-Shot Learning for Semantic Segmentation" (BMVC 2017). Images of a
fold's test are VOC's own `val` list (1449 images); training takes the other classes in `trainaug`, VOC with
the masks of SBD (Hariharan et al., ICCV 2011), and does without an image that holds a test class.
An image counts for a class when at least 2 * 32 * 32 of its pixels show it, as in the lists of PFENet (Tian
et al., TPAMI 2020). Value 255 marks borders that nobody decided; they are ignored.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.datasets.episode import FewShotDataset, Sample, group_by_class
from diffseg_cli.datasets.truth import IGNORE, Truth, read_label_map, turn_upright
from diffseg_cli.errors import InputError, MissingDependency

# In the order of their numbers 1 to 20 in the label maps (VOC2012 development kit).
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle"),
    *("bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person"),
    *("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
FOLDS = 4
LEAST_PIXELS = 2 * 32 * 32
LISTS = "ImageSets/Segmentation"
SBD_FOLDERS = ("cls", "SBD/cls", "sbd/cls", "benchmark_RELEASE/dataset/cls")


def fold_classes(fold: int) -> tuple[str, ...]:
    """The five test classes of a fold, 0 to 3."""
    return CLASSES[5 * fold : 5 * fold + 5]


def read_pascal(root: Path, *, fold: int, split: str = "test") -> FewShotDataset:
    """Images of one fold; their label maps are all read once, a few seconds for the test list.

    Args:
        root: VOC2012, VOCdevkit, or the folder that holds VOCdevkit.
        fold: 0 to 3.
        split: "test" for the fold's own classes, "train" for the other fifteen.

    Raises:
        InputError: a folder, list, image or label map is missing.
    """
    voc = _find_voc(root)
    wanted = {CLASSES.index(name) + 1 for name in fold_classes(fold)}
    samples = []
    for name in _read_list(voc, split):
        image = voc / "JPEGImages" / f"{name}.jpg"
        if not image.is_file():
            raise InputError(f"{image} was not found, and the list names it.", "Unpack VOC2012 again.")
        labels_file = _find_labels(voc, name)
        sizes = np.bincount(_read_labels(labels_file).ravel(), minlength=IGNORE + 1)
        present = {label for label in range(1, len(CLASSES) + 1) if sizes[label]}
        if split == "train" and present & wanted:
            continue
        for label in present:
            if sizes[label] >= LEAST_PIXELS and ((label in wanted) == (split == "test")):
                others = tuple(CLASSES[other - 1] for other in sorted(present - {label}))
                samples.append(Sample(image, labels_file, CLASSES[label - 1], others, label))
    return group_by_class(samples, root)


def read_pascal_truth(sample: Sample) -> Truth:
    """One class of a label map.

    Raises:
        InputError: the label map is unreadable.
        MissingDependency: it is a .mat file of SBD and scipy is not installed.
    """
    labels = _read_labels(sample.mask)
    return Truth(
        turn_upright(labels == sample.label, sample.image), turn_upright(labels == IGNORE, sample.image)
    )


def _find_voc(root: Path) -> Path:
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise InputError(
        f"{root / 'JPEGImages'} was not found: {root} does not hold PASCAL VOC 2012.",
        "Give the folder VOCdevkit/VOC2012 with --root.",
    )


def _read_list(voc: Path, split: str) -> list[str]:
    names = ("val",) if split == "test" else ("trainaug", "train_aug", "train")
    for name in names:
        path = voc / LISTS / f"{name}.txt"
        if path.is_file():
            # Some copies of trainaug give "/JPEGImages/x.jpg /SegmentationClassAug/x.png" a line.
            return [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
    raise InputError(f"{voc / LISTS / names[0]}.txt was not found.", "It comes with VOC2012.")


def _find_labels(voc: Path, name: str) -> Path:
    """SegmentationClassAug before VOC's own SegmentationClass before SBD's .mat files."""
    places = [voc / folder / f"{name}.png" for folder in ("SegmentationClassAug", "SegmentationClass")]
    for base in (voc, voc.parent, voc.parent.parent):
        places += [base / folder / f"{name}.mat" for folder in SBD_FOLDERS]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"{places[0]} was not found, nor {places[1]}, nor a cls/{name}.mat of SBD.",
        "Unpack SegmentationClass, SegmentationClassAug or SBD beside JPEGImages.",
    )


def _read_labels(path: Path) -> NDArray[np.uint8]:
    if path.suffix != ".mat":
        return read_label_map(path)
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingDependency(
            f"{path} is a MATLAB file, and scipy is not installed.", "pip install 'diffseg[sbd]'"
        ) from error
    try:
        content: dict[str, Any] = loadmat(path)
        return np.asarray(content["GTcls"]["Segmentation"][0, 0], dtype=np.uint8)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read as a mask of SBD: {error}.", "Unpack SBD again.") from error
