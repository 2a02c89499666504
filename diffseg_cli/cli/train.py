"""diffseg train."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffseg_cli.choices import Device, Dtype, Model
from diffseg_cli.cli import console, options
from diffseg_cli.config import FineTuneConfig, PamConfig, TrainConfig

EXAMPLES = """Examples:

  diffseg train --root my_classes/ --out runs/mine

  diffseg train --dataset pascal-5i --fold 0 --root VOCdevkit --val-split test --out runs/fold0"""

DATA, TRAINING, ABLATIONS = "Data", "Training", "Ablations of the paper"  # panels of the help


def train(
    root: Annotated[Path, typer.Option(help="Where the data set lies.", rich_help_panel=DATA)],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="State, log, curves and the best checkpoint; a stopped run with the same folder goes on.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    dataset: Annotated[
        Literal["folder", "pascal-5i", "coco-20i", "coco-40-20-20", "fss-1000"],
        typer.Option(
            help="folder: one folder a class, NAME.jpg and its mask NAME.png.", rich_help_panel=DATA
        ),
    ] = "folder",
    fold: Annotated[
        int | None, typer.Option(min=0, max=3, help="Whose classes are left out.", rich_help_panel=DATA)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Part to train on; default train, or all of a folder. Of a folder, rows of its index.csv.",
            rich_help_panel=DATA,
        ),
    ] = None,
    val_split: Annotated[
        str | None,
        typer.Option(
            help="Part to validate on; default val where there is one, of a folder without index.csv a "
            "quarter of its pictures.",
            rich_help_panel=DATA,
        ),
    ] = None,
    val_sources: Annotated[
        str | None,
        typer.Option(help="Validate on these sources only, comma separated.", rich_help_panel=DATA),
    ] = None,
    views: Annotated[
        int,
        typer.Option(
            min=1, help="Views of a picture in the cache; the first is as it is.", rich_help_panel=DATA
        ),
    ] = 2,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Frozen results, may be shared by runs; default OUT/cache.",
            rich_help_panel=DATA,
        ),
    ] = None,
    stage: Annotated[
        Literal["modules", "backbone"],
        typer.Option(
            help="modules (SCM and PAM) or backbone (what compact fits to its encoder).",
            rich_help_panel=TRAINING,
        ),
    ] = "modules",
    init: Annotated[
        str | None,
        typer.Option(
            metavar="shipped|none|FILE",
            help="First weights; default shipped for a folder of your own and the compact model, else none.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    recipe: Annotated[
        Literal["default", "paper"],
        typer.Option(
            help="default (AdamW, averaged weights) or paper (SGD, eq. 10 alone).", rich_help_panel=TRAINING
        ),
    ] = "default",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Default {TrainConfig.steps}, from given weights {FineTuneConfig.steps}.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help=f"Of the default recipe; {TrainConfig.lr:g}, from given weights {FineTuneConfig.lr:g}.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Episodes a step, of all processes.", rich_help_panel=TRAINING)
    ] = TrainConfig.batch_size,
    channel_dropout: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="Latent channels PAM loses while training.", rich_help_panel=TRAINING
        ),
    ] = PamConfig.channel_dropout,
    query_dropout: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="Episodes without the query's own latents.", rich_help_panel=TRAINING
        ),
    ] = PamConfig.query_dropout,
    validate_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Steps; default {TrainConfig.validate_every} or {FineTuneConfig.validate_every}.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    save_every: Annotated[
        int, typer.Option(min=1, help="Steps a kill costs at most.", rich_help_panel=TRAINING)
    ] = TrainConfig.save_every,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.", rich_help_panel=TRAINING)] = 0,
    precision: Annotated[
        Literal["bf16", "fp32"], typer.Option(help="Of autocast.", rich_help_panel=TRAINING)
    ] = "bf16",
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Scalars in OUT/tensorboard.", rich_help_panel=options.OUTPUT),
    ] = False,
    modules: Annotated[
        Literal["scm+pam", "pam", "scm"],
        typer.Option(
            help="What is trained; pam alone reads no attention maps, scm alone answers with its map.",
            rich_help_panel=ABLATIONS,
        ),
    ] = "scm+pam",
    knowledge: Annotated[
        Literal["self+cross", "cross", "self", "resnet", "transformer"],
        typer.Option(help="What the score map is made of.", rich_help_panel=ABLATIONS),
    ] = "self+cross",
    pam_attentions: Annotated[
        str,
        typer.Option(
            metavar="A,B,C",
            help="PAM's three attentions, each attention, conv or none.",
            rich_help_panel=ABLATIONS,
        ),
    ] = "attention,attention,attention",
    scm_scales: Annotated[
        str,
        typer.Option(
            metavar="all|none|N,N", help="Scales SCM steers, the finest is 0.", rich_help_panel=ABLATIONS
        ),
    ] = "all",
    scm_separate: Annotated[
        bool, typer.Option("--scm-separate", help="A trunk for each scale.", rich_help_panel=ABLATIONS)
    ] = False,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PX", help="Picture size, a multiple of 64; default 384.", rich_help_panel=ABLATIONS
        ),
    ] = None,
    model: Model = "compact",
    device: Device = "auto",
    dtype: Dtype = None,
) -> None:
    """Train SCM and PAM on labelled pictures, or improve the shipped ones on classes of your own."""
    from diffseg_cli.training.jobs import TrainPlan, backbone_job, modules_job
    from diffseg_cli.training.switches import choose_modules

    if stage == "backbone":
        count = steps or TrainConfig.steps
        job = backbone_job(root, out, split=split, steps=count, seed=seed, device=device)
        console.show_training(job)
        return
    pam = PamConfig(channel_dropout=channel_dropout, query_dropout=query_dropout)
    chosen = choose_modules(
        modules, knowledge, pam_attentions, scm_scales, scm_separate, pam=pam, image_size=image_size
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
    console.show_training(modules_job(plan))
