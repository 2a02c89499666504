"""diffseg mask."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffseg_cli.choices import OUTPUT, Device, ModelChoice, Option
from diffseg_cli.cli import console, inputs
from diffseg_cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffseg_cli.segmenter import Segmenter

EXAMPLES = """Examples:

  diffseg mask dog.jpg --box 120,80,340,300

  diffseg mask dog.jpg --point 290,200 --not-point 40,30 --out points.png"""

HOW = "How"  # panel of the help
MOST_CORNERS = 20_000  # numbers an outline on the command line may have


def mask(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image of the object.")],
    box: Annotated[
        str | None, Option("Box around the object: left, top, width, height.", HOW, metavar="X,Y,W,H")
    ] = None,
    polygon: Annotated[str | None, Option("Exact outline of the object.", HOW, metavar="X,Y,X,Y,...")] = None,
    point: Annotated[
        list[str] | None,
        Option("A point on the object; repeat for several. A box gives better masks.", HOW, metavar="X,Y"),
    ] = None,
    not_point: Annotated[
        list[str] | None,
        Option("With --point: a point that is not on the object; repeat for several.", HOW, metavar="X,Y"),
    ] = None,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        Option(
            "PNG to write. Default: IMAGE_mask.png in the current folder.",
            OUTPUT,
            flags=("--out", "-o"),
            metavar="FILE",
        ),
    ] = None,
    overwrite: Annotated[
        bool, Option("Replace a mask that is there; it may be drawn by hand.", OUTPUT)
    ] = False,
    json: Annotated[bool, Option("Print one JSON object.", OUTPUT)] = False,
) -> None:
    """Make a mask from a box, an outline or points, in pixels.

    Writes the mask (PNG, 0 and 255) and an overlay beside it. Look at the
    overlay first; the mask can be corrected in any paint program.
    """
    files = _plan(image, out or Path(f"{image.stem}_mask.png"), overwrite=overwrite)
    from diffseg_cli.reading.image_io import read_image
    from diffseg_cli.results.render import write_mask, write_overlay

    pixels = read_image(image)
    made = _make(pixels, box, polygon, point or [], not_point or [], device)
    if not made.any():
        console.note(f"{image}: nothing was found there; the mask is empty.")
    write_mask(files["mask"], made)
    write_overlay(files["overlay"], pixels, made)
    outputs = {what: str(path) for what, path in files.items()}
    if json:
        console.result_json({"image": str(image), "outputs": outputs, "mask_area": float(made.mean())})
        return
    console.result_paths(outputs.values())


def _plan(image: Path, out: Path, *, overwrite: bool) -> dict[str, Path]:
    """The mask and its overlay, which must not be the image itself.

    Raises:
        UsageError: one of them is, the mask is there already, or it is to be something else than PNG.
        InputError: the image cannot be opened, or the folder not be written.
    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"{out} does not end in .png.", "A mask is written as PNG, which loses nothing.")
    files = {"mask": out, "overlay": out.with_name(f"{out.stem}_overlay.png")}
    inputs.check_files(image, list(files.values()))
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there already.", "Choose another --out, or replace it with --overwrite.")
    return files


def _make(
    image: "NDArray[np.uint8]",
    box: str | None,
    polygon: str | None,
    points: list[str],
    not_points: list[str],
    device: str,
) -> "NDArray[np.bool_]":
    """The mask that is asked for.

    Raises:
        UsageError: not one way, or coordinates that are none.
    """
    given = [
        option for option, value in (("--box", box), ("--polygon", polygon), ("--point", points)) if value
    ]
    if len(given) != 1:
        raise UsageError(
            f"{' and '.join(given)} are different ways to make one mask."
            if given
            else "Nothing says where the object is.",
            "Give one of --box, --polygon and --point.",
        )
    if not_points and not points:
        raise UsageError("--not-point says only where the object is not.", "Give --point with it.")
    from diffseg_cli.supports import mask_making

    size_hw = (image.shape[0], image.shape[1])
    if polygon:
        corners = inputs.parse_numbers(polygon, "--polygon", "X,Y,X,Y,X,Y,...", 6, MOST_CORNERS)
        return mask_making.mask_from_outline(corners, size_hw)
    if box:
        region = mask_making.box_region(inputs.parse_numbers(box, "--box", "X,Y,WIDTH,HEIGHT", 4, 4), size_hw)
        return mask_making.mask_from_box(_load(device), image, region)
    here = [inputs.parse_point(each, "--point") for each in points]
    there = [inputs.parse_point(each, "--not-point") for each in not_points]
    mask_making.discs([*here, *there], size_hw)  # refuses points outside before anything is loaded
    return mask_making.mask_from_points(_load(device), image, here, there)


def _load(device: str) -> "Segmenter":
    with console.working("Loading the model"):
        from diffseg_cli import assembly

        return assembly.load_chosen(ModelChoice(device=device, head="attention"))
