"""Every default number of the method, with what it does and where it comes from. No torch here."""

from dataclasses import dataclass, field

PRESENT = 0.5  # presence below which a concept does not seem to be there: the score is calibrated


@dataclass(frozen=True)
class CompactConfig:
    """The compact backbone. Its weights were fitted with these; other numbers need other weights."""

    variant: int = 1  # EfficientNet-Lite1: the best of 0, 1 and 2 on `val` (docs/notebook.md, 2026-11-23)
    taps: tuple[int, ...] = (6, 10, 14, 19, 20)  # last block of each width, strides 8, 16, 16, 32, 32
    block_widths: tuple[int, ...] = (16, 32, 32, 64, 96)  # loses nothing against all 752 channels
    image_size: int = 384  # 0.02 to 0.04 mean IoU above 256; 512 adds 0.015 at twice the cost
    support_margin: float = 0.3  # supports are cropped to their object; 0.01 mean IoU above the whole picture
    object_tokens: int = 4  # prompt vectors from the support's object
    background_tokens: int = 4  # negative prompt vectors from its background
    decoder_width: int = 64
    # The look, chosen on `val` by hand: fitted on training classes it did worse (docs/notebook.md).
    look_strides: tuple[int, ...] = (16, 32)
    depth_weights: tuple[float, ...] = (0.1, 0.6, 1.1, 1.1, 0.5)  # of the five taps
    temperature: float = 8.0
    prompt_bias: float = 2.0


@dataclass(frozen=True)
class ScmConfig:
    """Spatial Control Module (paper section 4.4)."""

    width: int = 48
    shared: bool = True  # one trunk for all scales, as in the paper; False for its table 6
    scales: tuple[int, ...] | None = None  # None: all


@dataclass(frozen=True)
class PamConfig:
    """Perceptual Attention Module (paper section 4.3)."""

    width: int = 64
    head_width: int = 48
    heads: int = 2
    value_width: int = 6
    key_stride: int = 2  # keys and values at half the grid: deep features hold no more places
    modes: tuple[str, str, str] = ("attention", "attention", "attention")
    channel_dropout: float = 0.3  # against memorising the training classes,
    query_dropout: float = 0.3  # and this too: 0.011 mean IoU on `val` together (docs/notebook.md)


@dataclass(frozen=True)
class LookConfig:
    """How the frozen network is looked through; what is trained on one look is used with it."""

    timesteps: tuple[int, ...] = (50,)  # noise levels; the compact backbone has none
    cross_map: str = "paper"  # of `method.CROSS_MAPS`; not yet measured on Kandinsky's weights
    support_crop: str = "both"  # "object" loses 0.006 of mean IoU on wide `val`; "whole" is the paper's


@dataclass(frozen=True)
class ModulesConfig:
    """What is trained, and what it reads: all a checkpoint needs to be built again."""

    scm: ScmConfig | None = field(default_factory=ScmConfig)
    pam: PamConfig | None = field(default_factory=PamConfig)  # without it the answer is the score map
    knowledge: str = "self+cross"  # what the score map is made of (models/knowledge.py)
    image_size: int | None = None  # None: the backbone's own
    look: LookConfig = field(default_factory=LookConfig)


@dataclass(frozen=True)
class TrainConfig:
    """Training of SCM and PAM.

    `recipe` "paper": SGD, lr 0.01, times 0.9 every tenth of the run (20 of 200 epochs), loss of eq. 10 alone.
    `recipe` "default": AdamW with cosine decay, weight averaging, and the decoded mask in the loss.
    """

    recipe: str = "default"
    steps: int = 3000  # by then it learns the training classes by heart
    batch_size: int = 8
    lr: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.02
    average_decay: float = 0.995  # of the exponential moving average of the weights
    map_weight: float = 2.0  # alpha of eq. 10
    latent_weight: float = 1.0  # beta of eq. 10
    mask_weight: float = 1.0  # of the decoded mask (cross entropy and Dice), "default" only
    shots: tuple[int, ...] = (1, 3, 5)  # of a step's episodes, drawn with these probabilities
    shots_shares: tuple[float, ...] = (0.6, 0.3, 0.1)
    synthetic_share: float = 0.12  # of episodes from pasted cut-outs
    synthetic_source: str = "tuxpaint_composites/"  # how the names of their classes begin
    validate_every: int = 1000
    save_every: int = 100  # steps between states, what a kill costs at most
    precision: str = "bf16"  # of autocast, where the hardware has bfloat16; "fp32" for none
    seed: int = 0


@dataclass(frozen=True)
class FineTuneConfig:
    """What differs when training goes on from given weights on few pictures: little and carefully."""

    steps: int = 300
    lr: float = 2e-4
    warmup_steps: int = 20
    validate_every: int = 50


@dataclass(frozen=True)
class AdaptConfig:
    """Adaptation of SCM and PAM to the supports of one concept (measurements in docs/notebook.md)."""

    steps: int = 60
    batch_size: int = 3
    lr: float = 1e-3  # falls to zero in a straight line
    most_shots: int = 2  # supports of an episode; 4 gain nothing for a third more time
    most_supports: int = 20
    query_views: int = 6  # of each support: whole, zoomed in, zoomed out
    support_views: int = 3
    map_weight: float = 2.0  # as in training
    mask_weight: float = 1.0
    absent_share: float = 0.25  # of the episodes, where there are images without the concept
    reach: float = 0.6  # how far the modules follow the steps at most; all the way harmed more classes
    found_enough: float = 0.95  # IoU at which the start finds each support with the others, and stays
    eagerness: float = 2.0  # how fast the reach grows below that IoU
    least_reach: float = 0.1  # less is not worth the steps
    single_reach: float = 0.15  # with one support and negatives, instead of `reach`


@dataclass(frozen=True)
class SegmentConfig(LookConfig):
    """How a query is segmented."""

    fusion: str = "concat"  # of several supports; "mean" is the paper's
    threshold: float = 0.5
    refine: bool = True  # guided filter at the image's own size; better on `val` (docs/notebook.md)
    min_area: str = "1%"  # of parts of a mask and of holes (specks.py)
