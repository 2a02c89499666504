"""What `diffseg evaluate` measures; each field is an option."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from diffseg_cli.choices import ModelChoice, Option, zoom_choice

DATA, EPISODES, WORK = "Data", "Episodes", "Work"  # panels of the help
DATASET_HELP = (
    "folder, pascal-5i, coco-20i, coco-40-20-20 or fss-1000. A folder has one folder per class, with "
    "NAME.jpg and its mask NAME.png."
)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything an evaluation depends on, in plain values: any process can be given it."""

    root: Annotated[Path, Option("Folder of the data set; never downloaded.", DATA, metavar="DIR")]
    dataset: Annotated[
        Literal["folder", "pascal-5i", "coco-20i", "coco-40-20-20", "fss-1000"],
        Option(DATASET_HELP, DATA, metavar="NAME"),
    ] = "folder"
    fold: Annotated[str | None, Option("Fold to measure. Default: all.", DATA, metavar="0..3|all")] = None
    split: Annotated[
        str | None, Option("Split to measure. Default: test; all of a folder.", DATA, metavar="NAME")
    ] = None
    sources: Annotated[
        tuple[str, ...] | None,
        Option("Only these sources of a folder's index.csv.", DATA, metavar="A,B", parse=_listed),
    ] = None
    shots: Annotated[int, Option("Supports per episode.", EPISODES, metavar="N", least=1)] = 1
    runs: Annotated[int, Option("Repetitions, each with new episodes.", EPISODES, metavar="N", least=1)] = 1
    episodes_per_class: Annotated[
        int | None, Option("In each run. Default: the protocol's.", EPISODES, metavar="N", least=1)
    ] = None
    queries_per_set: Annotated[
        int, Option("Episodes per support set; they share its adaptation.", EPISODES, metavar="N", least=1)
    ] = 1
    seed: Annotated[int, Option("Seed of the episodes.", EPISODES, metavar="N", least=0)] = 0
    episodes_in: Annotated[
        Path | None, Option("Run the episodes listed in this file.", EPISODES, metavar="FILE")
    ] = None
    peers: Annotated[
        tuple[str, ...],
        Option(
            "Also run this method on the same episodes: prototype, prototype-adapted, attention, "
            "slicing (the model on uniform windows), seggpt or matcher-lite; repeat for several.",
            WORK,
            flags=("--peer",),
            metavar="NAME",
        ),
    ] = ()
    peer_weights: Annotated[
        Path | None, Option("Weights of these methods. Default: the hub's local cache.", WORK, metavar="DIR")
    ] = None
    model: ModelChoice = field(default_factory=ModelChoice)
    adapt: Annotated[
        bool,
        Option(
            "Also measure the model adapted to each support set, which takes half a minute or more per set.",
            WORK,
        ),
    ] = False
    sweep: Annotated[
        str | None,
        Option(
            "Also measure all combinations of these settings and name the best: timesteps, "
            "support-crop, cross-map.",
            WORK,
            metavar="A[,B...]",
        ),
    ] = None
    zoom: Annotated[
        str,
        Option(
            "Also measure the model with closer looks at large images: auto, or the most looks.",
            WORK,
            metavar="auto|off|N",
            parse=zoom_choice,
        ),
    ] = "off"
    paste_into: Annotated[
        float | None,
        Option(
            "Measure on large scenes: the object of each query, pasted into a mosaic of images without "
            "it, at 0.1 to 50 percent of the scene.",
            DATA,
            metavar="MEGAPIXELS",
            least=0.1,
            most=100,
        ),
    ] = None
