"""diffseg train."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from diffseg_cli.choices import Option
from diffseg_cli.choices.training import TRAINING, TrainPlan
from diffseg_cli.cli import console

if TYPE_CHECKING:
    from diffseg_cli.training.jobs import Progress

EXAMPLES = """Examples:

  diffseg train --root my_classes/ --out runs/mine

  diffseg train --dataset pascal-5i --fold 0 --root VOCdevkit --out fold0/"""


def train(
    *,
    plan: TrainPlan,
    stage: Annotated[
        Literal["modules", "backbone"],
        Option(
            "modules: train SCM and PAM. backbone: fit compact's decoder and statistics to its encoder.",
            TRAINING,
        ),
    ] = "modules",
) -> None:
    """Train SCM and PAM on labelled images, or adapt the shipped ones to your own classes."""
    from diffseg_cli.training.jobs import backbone_job, modules_job

    show_progress(backbone_job(plan) if stage == "backbone" else modules_job(plan))


def show_progress(job: "Iterable[Progress]") -> None:
    """Follow a training run: a bar a stage on a terminal, elsewhere a line now and then."""
    if sys.stderr.isatty():
        with console.bars() as shown:
            tasks: dict[str, Any] = {}
            for step in job:
                if step.stage not in tasks:
                    tasks[step.stage] = shown.add_task(step.stage, total=step.total, figures="")
                shown.update(tasks[step.stage], completed=step.done, figures=_figures(step.figures))
                if step.milestone:
                    console.say(_line(step))
        return
    last = time.monotonic()
    for step in job:
        if step.milestone or time.monotonic() - last > console.QUIET_SECONDS:
            console.say(_line(step))
            last = time.monotonic()


def _line(step: "Progress") -> str:
    return f"{step.stage} {step.done}/{step.total} {_figures(step.figures)}".rstrip()


def _figures(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in figures.items())
