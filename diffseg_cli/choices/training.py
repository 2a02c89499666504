"""What `diffseg train` trains, on what, from where; each field is an option."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

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
from diffseg_cli.config import FineTuneConfig, PamConfig, TrainConfig

DATA, TRAINING, ABLATIONS = "Data", "Training", "Ablations of the paper"  # panels of the help


@dataclass(frozen=True)
class FormChoice:
    """Which modules, and what they read, with the switches of the paper's ablations: for `choose_modules`."""

    modules: Annotated[
        Literal["scm+pam", "pam", "scm"],
        Option(
            "What to train. pam alone reads no attention maps; scm alone answers with its score map.",
            ABLATIONS,
        ),
    ] = "scm+pam"
    knowledge: Annotated[
        Literal["self+cross", "cross", "self", "resnet", "transformer"],
        Option(
            "What the score map is made of: self+cross, cross, self, resnet or transformer.",
            ABLATIONS,
            metavar="NAME",
        ),
    ] = "self+cross"
    pam_attentions: Annotated[
        str,
        Option("The three attentions of PAM; each is attention, conv or none.", ABLATIONS, metavar="A,B,C"),
    ] = "attention,attention,attention"
    scm_scales: Annotated[
        str, Option("Scales that SCM controls; 0 is the finest.", ABLATIONS, metavar="N,N")
    ] = "all"
    scm_separate: Annotated[bool, Option("A separate trunk of SCM for each scale.", ABLATIONS)] = False
    image_size: Annotated[
        int | None, Option("Image size, a multiple of 64. Default: 384.", ABLATIONS, metavar="PX")
    ] = None
    channel_dropout: Annotated[
        float,
        Option("Share of latent channels dropped in training.", ADVANCED, metavar="P", least=0, most=0.9),
    ] = PamConfig.channel_dropout
    query_dropout: Annotated[
        float,
        Option(
            "Share of episodes in which PAM does not see the query's own latents.",
            ADVANCED,
            metavar="P",
            least=0,
            most=0.9,
        ),
    ] = PamConfig.query_dropout
    timesteps: Timesteps = None
    cross_map: CrossMap = None
    support_crop: SupportCrop = None


@dataclass(frozen=True)
class TrainPlan:
    """Everything a training run of SCM and PAM depends on."""

    root: Annotated[Path, Option("Folder of the data set.", DATA, metavar="DIR")]
    out: Annotated[
        Path,
        Option(
            "Folder for state, log, curves and best checkpoint; the same folder resumes a stopped run.",
            OUTPUT,
            flags=("--out", "-o"),
            metavar="DIR",
        ),
    ]
    dataset: Annotated[
        Literal["folder", "pascal-5i", "coco-20i", "coco-40-20-20", "fss-1000"],
        Option(DATASET_HELP, DATA, metavar="NAME"),
    ] = "folder"
    fold: Annotated[
        int | None, Option("Fold whose classes are left out.", DATA, metavar="N", least=0, most=3)
    ] = None
    split: Annotated[
        str | None,
        Option("Split to train on. Default: train; all of a folder without index.csv.", DATA, metavar="NAME"),
    ] = None
    val_split: Annotated[
        str | None,
        Option(
            "Split to validate on. Default: val where there is one; a quarter of the images of a folder "
            "without index.csv.",
            DATA,
            metavar="NAME",
        ),
    ] = None
    val_sources: Annotated[str | None, Option("Validate on these sources only.", DATA, metavar="A,B")] = None
    views: Annotated[
        int, Option("Cached views per image, the first unchanged.", ADVANCED, metavar="N", least=1)
    ] = 2
    cache: Annotated[
        Path | None,
        Option(
            "Cache of the frozen backbone's results; runs may share it. Default: OUT/cache.",
            ADVANCED,
            metavar="DIR",
        ),
    ] = None
    init: Annotated[
        str | None,
        Option(
            "Weights to start from: a checkpoint, shipped or none. Default: shipped for compact on a "
            "folder of your own, else none.",
            TRAINING,
            metavar="FILE",
        ),
    ] = None
    recipe: Annotated[
        Literal["default", "paper"],
        Option("default: AdamW and averaged weights. paper: SGD and the loss of eq. 10 alone.", ADVANCED),
    ] = "default"
    steps: Annotated[
        int | None,
        Option(
            "Training steps. "
            f"Default: {TrainConfig.steps}, or {FineTuneConfig.steps} when starting from weights.",
            TRAINING,
            metavar="N",
            least=1,
        ),
    ] = None
    lr: Annotated[
        float | None,
        Option(
            "Learning rate of the default recipe. "
            f"Default: {TrainConfig.lr:g}, or {FineTuneConfig.lr:g} when starting from weights.",
            TRAINING,
            metavar="X",
        ),
    ] = None
    batch_size: Annotated[
        int, Option("Episodes per step, over all processes.", ADVANCED, metavar="N", least=1)
    ] = TrainConfig.batch_size
    validate_every: Annotated[
        int | None,
        Option(
            f"Steps between validations. Default: {TrainConfig.validate_every}, or "
            f"{FineTuneConfig.validate_every} when starting from weights.",
            ADVANCED,
            metavar="N",
            least=1,
        ),
    ] = None
    save_every: Annotated[int, Option("Steps between saved states.", ADVANCED, metavar="N", least=1)] = (
        TrainConfig.save_every
    )
    seed: Annotated[int, Option("Seed of every random draw.", TRAINING, metavar="N", least=0)] = 0
    precision: Annotated[
        Literal["bf16", "fp32"],
        Option(
            "Number format of training; bf16 falls back to float32 on hardware without bfloat16.", ADVANCED
        ),
    ] = "bf16"
    tensorboard: Annotated[bool, Option("Also write scalars to OUT/tensorboard.", OUTPUT)] = False
    form: FormChoice = field(default_factory=FormChoice)
    model: Model = "compact"
    device: Device = "auto"
    dtype: Dtype = None

    @property
    def own_classes(self) -> bool:
        """Whether the images are a folder of one's own, without an index of splits."""
        return self.dataset == "folder" and not (self.root / "index.csv").is_file()
