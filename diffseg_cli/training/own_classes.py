"""A person's own folder of classes: what is wrong with it, and which images judge the training."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from diffseg_cli.datasets import read_truth
from diffseg_cli.datasets.episode import IMAGE_SUFFIXES, FewShotDataset, group_by_class
from diffseg_cli.errors import InputError

HELD_OUT_SHARE = 0.25
LEAST_HELD_OUT = 2  # an episode is a support and a query


def check_folder(root: Path, dataset: FewShotDataset) -> None:
    """Everything that would stop a training later, said before it starts.

    Args:
        root: folder of classes without an index.
        dataset: read from it.

    Raises:
        InputError: an image without mask, a class of one image, or a mask that cannot be used.
    """
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        images = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES[:2]]
        for image in images:
            if not image.with_suffix(".png").is_file():
                raise InputError(
                    f"{image} has no mask: {image.with_suffix('.png').name} is not beside it.",
                    "Make one with `diffseg mask`, or move the image away.",
                )
        if len(images) == 1:
            raise InputError(
                f"{folder} holds a single image, and learning a class takes a support and a query.",
                "Add an image with its mask, or move the folder away.",
            )
    for sample in dataset.samples:
        read_truth(dataset.name, sample)


def hold_out(dataset: FewShotDataset, seed: int) -> tuple[FewShotDataset, FewShotDataset | None]:
    """Images to train on and images of the same classes to judge by.

    A quarter of each class, at least two, is held out; a class too small for that is trained on whole.

    Args:
        dataset: all of it.
        seed: of the choice.

    Returns:
        Training and held-out images; None where no class can spare two.
    """
    kept, held = [], []
    for number, members in enumerate(dataset.by_class.values()):
        count = max(LEAST_HELD_OUT, round(HELD_OUT_SHARE * len(members)))
        if len(members) - count < LEAST_HELD_OUT:
            count = 0
        order = np.random.Generator(np.random.PCG64([seed, number])).permutation(len(members))
        held += [dataset.samples[members[i]] for i in order[:count]]
        kept += [dataset.samples[members[i]] for i in order[count:]]

    def part(samples: list) -> FewShotDataset:  # type: ignore[type-arg]
        return replace(group_by_class(samples, dataset.root), name=dataset.name)

    return part(kept), part(held) if held else None
