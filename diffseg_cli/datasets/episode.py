"""Episodes: which images are support and query, as a pure function of (data set, shots, seed, index).

A data set here is only paths and classes; nothing is decoded until an episode is run.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from diffseg_cli.errors import InputError

# Of classes that several sources have, as `class_key` leaves them.
SYNONYMS = {"aeroplane": "airplane", "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@cache
def class_key(name: str) -> str:
    """What tells a class from others, however a source spells it: "voc/tvmonitor" and "TVs" are both "tv"."""
    key = "".join(filter(str.isalnum, name.rsplit("/", 1)[-1].lower()))
    key = key if key.endswith("ss") else key.removesuffix("s")
    return SYNONYMS.get(key, key)


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        image: the photograph.
        mask: its mask, the object white; with `label`, a file that holds several classes.
        class_name: "class" or "source/class".
        present: names of other classes known to be in the same image, without their source.
        label: value of the class in `mask`: in a label map the pixels' value, in COCO the category id.
    """

    image: Path
    mask: Path
    class_name: str
    present: tuple[str, ...] = ()
    label: int | None = None


@dataclass(frozen=True)
class Episode:
    """One few-shot task: indices into `FewShotDataset.samples`."""

    class_name: str
    support: tuple[int, ...]
    query: int


@dataclass(frozen=True)
class FewShotDataset:
    """Labelled images grouped by class.

    Attributes:
        samples: all of them, in a fixed order.
        by_class: class name -> indices into `samples`; classes in sorted order.
        root: folder the paths are told from in lists of episodes; None where there is none.
        name: which data set it is, and so how its masks are read.
    """

    samples: tuple[Sample, ...]
    by_class: dict[str, tuple[int, ...]]
    root: Path | None = None
    name: str = "folder"

    @property
    def classes(self) -> list[str]:
        return list(self.by_class)

    def with_enough(self, shots: int) -> "FewShotDataset":
        """Only the classes that have `shots` supports and a query to spare."""
        return replace(self, by_class={n: i for n, i in self.by_class.items() if len(i) > shots})

    def without(self, class_name: str, *, source: str = "") -> list[int]:
        """Indices of samples of other classes, whose image is not known to hold this one as well.

        Args:
            class_name: "class" or "source/class"; the same class of other sources is left out too, also where
                it is spelled otherwise (`class_key`).
            source: only samples whose class name begins with it.
        """
        wanted = class_key(class_name)
        return [
            index
            for name, members in self.by_class.items()
            if class_key(name) != wanted and name.startswith(source)
            for index in members
            if wanted not in map(class_key, self.samples[index].present)
        ]

    def relative(self, path: Path) -> str:
        """A path of this data set as lists of episodes name it, the same on every machine."""
        inside = self.root is not None and path.is_relative_to(self.root)
        return path.relative_to(self.root).as_posix() if self.root and inside else path.as_posix()


def group_by_class(samples: Iterable[Sample], root: Path | None = None) -> FewShotDataset:
    """Sort samples by class and path, so that the order does not depend on the file system."""
    ordered = tuple(sorted(samples, key=lambda s: (s.class_name, s.image.as_posix())))
    indices = defaultdict(list)
    for index, sample in enumerate(ordered):
        indices[sample.class_name].append(index)
    return FewShotDataset(ordered, {name: tuple(indices[name]) for name in sorted(indices)}, root)


def read_folder(
    root: Path, *, split: str | None = None, sources: Sequence[str] | None = None
) -> FewShotDataset:
    """Read a folder of classes.

    Two layouts: `root/<class>/<id>.jpg` with `<id>.png` beside it as mask, or the same one level deeper
    (`root/<source>/<class>/...`) with `root/index.csv` giving source, class, id, also_in_image and split;
    the classes of `also_in_image` are separated by "|" or by spaces.

    Args:
        root: the folder.
        split: keep only the rows of `index.csv` with this split; needs the index.
        sources: keep only these sources; needs the index.

    Raises:
        InputError: no such folder, no pair in it, or a split asked of a folder without an index.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder.", "Give the folder that holds one folder per class.")
    index = root / "index.csv"
    if index.is_file():
        samples = _read_index(root, index, split, sources)
    elif split or sources:
        raise InputError(f"{index} was not found, so there is no split to choose from.", "Leave --split out.")
    else:
        samples = [
            Sample(image, image.with_suffix(".png"), folder.name)
            for folder in sorted(root.iterdir())
            if folder.is_dir()
            for image in sorted(folder.iterdir())
            if image.suffix.lower() in IMAGE_SUFFIXES[:2] and image.with_suffix(".png").is_file()
        ]
    if not samples:
        raise InputError(
            f"{root} holds no image with a mask.",
            "Expected <class>/<name>.jpg with <class>/<name>.png beside it.",
        )
    return group_by_class(samples, root)


def _read_index(root: Path, index: Path, split: str | None, sources: Sequence[str] | None) -> list[Sample]:
    samples = []
    with index.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (split and row["split"] != split) or (sources and row["source"] not in sources):
                continue
            stem = root / row["source"] / row["class"] / row["id"]
            also = tuple(row["also_in_image"].replace("|", " ").split())
            name = f"{row['source']}/{row['class']}"
            samples.append(Sample(Path(f"{stem}.jpg"), Path(f"{stem}.png"), name, also))
    return samples


def draw_episode(dataset: FewShotDataset, index: int, *, shots: int, seed: int) -> Episode:
    """The `index`-th episode: the only one of its support set, see `draw_set`."""
    return draw_set(dataset, index, shots=shots, seed=seed, queries=1)[0]


def draw_set(dataset: FewShotDataset, index: int, *, shots: int, seed: int, queries: int) -> list[Episode]:
    """The episodes of the `index`-th support set: classes take turns, images are drawn without replacement.

    The same arguments give the same episodes on every machine and in any order of asking.

    Args:
        dataset: every class of it must have more than `shots` images (`with_enough`).
        index: 0, 1, 2, ...
        shots: supports of the set.
        seed: of the whole list.
        queries: episodes of the set; of a class with fewer images, as many as it has beside the supports.
    """
    name = dataset.classes[index % len(dataset.classes)]
    members = dataset.by_class[name]
    queries = min(queries, len(members) - shots)
    generator = np.random.Generator(np.random.PCG64([seed, index]))
    chosen = generator.choice(len(members), size=shots + queries, replace=False)
    support = tuple(members[i] for i in chosen[queries:])
    return [Episode(name, support, members[i]) for i in chosen[:queries]]
