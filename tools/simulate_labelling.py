"""How fast a folder gets labelled: IoU of all its masks against the number of images that were corrected.

    python -m tools.simulate_labelling FOLDER --classes voc/cat voc/aeroplane --images 100 --runs 3

FOLDER is laid out as for `diffseg evaluate`. The true masks play the person, who corrects a few images, lets
the model learn and propose, then corrects the images that come first: by doubt, as the page orders them, or
at random. The first ones are always drawn at random, for nothing was proposed yet. Corrected images count
with the IoU of their true mask, 1. For comparison: as many supports drawn at random as `--baseline` says,
without adaptation.

An image is encoded once for all runs and orders, and what two ways of labelling begin alike is done once. The
rest is the model's own work: with both orders, adapted and plain, a run of a class adapts five times and
proposes eleven times for what is open (the table says what one of each takes). The same command goes on where
a killed one stopped: `--json` gets the rows of each run when it is done.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.datasets.episode import Sample, read_folder
from diffseg_cli.labelling.doubt import by_doubt
from diffseg_cli.labelling.project import Mask, Project
from diffseg_cli.labelling.query_cache import QueryCache
from diffseg_cli.labelling.review_log import State
from diffseg_cli.labelling.teaching import ADAPT, propose, teach_steps
from diffseg_cli.reading.image_io import read_pair
from diffseg_cli.segmenter import Segmenter

MILESTONES = (3, 5, 10)  # corrections after which the model learns
ORDERS = ("doubt", "random")  # in which the person looks at images


def iou(found: Mask, truth: Mask) -> float:
    """Of two masks (H W); 1 where both are empty."""
    either = int((found | truth).sum())
    return int((found & truth).sum()) / either if either else 1.0


def learn(
    segmenter: Segmenter, project: Project, queries: QueryCache, *, adapt: bool, most_supports: int
) -> dict[str, float]:
    """Learn from everything that is corrected, and propose for the rest; processor time of both.

    Returns:
        Seconds to learn, and seconds an image to propose.
    """
    began, taught = time.process_time(), None
    way = ADAPT if adapt else None
    for step in teach_steps(segmenter, project, queries, adapt=way, most_supports=most_supports):
        taught = step.taught
    assert taught is not None
    learned, still_open = time.process_time(), [each for each in project.reviews() if not each.is_reviewed]
    for review in still_open:
        propose(project, taught, queries, review.image)
    proposed = (time.process_time() - learned) / max(1, len(still_open))
    return {"learning_seconds": learned - began, "proposing_seconds": proposed}


def figures(project: Project, truths: dict[str, Mask]) -> dict[str, float]:
    """Mean IoU of the whole folder, and of the images nobody corrected."""
    found = {
        key: iou((project.masks(key) or [np.zeros_like(truth)])[0], truth) for key, truth in truths.items()
    }
    still_open = [found[review.image] for review in project.reviews() if not review.is_reviewed]
    return {"folder": float(np.mean(list(found.values()))), "open": float(np.mean(still_open))}


def next_images(project: Project, order: str, count: int, generator: np.random.Generator) -> list[str]:
    """What the person looks at next."""
    waiting = [each for each in by_doubt(project.reviews()) if each.state is not State.CORRECTED]
    if order == "random":
        waiting = [waiting[index] for index in generator.permutation(len(waiting))]
    return [each.image for each in waiting[:count]]


def simulate(
    segmenter: Segmenter,
    project: Project,
    truths: dict[str, Mask],
    queries: QueryCache,
    *,
    order: str,
    adapt_from: int | None,
    milestones: Sequence[int],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """One person at work on one folder, a row for each milestone; from so many corrections on it adapts."""
    generator = np.random.default_rng(seed)
    for milestone in milestones:
        corrected = sum(review.is_reviewed for review in project.reviews())
        for key in next_images(project, order, milestone - corrected, generator):
            project.correct(key, project.review(key).revision, [truths[key]])
        adapt = adapt_from is not None and milestone >= adapt_from
        seconds = learn(segmenter, project, queries, adapt=adapt, most_supports=max(10, milestone))
        yield {"order": order, "adapt": adapt, "corrected": milestone, **figures(project, truths), **seconds}


def simulate_orders(
    segmenter: Segmenter,
    images: Path,
    truths: dict[str, Mask],
    *,
    orders: Sequence[str],
    adapt_from: int | None,
    milestones: Sequence[int],
    seed: int,
) -> Iterator[dict[str, Any]]:
    """The same beginning, for nothing was proposed yet, then every order on a copy of that project."""
    queries = QueryCache(segmenter, images / ".encoded")
    options: dict[str, Any] = {"adapt_from": adapt_from, "seed": seed}
    with tempfile.TemporaryDirectory() as work:
        begun = Path(work) / "begun"
        project, first = Project(images, begun, ["object"]), milestones[:1]
        (row,) = simulate(segmenter, project, truths, queries, order="random", milestones=first, **options)
        for order in orders:
            yield {**row, "order": order}
            project = Project(images, shutil.copytree(begun, Path(work) / order))
            rest = milestones[1:]
            yield from simulate(segmenter, project, truths, queries, order=order, milestones=rest, **options)


def prepare(samples: Sequence[Sample], folder: Path) -> dict[str, Mask]:
    """Copy the images of a class into a folder; the true mask of each."""
    truths = {}
    for number, sample in enumerate(samples):
        key = f"{number:04}{sample.image.suffix}"
        shutil.copy(sample.image, folder / key)
        truths[key] = read_pair(sample.image, sample.mask)[1]
    return truths


def simulate_run(
    segmenter: Segmenter,
    images: Path,
    truths: dict[str, Mask],
    orders: Sequence[str],
    adapt_from: Sequence[int],
    baseline: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Every way to label the images of one class from one beginning, and the baseline."""
    ways: list[dict[str, Any]] = [
        *({"orders": orders, "adapt_from": least, "milestones": MILESTONES} for least in (None, *adapt_from)),
        {"orders": ["random"], "adapt_from": None, "milestones": (baseline,)},
    ]
    for way in ways:
        if way["milestones"][-1] < len(truths):
            for row in simulate_orders(segmenter, images, truths, seed=seed, **way):
                if row["adapt"] or way["adapt_from"] is None:  # else it was said before
                    yield row


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Means over classes and runs, and the standard deviation over runs of the mean over classes."""
    print(f"\n{'order':8} {'adapted':8} {'corrected':>9} {'folder':>15} {'open':>15}", end="")
    print(f" {'learn s':>8} {'s/image':>8}")
    for kind in dict.fromkeys((row["order"], row["adapt"], row["corrected"]) for row in rows):
        same = [row for row in rows if (row["order"], row["adapt"], row["corrected"]) == kind]
        told = [_mean_and_spread(same, what) for what in ("folder", "open")]
        seconds = [np.mean([row[f"{what}_seconds"] for row in same]) for what in ("learning", "proposing")]
        print(f"{kind[0]:8} {kind[1]!s:8} {kind[2]:>9} {told[0]:>15} {told[1]:>15}", end="")
        print(f" {seconds[0]:>8.1f} {seconds[1]:>8.2f}")


def _mean_and_spread(rows: Sequence[dict[str, Any]], what: str) -> str:
    seeds = dict.fromkeys(row["seed"] for row in rows)
    runs = [np.mean([row[what] for row in rows if row["seed"] == seed]) for seed in seeds]
    spread = f" ± {np.std(runs, ddof=1):.3f}" if len(runs) > 1 else ""
    return f"{np.mean([row[what] for row in rows]):.3f}{spread}"


def keep(rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Print the rows of a run, and add them to a file."""
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    print(lines, end="", flush=True)
    if file:
        with file.open("a") as stream:
            stream.write(lines)


def main() -> None:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", nargs="+", required=True, help="such as voc/cat")
    parser.add_argument("--images", type=int, default=100, help="at most, of each class")
    parser.add_argument("--runs", type=int, default=1, help="people who start with different images")
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument(
        "--adapt-from", type=int, nargs="*", default=[MILESTONES[0]], metavar="N", help="corrections"
    )
    parser.add_argument("--baseline", type=int, default=25, help="supports at random, without adaptation")
    parser.add_argument("--json", type=Path, help="file of the rows; runs that are in it are not done again")
    arguments = parser.parse_args()
    data, segmenter = read_folder(arguments.folder), load_segmenter()
    kept = arguments.json.read_text().splitlines() if arguments.json and arguments.json.exists() else []
    finished, rows = [json.loads(line) for line in kept], list[dict[str, Any]]()
    options = {what: getattr(arguments, what) for what in ("orders", "adapt_from", "baseline")}
    for name in arguments.classes:
        own = np.random.default_rng(0).permutation(data.by_class[name])[: arguments.images]
        with tempfile.TemporaryDirectory() as folder:
            truths = prepare([data.samples[index] for index in own], Path(folder))
            about = {"digest": segmenter.digest, "class": name, "images": len(truths), **options}
            for seed in range(arguments.runs):
                run = {**about, "seed": seed}
                new = [row for row in finished if run.items() <= row.items()]
                if not new:
                    found = simulate_run(segmenter, Path(folder), truths, **options, seed=seed)
                    new = [run | row for row in found]
                    keep(new, arguments.json)
                rows += new
    show(rows)


if __name__ == "__main__":
    main()
