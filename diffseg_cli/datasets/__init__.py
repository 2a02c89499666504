"""The benchmarks: only paths, class lists, folds and how their masks are read.

Nothing is ever downloaded here; a missing piece is named.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from diffseg_cli.datasets import coco, fss, pascal
from diffseg_cli.datasets.episode import FewShotDataset, Sample, read_folder
from diffseg_cli.datasets.truth import Truth, read_pair_truth
from diffseg_cli.errors import InputError, UsageError


@dataclass(frozen=True)
class Protocol:
    """How a data set is usually measured.

    Attributes:
        folds: how many; 0 where the classes are not divided.
        episodes_per_class: default, together the customary number.
        splits: parts that can be chosen; the first is the default. Empty: any name in `index.csv`.
        text: in one sentence.
    """

    folds: int
    episodes_per_class: int
    splits: tuple[str, ...]
    text: str


PROTOCOLS = {
    "folder": Protocol(0, 20, (), "A folder of classes"),
    "pascal-5i": Protocol(4, 200, ("test", "train"), "PASCAL-5i: VOC 2012 val, 5 test classes a fold"),
    "coco-20i": Protocol(
        4, 50, ("test", "train"), "COCO-20i: COCO 2014 val, 60 classes train, 20 test a fold"
    ),
    "coco-40-20-20": Protocol(
        4,
        50,
        ("test", "val", "train"),
        "COCO 40/20/20 of the DiffSeg paper: 40 classes train, 20 validate, 20 test; not COCO-20i",
    ),
    "fss-1000": Protocol(0, 10, ("test", "val", "train"), "FSS-1000: 240 test classes of 10 images"),
}


def load_dataset(
    name: str, root: Path, *, fold: int | None = None, split: str | None = None, sources: tuple[str, ...] = ()
) -> FewShotDataset:
    """A data set by name.

    Args:
        name: a key of `PROTOCOLS`.
        root: where it lies.
        fold: 0 to 3, where the protocol has folds.
        split: part of it; default the first of the protocol's, for a folder everything.
        sources: of a folder with `index.csv`, only these.

    Raises:
        InputError: a piece of it is missing or nothing of it can be used.
        UsageError: a split or source it does not have.
    """
    protocol = PROTOCOLS[name]
    if name == "folder":
        return read_folder(root, split=split, sources=sources or None)
    split = split or protocol.splits[0]
    if split not in protocol.splits:
        raise UsageError(f"{name} has no split '{split}'.", f"Use {' or '.join(protocol.splits)}.")
    if sources:
        raise UsageError(f"{name} has no sources to choose from.", "Leave --sources out.")
    if not root.is_dir():
        raise InputError(f"{root} is not a folder.", f"Give the folder that holds {name} with --root.")
    if name == "fss-1000":
        dataset = fss.read_fss(root, split=split)
    elif fold is None:
        raise ValueError(f"{name} needs a fold")
    elif name == "pascal-5i":
        dataset = pascal.read_pascal(root, fold=fold, split=split)
    else:
        paper = name == "coco-40-20-20"
        dataset = coco.read_coco(root, fold=fold, split=split, forty_twenty_twenty=paper)
    if not dataset.samples:
        raise InputError(f"{root} holds no image of fold {fold} that can be used.", "Unpack all of it.")
    return replace(dataset, name=name)


def read_truth(name: str, sample: Sample) -> Truth:
    """Which pixels of a sample are the object and which do not count; the name is a key of `PROTOCOLS`.

    Raises:
        InputError: its mask cannot be read.
    """
    if name == "fss-1000":
        return fss.read_fss_truth(sample)
    if name == "pascal-5i":
        return pascal.read_pascal_truth(sample)
    return coco.read_coco_truth(sample) if name.startswith("coco-") else read_pair_truth(sample)
