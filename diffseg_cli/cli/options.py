"""Options that more than one verb has, written once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

SUPPORT, QUERY, MODEL, OUTPUT = "Support", "Query", "Model", "Output"  # panels of the help

Support = Annotated[
    list[Path] | None,
    typer.Option(
        "--support",
        "-s",
        metavar="IMAGE",
        help="Picture of the thing to find; repeat it for several.",
        rich_help_panel=SUPPORT,
    ),
]
Mask = Annotated[
    list[Path] | None,
    typer.Option(
        "--mask",
        "-m",
        metavar="MASK",
        help="Where the thing is in it: one a support, in the same order. A picture, NPY, or COCO, LabelMe "
        "or YOLO file.",
        rich_help_panel=SUPPORT,
    ),
]
Concept = Annotated[
    list[Path] | None,
    typer.Option(
        "--concept",
        "-c",
        metavar="FILE",
        help="What `diffseg concept make` saved, instead of supports; repeat it for several things.",
        rich_help_panel=SUPPORT,
    ),
]
OneConcept = Annotated[
    Path | None,
    typer.Option(
        "--concept",
        "-c",
        metavar="FILE",
        help="What `diffseg concept make` saved, instead of supports.",
        rich_help_panel=SUPPORT,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What the thing is called in results.", rich_help_panel=SUPPORT),
]
Label = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="The value in the masks that is the thing, where they hold several.",
        rich_help_panel=SUPPORT,
    ),
]
Color = Annotated[
    str | None,
    typer.Option(
        metavar="RRGGBB",
        help="The colour in the masks that is the thing, where they are drawn in colours.",
        rich_help_panel=SUPPORT,
    ),
]
Category = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|ID",
        help="The class that is the thing, in COCO, LabelMe and YOLO files that hold several.",
        rich_help_panel=SUPPORT,
    ),
]
Annotation = Annotated[
    int | None,
    typer.Option(
        metavar="ID",
        help="The one object that is the thing: COCO's id, LabelMe's shape or YOLO's line, from 1.",
        rich_help_panel=SUPPORT,
    ),
]
FitMask = Annotated[
    bool,
    typer.Option(
        "--fit-mask",
        help="Resize masks of another size than their picture, without smoothing.",
        rich_help_panel=SUPPORT,
    ),
]
InvertMask = Annotated[
    bool, typer.Option("--invert-mask", help="The masks mark the background.", rich_help_panel=SUPPORT)
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object a picture on stdout.", rich_help_panel=OUTPUT)
]
Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="compact (small stand-in, shipped), kandinsky-2-2, or a folder that holds Kandinsky 2.2.",
        rich_help_panel=MODEL,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Trained SCM and PAM instead of the shipped ones.", rich_help_panel=MODEL
    ),
]
Head = Annotated[
    Literal["pam", "attention"] | None,
    typer.Option(
        help="pam: the trained modules. attention: the score map alone. Default: pam where it is trained.",
        rich_help_panel=MODEL,
    ),
]
Fusion = Annotated[
    Literal["concat", "mean"] | None,
    typer.Option(
        help="How several supports come together. Default: what measured better.", rich_help_panel=MODEL
    ),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cuda|mps|cpu", help="Where to compute.", rich_help_panel=MODEL)
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="float32|bfloat16|float16",
        help="Number format. Default: what suits the device.",
        rich_help_panel=MODEL,
    ),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload", help="Keep only the part of Kandinsky in use on the GPU.", rich_help_panel=MODEL
    ),
]


def _valid_seed(value: int) -> int:
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"{value} does not lie between 0 and 2^63.")
    return value


Seed = Annotated[
    int,
    typer.Option(
        metavar="N",
        callback=_valid_seed,
        help="Of the noise; the compact model has none.",
        rich_help_panel=MODEL,
    ),
]


def _levels(value: str | None) -> str | None:
    if value is not None and not all(part.strip().isdigit() for part in value.split(",")):
        raise typer.BadParameter(f"'{value}' is not a number or a list such as 20,50,100.")
    return value


Timesteps = Annotated[
    str | None,
    typer.Option(
        metavar="T[,T...]",
        callback=_levels,
        help="Noise levels a diffusion model looks at (0 to 999); compact has none. Default: 50.",
        rich_help_panel=MODEL,
    ),
]


def split_timesteps(value: str | None) -> list[int] | None:
    """What `Timesteps` gives, as `load_segmenter` takes it."""
    return None if value is None else [int(part) for part in value.split(",")]


def _inside_unit(value: float) -> float:
    if not 0 < value < 1:
        raise typer.BadParameter(f"{value:g} does not lie between 0 and 1.")
    return value


MinPresence = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        metavar="P",
        help="Leave the mask empty where the presence score is below this, between 0 and 1.",
        rich_help_panel=OUTPUT,
    ),
]
Threshold = Annotated[
    float,
    typer.Option(
        metavar="T",
        callback=_inside_unit,
        help="Probability above which a pixel is the thing, between 0 and 1.",
        rich_help_panel=OUTPUT,
    ),
]
Refine = Annotated[
    bool | None,
    typer.Option(
        "--refine/--no-refine",
        help="Pull borders to those of the picture. Default: what measured better.",
        rich_help_panel=OUTPUT,
    ),
]
FORMATS = (
    *("mask", "overlay", "heatmap", "cutout", "score", "sheet", "json"),
    *("coco", "coco-polygons", "labelme", "yolo", "voc"),
)


def _known_formats(values: list[str] | None) -> list[str] | None:
    for value in values or []:
        if value not in FORMATS:
            raise typer.BadParameter(f"'{value}' is not one of {', '.join(FORMATS)}.")
    return values


Format = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="FORMAT",
        callback=_known_formats,
        help=f"What to write; repeat it for several: {', '.join(FORMATS)}. Default: mask, heatmap, overlay.",
        rich_help_panel=OUTPUT,
    ),
]
Matting = Annotated[
    bool,
    typer.Option(
        "--matting",
        help="Cut-outs with hair and leaves, by matting; needs pip install 'diffseg\\[matting]'.",
        rich_help_panel=OUTPUT,
    ),
]
