"""What a user chooses, as values: which model, what to look for, how masks are read, what the answer is.

Each class is one group of options: a verb that takes it has an option for each field (`cli.options.expand`),
and the function named in its docstring has them as keyword arguments. A shared option is so written here
and where it is used, and nowhere between. No torch and no command line here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

MIN_AREA = r"^([0-9]+(\.[0-9]+)?|([0-9]{1,2}(\.[0-9]+)?|100)%)$"  # what `least_pixels` reads
MOST_LOOKS = 999
ZOOM = r"^(auto|off|[2-9]|[1-9][0-9]{1,2})$"  # what `zoom.most_looks` reads
SUPPORT, MODEL, OUTPUT, ADVANCED = "Support", "Model", "Output", "Advanced"  # panels of the help


@dataclass(frozen=True)
class Option:
    """How the command line asks for a value.

    Attributes:
        help: what it does.
        panel: of the help.
        flags: short and long; none derives the long one from the name.
        metavar: what stands for the value in the help; "" for none.
        parse: one word of the command line -> value; raises ValueError with a sentence.
        least: of a number.
        most: of a number.
    """

    help: str
    panel: str | None = None
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    parse: Callable[[str], Any] | None = None
    least: float | None = None
    most: float | None = None


# --- words of the command line -> values ---------------------------------------------------------------


def _timesteps(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"'{text}' is not a number or a list such as 20,50,100.")
    return tuple(int(part) for part in parts)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 2**63):
        raise ValueError(f"'{text}' is not a whole number from 0 to 2^63 - 1.")
    return int(text)


def _share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"'{text}' is not a number from 0 to 1.")
    return value


def least_pixels(min_area: str, largest: int) -> float:
    """The area a part of a mask must have.

    Args:
        min_area: pixels ("40"), or a percentage of the largest part ("1%").
        largest: pixels of that part.

    Raises:
        ValueError: it is neither; with a sentence.
    """
    if not re.fullmatch(MIN_AREA, min_area):
        raise ValueError(f"'{min_area}' is neither a number of pixels (40) nor a percentage up to 100 (1%).")
    number, percent, _ = min_area.partition("%")
    return float(number) * largest / 100 if percent else float(number)


def _min_area(text: str) -> str:
    least_pixels(text, 0)
    return text


def zoom_choice(text: str) -> str:
    """Closer looks as `zoom.most_looks` reads them. Raises ValueError, with a sentence."""
    if not re.fullmatch(ZOOM, text):
        raise ValueError(f"'{text}' is neither auto nor off nor a number of looks from 2 to {MOST_LOOKS}.")
    return text


def parse_threshold(text: str) -> float:
    """A number between 0 and 1. Raises ValueError: it is none; with a sentence."""
    value = _share(text)
    if value in (0, 1):
        raise ValueError(f"'{text}' is not between 0 and 1.")
    return value


# --- the model -----------------------------------------------------------------------------------------

Model = Annotated[
    str,
    Option(
        "compact (a small stand-in, shipped), kandinsky-2-2, or a folder with Kandinsky 2.2.",
        MODEL,
        metavar="NAME",
    ),
]
Device = Annotated[str, Option("Where to compute: auto, cuda, cuda:1, mps or cpu.", MODEL, metavar="DEVICE")]
Dtype = Annotated[
    str | None,
    Option(
        "Number format: float32, bfloat16 or float16. Default: what suits the device.",
        ADVANCED,
        metavar="FORMAT",
    ),
]
Seed = Annotated[
    int, Option("Seed of a diffusion model's noise; compact has none.", ADVANCED, metavar="N", parse=_seed)
]


Checkpoint = Annotated[
    Path | None, Option("Trained SCM and PAM to use instead of the shipped ones.", MODEL, metavar="FILE")
]


Timesteps = Annotated[
    tuple[int, ...] | None,
    Option(
        "Noise levels at which a diffusion model looks, 0 to 999; compact has none. "
        "Default: the checkpoint's, or 50.",
        ADVANCED,
        metavar="T[,T...]",
        parse=_timesteps,
    ),
]
CrossMap = Annotated[
    Literal["paper", "balanced", "contrast"] | None,
    Option(
        "Cross-attention in the score map: paper (mean of all layers), balanced (each over its even share) "
        "or contrast (less that to an empty prompt). Default: the checkpoint's, or paper.",
        ADVANCED,
        metavar="NAME",
    ),
]
SupportCrop = Annotated[
    Literal["object", "whole", "both"] | None,
    Option(
        "Show the model a support's object from near, the whole image, or both. "
        "Default: the checkpoint's, or both.",
        ADVANCED,
    ),
]


@dataclass(frozen=True)
class BackboneChoice:
    """The frozen backbone alone, without trained modules."""

    model: Model = "compact"
    device: Device = "auto"
    dtype: Dtype = None
    offload: Annotated[
        bool, Option("Keep on the GPU only the part of Kandinsky that is in use.", ADVANCED)
    ] = False
    support_crop: SupportCrop = None


@dataclass(frozen=True)
class ModelChoice(BackboneChoice):
    """The model that answers: arguments of `assembly.load_segmenter`."""

    checkpoint: Checkpoint = None
    head: Annotated[
        Literal["pam", "attention"] | None,
        Option(
            "pam: the trained modules. attention: the score map alone. Default: pam where one is trained.",
            ADVANCED,
        ),
    ] = None
    fusion: Annotated[
        Literal["concat", "mean"] | None,
        Option("How several supports are combined. Default: concat.", ADVANCED),
    ] = None
    timesteps: Timesteps = None
    cross_map: CrossMap = None


# --- supports ------------------------------------------------------------------------------------------


Support = Annotated[
    tuple[Path, ...],
    Option(
        "Image that shows what to find; repeat for several.",
        SUPPORT,
        flags=("--support", "-s"),
        metavar="IMAGE",
    ),
]
Mask = Annotated[
    tuple[Path, ...],
    Option(
        "Where it is in that image; one per support, in the same order. An image, NPY, or a COCO, LabelMe "
        "or YOLO file.",
        SUPPORT,
        flags=("--mask", "-m"),
        metavar="MASK",
    ),
]
Concept = Annotated[
    tuple[Path, ...],
    Option(
        "File made by `diffseg concept make`, instead of supports; repeat for several concepts.",
        SUPPORT,
        flags=("--concept", "-c"),
        metavar="FILE",
    ),
]
Name = Annotated[
    str | None, Option("Name of the concept in the results. Default: object.", SUPPORT, metavar="NAME")
]


@dataclass(frozen=True)
class SupportChoice:
    """What to look for: supports with their masks, or saved concepts."""

    support: Support = ()
    mask: Mask = ()
    concept: Concept = ()
    name: Name = None


@dataclass(frozen=True)
class MaskChoice:
    """How masks are read, for `reading.image_io.read_pairs`; what holds tuples is given once, or per mask."""

    label: Annotated[
        tuple[int, ...],
        Option(
            "Pixel value of the object, in masks that hold several; once, or once per mask.",
            SUPPORT,
            metavar="N",
        ),
    ] = ()
    color: Annotated[
        tuple[str, ...],
        Option(
            "Colour of the object, in masks drawn in colours; once, or once per mask.",
            SUPPORT,
            metavar="RRGGBB",
        ),
    ] = ()
    category: Annotated[
        str | None,
        Option(
            "Class of the object, in annotation files with several: its name, or id:3 for its number.",
            SUPPORT,
            metavar="NAME",
        ),
    ] = None
    annotation: Annotated[
        tuple[str, ...],
        Option(
            "One object of an annotation file: its id, or its place counted from 1; once, or once per mask.",
            SUPPORT,
            metavar="ID",
        ),
    ] = ()
    ignore_crowd: Annotated[
        bool, Option("COCO's iscrowd marks crowds, which are neither object nor background.", ADVANCED)
    ] = False
    invert: Annotated[bool, Option("The masks mark the background.", SUPPORT, flags=("--invert-mask",))] = (
        False
    )
    fit: Annotated[
        bool,
        Option(
            "Resize masks to the size of their images, without smoothing.", SUPPORT, flags=("--fit-mask",)
        ),
    ] = False


@dataclass(frozen=True)
class AdaptChoice:
    """Whether the trained modules are adapted to the supports: for `adaptation.adapt_steps`."""

    adapt: Annotated[
        bool,
        Option(
            "Adapt the trained modules to the supports first, which takes half a minute or more.", SUPPORT
        ),
    ] = False
    negatives: Annotated[
        tuple[Path, ...],
        Option(
            "Image without the concept, for --adapt to learn from; repeat for several. What looks like the "
            "concept is marked far less then, and the concept itself somewhat less.",
            SUPPORT,
            flags=("--not",),
            metavar="IMAGE",
        ),
    ] = ()
    negative_masks: Annotated[
        tuple[Path, ...],
        Option(
            "What in a --not image is not the concept; the rest of it may be. In the order of the --not "
            "images, of which those after the last mask are without the concept as a whole.",
            SUPPORT,
            flags=("--not-mask",),
            metavar="MASK",
        ),
    ] = ()

    @property
    def negative_files(self) -> tuple[Path, ...]:
        return (*self.negatives, *self.negative_masks)


# --- the answer ----------------------------------------------------------------------------------------


Zoom = Annotated[
    str,
    Option(
        "Look again, closer, for objects on under 2 % of a large image: auto where the first look does not "
        "seem to find it (10 looks, more above 12 megapixels), off, or the most looks.",
        OUTPUT,
        metavar="auto|off|N",
        parse=zoom_choice,
    ),
]


@dataclass(frozen=True)
class AnswerChoice:
    """What counts as found; all but `instances` are arguments of `Segmenter.segment_encoded`."""

    threshold: Annotated[
        float,
        Option(
            "Probability above which a pixel belongs to the mask, between 0 and 1.",
            OUTPUT,
            metavar="T",
            parse=parse_threshold,
        ),
    ] = 0.5
    min_presence: Annotated[
        float,
        Option(
            "Leave the mask empty where the presence score is below this, from 0 to 1.",
            OUTPUT,
            metavar="P",
            parse=_share,
        ),
    ] = 0.0
    refine: Annotated[
        bool | None, Option("Snap mask borders to edges of the image. Default: on.", OUTPUT)
    ] = None
    min_area: Annotated[
        str,
        Option(
            "Drop parts of the mask below this area and fill holes below it: pixels (40) or percent of the "
            "largest part (1%); 0 for none.",
            OUTPUT,
            metavar="AREA",
            parse=_min_area,
        ),
    ] = "1%"
    zoom: Zoom = "off"
    instances: Annotated[bool, Option("Number the objects in a mask, cut where two touch.", OUTPUT)] = False
    seed: Seed = 0
