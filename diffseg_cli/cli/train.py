"""diffseg train."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffseg_cli.choices import (
    ADVANCED,
    OUTPUT,
    CrossMap,
    Device,
    Dtype,
    Model,
    SupportCrop,
    Timesteps,
)
from diffseg_cli.cli import console, options
from diffseg_cli.config import FineTuneConfig, PamConfig, TrainConfig

if TYPE_CHECKING:
    from diffseg_cli.training.jobs import Progress

EXAMPLES = """Examples:

  diffseg train --root my_classes/ --out runs/mine

  diffseg train --dataset pascal-5i --fold 0 --root VOCdevkit --out fold0/"""

DATA, TRAINING, ABLATIONS = "Data", "Training", "Ablations of the paper"  # panels of the help


def train(
    root: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the data set.", rich_help_panel=DATA)],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for state, log, curves and best checkpoint; the same folder resumes a stopped run.",
            rich_help_panel=OUTPUT,
        ),
    ],
    dataset: Annotated[
        Literal["folder", "pascal-5i", "coco-20i", "coco-40-20-20", "fss-1000"],
        typer.Option(metavar="NAME", help=options.DATASET_HELP, rich_help_panel=DATA),
    ] = "folder",
    fold: Annotated[
        int | None,
        typer.Option(
            min=0, max=3, metavar="N", help="Fold whose classes are left out.", rich_help_panel=DATA
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Split to train on. Default: train; all of a folder without index.csv.",
            rich_help_panel=DATA,
        ),
    ] = None,
    val_split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Split to validate on. Default: val where there is one; a quarter of the images of a folder "
            "without index.csv.",
            rich_help_panel=DATA,
        ),
    ] = None,
    val_sources: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Validate on these sources only.", rich_help_panel=DATA),
    ] = None,
    views: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Cached views per image, the first unchanged.",
            rich_help_panel=ADVANCED,
        ),
    ] = 2,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Cache of the frozen backbone's results; runs may share it. Default: OUT/cache.",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    stage: Annotated[
        Literal["modules", "backbone"],
        typer.Option(
            help="modules: train SCM and PAM. backbone: fit compact's decoder and statistics to its encoder.",
            rich_help_panel=TRAINING,
        ),
    ] = "modules",
    init: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Weights to start from: a checkpoint, shipped or none. Default: shipped for compact on a "
            "folder of your own, else none.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    recipe: Annotated[
        Literal["default", "paper"],
        typer.Option(
            help="default: AdamW and averaged weights. paper: SGD and the loss of eq. 10 alone.",
            rich_help_panel=ADVANCED,
        ),
    ] = "default",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Training steps. "
            f"Default: {TrainConfig.steps}, or {FineTuneConfig.steps} when starting from weights.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Learning rate of the default recipe. "
            f"Default: {TrainConfig.lr:g}, or {FineTuneConfig.lr:g} when starting from weights.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Episodes per step, over all processes.",
            rich_help_panel=ADVANCED,
        ),
    ] = TrainConfig.batch_size,
    channel_dropout: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            metavar="P",
            help="Share of latent channels dropped in training.",
            rich_help_panel=ADVANCED,
        ),
    ] = PamConfig.channel_dropout,
    query_dropout: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            metavar="P",
            help="Share of episodes in which PAM does not see the query's own latents.",
            rich_help_panel=ADVANCED,
        ),
    ] = PamConfig.query_dropout,
    validate_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"Steps between validations. Default: {TrainConfig.validate_every}, or "
            f"{FineTuneConfig.validate_every} when starting from weights.",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    save_every: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Steps between saved states.", rich_help_panel=ADVANCED),
    ] = TrainConfig.save_every,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of every random draw.", rich_help_panel=TRAINING)
    ] = 0,
    precision: Annotated[
        Literal["bf16", "fp32"],
        typer.Option(
            help="Number format of training; bf16 falls back to float32 on hardware without bfloat16.",
            rich_help_panel=ADVANCED,
        ),
    ] = "bf16",
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Also write scalars to OUT/tensorboard.", rich_help_panel=OUTPUT),
    ] = False,
    modules: Annotated[
        Literal["scm+pam", "pam", "scm"],
        typer.Option(
            help="What to train. pam alone reads no attention maps; scm alone answers with its score map.",
            rich_help_panel=ABLATIONS,
        ),
    ] = "scm+pam",
    knowledge: Annotated[
        Literal["self+cross", "cross", "self", "resnet", "transformer"],
        typer.Option(
            metavar="NAME",
            help="What the score map is made of: self+cross, cross, self, resnet or transformer.",
            rich_help_panel=ABLATIONS,
        ),
    ] = "self+cross",
    pam_attentions: Annotated[
        str,
        typer.Option(
            metavar="A,B,C",
            help="The three attentions of PAM; each is attention, conv or none.",
            rich_help_panel=ABLATIONS,
        ),
    ] = "attention,attention,attention",
    scm_scales: Annotated[
        str,
        typer.Option(
            metavar="N,N", help="Scales that SCM controls; 0 is the finest.", rich_help_panel=ABLATIONS
        ),
    ] = "all",
    scm_separate: Annotated[
        bool,
        typer.Option(
            "--scm-separate", help="A separate trunk of SCM for each scale.", rich_help_panel=ABLATIONS
        ),
    ] = False,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PX", help="Image size, a multiple of 64. Default: 384.", rich_help_panel=ABLATIONS
        ),
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
