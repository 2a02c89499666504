"""diffseg train."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffseg_cli.cli import console, options
from diffseg_cli.config import PamConfig, TrainConfig

EXAMPLES = """Examples:

  diffseg train --root my_classes/ --out runs/mine

  diffseg train --stage backbone --root data/fewshot --split train --out runs/backbone"""

ABLATIONS = "Ablations of the paper"  # panel of the help


def train(
    root: Annotated[
        Path, typer.Option(help="Folder with one folder a class: NAME.jpg and its mask NAME.png.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for caches, state, log and the best checkpoint.")],
    stage: Annotated[
        str, typer.Option(help="modules (SCM and PAM) or backbone (what compact fits to its encoder).")
    ] = "modules",
    split: Annotated[str | None, typer.Option(help="Rows of index.csv to train on.")] = None,
    val_split: Annotated[str | None, typer.Option(help="Rows of index.csv to validate on.")] = None,
    val_sources: Annotated[
        str | None, typer.Option(help="Validate on these sources only, comma separated.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="default (AdamW, averaged weights) or paper (SGD, eq. 10 alone).")
    ] = "default",
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps.")] = TrainConfig.steps,
    batch_size: Annotated[int, typer.Option(min=1, help="Episodes a step.")] = TrainConfig.batch_size,
    lr: Annotated[float, typer.Option(help="Highest learning rate of the default recipe.")] = TrainConfig.lr,
    init: Annotated[
        str | None,
        typer.Option(help="Start from these modules: 'shipped' or a checkpoint. Default: from nothing."),
    ] = None,
    channel_dropout: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of latent channels PAM loses while training.")
    ] = PamConfig.channel_dropout,
    query_dropout: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of episodes PAM trains without the query's latents.")
    ] = PamConfig.query_dropout,
    views: Annotated[
        int, typer.Option(min=1, help="Cached views a picture; the first is the picture itself.")
    ] = 2,
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
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Frozen results, may be shared by runs; default OUT/cache."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    device: options.Device = "auto",
) -> None:
    """Train SCM and PAM on labelled pictures; an interrupted run goes on where it was."""
    from diffseg_cli.training.jobs import backbone_job, choose_modules, modules_job

    if stage == "backbone":
        job = backbone_job(root, out, split=split, steps=steps, seed=seed, device=device)
    else:
        config = TrainConfig(recipe=recipe, steps=steps, batch_size=batch_size, lr=lr, seed=seed)
        pam = PamConfig(channel_dropout=channel_dropout, query_dropout=query_dropout)
        job = modules_job(
            root,
            out,
            config=config,
            modules=choose_modules(
                modules,
                knowledge,
                pam_attentions,
                scm_scales,
                scm_separate,
                pam=pam,
                image_size=image_size,
            ),
            init=init,
            split=split,
            val_split=val_split,
            val_sources=val_sources,
            views=views,
            device=device,
            cache_folder=cache,
        )
    console.show_training(job)
