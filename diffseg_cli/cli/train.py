"""diffseg train."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from diffseg_cli.choices import (
    ADVANCED,
    OUTPUT,
    CrossMap,
    Device,
    Dtype,
    Model,
    Option,
    SupportCrop,
    Timesteps,
)
from diffseg_cli.choices.evaluation import DATASET_HELP
from diffseg_cli.cli import console
from diffseg_cli.config import FineTuneConfig, PamConfig, TrainConfig

if TYPE_CHECKING:
    from diffseg_cli.training.jobs import Progress

EXAMPLES = """Examples:

  diffseg train --root my_classes/ --out runs/mine

  diffseg train --dataset pascal-5i --fold 0 --root VOCdevkit --out fold0/"""

DATA, TRAINING, ABLATIONS = "Data", "Training", "Ablations of the paper"  # panels of the help


def train(
    root: Annotated[Path, Option("Folder of the data set.", DATA, metavar="DIR")],
    out: Annotated[
        Path,
        Option(
            "Folder for state, log, curves and best checkpoint; the same folder resumes a stopped run.",
            OUTPUT,
            flags=("--out", "-o"),
            metavar="DIR",
        ),
    ],
    dataset: Annotated[
        Literal["folder", "pascal-5i", "coco-20i", "coco-40-20-20", "fss-1000"],
        Option(DATASET_HELP, DATA, metavar="NAME"),
    ] = "folder",
    fold: Annotated[
        int | None, Option("Fold whose classes are left out.", DATA, metavar="N", least=0, most=3)
    ] = None,
    split: Annotated[
        str | None,
        Option("Split to train on. Default: train; all of a folder without index.csv.", DATA, metavar="NAME"),
    ] = None,
    val_split: Annotated[
        str | None,
        Option(
            "Split to validate on. Default: val where there is one; a quarter of the images of a folder "
            "without index.csv.",
            DATA,
            metavar="NAME",
        ),
    ] = None,
    val_sources: Annotated[str | None, Option("Validate on these sources only.", DATA, metavar="A,B")] = None,
    views: Annotated[
        int, Option("Cached views per image, the first unchanged.", ADVANCED, metavar="N", least=1)
    ] = 2,
    cache: Annotated[
        Path | None,
        Option(
            "Cache of the frozen backbone's results; runs may share it. Default: OUT/cache.",
            ADVANCED,
            metavar="DIR",
        ),
    ] = None,
    stage: Annotated[
        Literal["modules", "backbone"],
        Option(
            "modules: train SCM and PAM. backbone: fit compact's decoder and statistics to its encoder.",
            TRAINING,
        ),
    ] = "modules",
    init: Annotated[
        str | None,
        Option(
            "Weights to start from: a checkpoint, shipped or none. Default: shipped for compact on a "
            "folder of your own, else none.",
            TRAINING,
            metavar="FILE",
        ),
    ] = None,
    recipe: Annotated[
        Literal["default", "paper"],
        Option("default: AdamW and averaged weights. paper: SGD and the loss of eq. 10 alone.", ADVANCED),
    ] = "default",
    steps: Annotated[
        int | None,
        Option(
            "Training steps. "
            f"Default: {TrainConfig.steps}, or {FineTuneConfig.steps} when starting from weights.",
            TRAINING,
            metavar="N",
            least=1,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        Option(
            "Learning rate of the default recipe. "
            f"Default: {TrainConfig.lr:g}, or {FineTuneConfig.lr:g} when starting from weights.",
            TRAINING,
            metavar="X",
        ),
    ] = None,
    batch_size: Annotated[
        int, Option("Episodes per step, over all processes.", ADVANCED, metavar="N", least=1)
    ] = TrainConfig.batch_size,
    channel_dropout: Annotated[
        float,
        Option("Share of latent channels dropped in training.", ADVANCED, metavar="P", least=0, most=0.9),
    ] = PamConfig.channel_dropout,
    query_dropout: Annotated[
        float,
        Option(
            "Share of episodes in which PAM does not see the query's own latents.",
            ADVANCED,
            metavar="P",
            least=0,
            most=0.9,
        ),
    ] = PamConfig.query_dropout,
    validate_every: Annotated[
        int | None,
        Option(
            f"Steps between validations. Default: {TrainConfig.validate_every}, or "
            f"{FineTuneConfig.validate_every} when starting from weights.",
            ADVANCED,
            metavar="N",
            least=1,
        ),
    ] = None,
    save_every: Annotated[
        int, Option("Steps between saved states.", ADVANCED, metavar="N", least=1)
    ] = TrainConfig.save_every,
    seed: Annotated[int, Option("Seed of every random draw.", TRAINING, metavar="N", least=0)] = 0,
    precision: Annotated[
        Literal["bf16", "fp32"],
        Option(
            "Number format of training; bf16 falls back to float32 on hardware without bfloat16.", ADVANCED
        ),
    ] = "bf16",
    tensorboard: Annotated[bool, Option("Also write scalars to OUT/tensorboard.", OUTPUT)] = False,
    modules: Annotated[
        Literal["scm+pam", "pam", "scm"],
        Option(
            "What to train. pam alone reads no attention maps; scm alone answers with its score map.",
            ABLATIONS,
        ),
    ] = "scm+pam",
    knowledge: Annotated[
        Literal["self+cross", "cross", "self", "resnet", "transformer"],
        Option(
            "What the score map is made of: self+cross, cross, self, resnet or transformer.",
            ABLATIONS,
            metavar="NAME",
        ),
    ] = "self+cross",
    pam_attentions: Annotated[
        str,
        Option("The three attentions of PAM; each is attention, conv or none.", ABLATIONS, metavar="A,B,C"),
    ] = "attention,attention,attention",
    scm_scales: Annotated[
        str, Option("Scales that SCM controls; 0 is the finest.", ABLATIONS, metavar="N,N")
    ] = "all",
    scm_separate: Annotated[bool, Option("A separate trunk of SCM for each scale.", ABLATIONS)] = False,
    image_size: Annotated[
        int | None, Option("Image size, a multiple of 64. Default: 384.", ABLATIONS, metavar="PX")
    ] = None,
    model: Model = "compact",
    device: Device = "auto",
    dtype: Dtype = None,
    timesteps: Timesteps = None,
    cross_map: CrossMap = None,
    support_crop: SupportCrop = None,
) -> None:
    """Train SCM and PAM on labelled images, or adapt the shipped ones to your own classes."""
    from diffseg_cli.assembly import choose_look
    from diffseg_cli.loading import trained_look
    from diffseg_cli.training.jobs import TrainPlan, backbone_job, modules_job
    from diffseg_cli.training.switches import choose_modules

    if stage == "backbone":
        count = steps or TrainConfig.steps
        job = backbone_job(root, out, split=split, steps=count, seed=seed, device=device)
        show_progress(job)
        return
    pam = PamConfig(channel_dropout=channel_dropout, query_dropout=query_dropout)
    start = None if init in (None, "none", "shipped") else trained_look(Path(str(init)))
    chosen = choose_modules(
        modules,
        knowledge,
        pam_attentions,
        scm_scales,
        scm_separate,
        pam=pam,
        image_size=image_size,
        look=choose_look(timesteps, cross_map, support_crop, start),
    )
    plan = TrainPlan(
        root=root,
        out=out,
        dataset=dataset,
        fold=fold,
        split=split,
        val_split=val_split,
        val_sources=val_sources,
        model=model,
        modules=chosen,
        init=init,
        recipe=recipe,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        views=views,
        save_every=save_every,
        validate_every=validate_every,
        precision=precision,
        device=device,
        dtype=dtype,
        cache=cache,
        tensorboard=tensorboard,
    )
    show_progress(modules_job(plan))


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
