"""Lists of episodes as files, so that another system can be run on the very same ones.

JSON lines. The first line says what the list is of, each further line is one episode: images and masks by
their path below the data set's folder, and where a mask file holds several classes its "label": in a label
map the pixels' value, in COCO the category id.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffseg_cli.datasets.episode import Episode, FewShotDataset, draw_set
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.files import write_whole

FORMAT = "diffseg-episodes-1"


@dataclass(frozen=True)
class Task:
    """One episode and its place in a run over folds and repetitions."""

    run: int
    fold: int | None
    index: int
    episode: Episode

    @property
    def place(self) -> tuple[int, int, int]:
        """As `EpisodeResult.place`."""
        return (self.run, -1 if self.fold is None else self.fold, self.index)


def draw_tasks(
    datasets: Mapping[int | None, FewShotDataset],
    *,
    shots: int,
    seed: int,
    runs: int,
    episodes_per_class: int,
    queries_per_set: int = 1,
) -> list[Task]:
    """All episodes of an evaluation, by fold and then run; run r is the list of seed + r.

    Args:
        datasets: by fold, or {None: the data set}; only classes with enough images take part.
        shots: supports per episode.
        seed: of the first run.
        runs: repetitions.
        episodes_per_class: in each run.
        queries_per_set: episodes that share a support set; fewer of a class with too few images.

    Raises:
        InputError: no class has enough images.
        UsageError: the episodes of a class do not divide into such sets.
    """
    if episodes_per_class % queries_per_set:
        raise UsageError(
            f"{episodes_per_class} episodes per class do not divide into sets of {queries_per_set} queries.",
            f"Give for example --episodes-per-class {3 * queries_per_set}.",
        )
    tasks = []
    for fold, dataset in datasets.items():
        usable = dataset.with_enough(shots)
        if not usable.classes:
            raise InputError(
                f"{dataset.root} has no class with {shots + 1} images, and {shots}-shot needs as many.",
                "Use fewer --shots, or add images.",
            )
        for run in range(runs):
            for place in range(episodes_per_class // queries_per_set * len(usable.classes)):
                drawn = draw_set(usable, place, shots=shots, seed=seed + run, queries=queries_per_set)
                tasks += [
                    Task(run, fold, place * queries_per_set + number, episode)
                    for number, episode in enumerate(drawn)
                ]
    return tasks


def list_lines(tasks: Sequence[Task], datasets: Mapping[int | None, FewShotDataset]) -> list[str]:
    """The lines of a list after its first; the same on every machine."""
    return [json.dumps(_row(task, datasets[task.fold])) for task in tasks]


def list_hash(lines: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that tell lists apart."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_list(path: Path, about: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Write a list, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    write_whole(path, "\n".join([json.dumps({"format": FORMAT, **about}), *lines, ""]).encode())


def read_list(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a list is of, and its rows.

    Raises:
        InputError: the file cannot be read or is no list of episodes.
    """
    try:
        head, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        if head.get("format") != FORMAT:
            raise ValueError("its first line does not say so")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is not a list of episodes: {error}.", "Give a file that --episodes-out wrote."
        ) from error
    return head, rows


def find_tasks(
    path: Path, rows: Sequence[dict[str, Any]], datasets: Mapping[int | None, FewShotDataset]
) -> list[Task]:
    """The episodes of a list in data sets that hold its images.

    Raises:
        InputError: an image is not in the data set, or a row is damaged.
    """
    places = {
        fold: {(s.class_name, dataset.relative(s.image)): i for i, s in enumerate(dataset.samples)}
        for fold, dataset in datasets.items()
    }
    tasks = []
    for number, row in enumerate(rows, start=2):
        try:
            name, place = row["class"], places[row["fold"]]
            query, *support = [place[name, entry["image"]] for entry in (row["query"], *row["support"])]
            tasks.append(Task(row["run"], row["fold"], row["index"], Episode(name, tuple(support), query)))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} names in line {number} what the data set does not hold: {error}.",
                "Give the data set, split and sources the list was made from.",
            ) from error
    return tasks


def _row(task: Task, dataset: FewShotDataset) -> dict[str, Any]:
    def entry(index: int) -> dict[str, Any]:
        sample = dataset.samples[index]
        label = {} if sample.label is None else {"label": sample.label}
        return {"image": dataset.relative(sample.image), "mask": dataset.relative(sample.mask), **label}

    episode = task.episode
    return {
        "run": task.run,
        "fold": task.fold,
        "index": task.index,
        "class": episode.class_name,
        "query": entry(episode.query),
        "support": [entry(index) for index in episode.support],
    }
