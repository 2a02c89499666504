"""Images and masks in: every form a user has them in, or one sentence that says what is wrong.

Everything comes out upright (EXIF orientation applied, to masks as well), at its own size, as numpy arrays.
What the numbers or colours of a mask mean is `mask_values.py`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.choices import MaskChoice
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.reading.annotated import Target
from diffseg_cli.reading.array_files import is_array_file, read_array_file
from diffseg_cli.reading.documents import is_annotation_file, read_document
from diffseg_cli.reading.given import check_mask, image_array
from diffseg_cli.reading.image_files import (
    DAMAGED,
    MAX_PIXELS,
    TURNS,
    load_image,
    open_image,
    to_8_bits,
    upright,
)
from diffseg_cli.reading.input_files import InputFile, as_file
from diffseg_cli.reading.mask_files import draw_mask
from diffseg_cli.reading.mask_values import DEEP_MODES, read_meaning
from diffseg_cli.reading.notes import note

ImageSource = str | Path | InputFile | Image.Image | NDArray[np.uint8]
MaskSource = str | Path | InputFile | Image.Image | NDArray[Any]

NO_TARGET = Target()


def source_name(source: ImageSource | MaskSource, otherwise: str) -> str:
    """How a message calls an image: its path, or what it is when it has none."""
    return as_file(source).name if isinstance(source, str | Path | InputFile) else otherwise


# --- images ------------------------------------------------------------------------------------------


def check_image(source: str | Path | InputFile, most_pixels: int = MAX_PIXELS) -> int:
    """Look at an image's header: cheap, before anything slow starts. Raises as `read_image`.

    Returns:
        How many pixels it has.
    """
    with open_image(as_file(source), most_pixels) as image:
        return image.width * image.height


def read_image(source: ImageSource, most_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read an image as RGB, upright.

    Transparent places become white, as on paper; colours hidden under them would otherwise come back. Of an
    animation the first frame is taken. Grey of more than 8 bits is scaled by the smallest of 8, 10, 12, 14
    and 16 bits that holds its largest value (12-bit X-rays are stored in 16); floats by 1 if they lie in
    [0, 1]; any other numbers from their smallest to their largest.

    Args:
        source: file, PIL image (its EXIF orientation is applied too), or uint8 array (H W 3), (H W 4) or
            (H W).
        most_pixels: a file may have.

    Returns:
        uint8 (H W 3).

    Raises:
        InputError: missing, unreadable, damaged, too large, no image, or an array that is none.
    """
    return _read_oriented(source, most_pixels)[0]


def _read_oriented(source: ImageSource, most_pixels: int) -> tuple[NDArray[np.uint8], int]:
    """An image as `read_image` gives it, and the EXIF orientation that was undone."""
    orientation = 1
    if isinstance(source, str | Path | InputFile):
        image, orientation = load_image(as_file(source), most_pixels)
    elif isinstance(source, Image.Image):
        image, orientation = upright(source)
    else:
        image = Image.fromarray(image_array(source))
    return _as_rgb(image, source_name(source, "The image")), orientation


def _as_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    try:
        return _to_rgb(image, name)
    except DAMAGED as error:
        raise InputError(
            f"{name} cannot be turned into RGB: {str(error).rstrip('.')}.", "Save it as an RGB PNG."
        ) from error


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode in DEEP_MODES:
        return np.repeat(to_8_bits(np.asarray(image), name)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        return np.array(paper)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


# --- masks ---------------------------------------------------------------------------------------------


def read_mask(
    source: MaskSource,
    *,
    label: int | None = None,
    color: str | None = None,
    category: str | None = None,
    annotation: str | int | None = None,
    ignore_crowd: bool = False,
    invert: bool = False,
    target: Target = NO_TARGET,
    most_pixels: int = MAX_PIXELS,
) -> NDArray[np.bool_]:
    """Read which pixels are the object, upright.

    Understood without a choice: black and white in any depth (0 and one other value); a palette image with
    one label besides 0 and 255 (VOC's "ignore", never object); one colour on black; a cut-out's alpha
    channel; soft or JPEG-damaged borders between 0 and 255 (cut at 127, with a `MaskNote` warning). NPY and
    NPZ files too, and annotation files (`documents.py`) of one class.

    Args:
        source: file, PIL image, or array: bool, integer or float (H W), or uint8 colours (H W 3), (H W 4).
        label: the value that is the object, where there are several; in an annotation file the class number,
            in a panoptic PNG the id.
        color: its colour, where it is drawn in colours: "#RRGGBB", "RRGGBB" or a CSS name.
        category: in an annotation file, the class by name, or by number as "id:3".
        annotation: in an annotation file, one object: its id, or its place counted from 1.
        ignore_crowd: in a COCO file, `iscrowd` marks crowds: areas that are ignored. Of COCO's own files it
            always does; other tools mark every mask of a brush so.
        invert: the object is everything else (never an ignored area).
        target: the image it is for: its name among annotations, its size and its EXIF orientation.
        most_pixels: a file may have.

    Returns:
        bool (H W), with pixels of both kinds.

    Raises:
        InputError: as `read_image`; or the mask is ambiguous, empty or full.
        UsageError: two choices that exclude each other, or a colour that is none.
    """
    given = _only_choice(label=label, color=color, category=category, annotation=annotation)
    name = source_name(source, "The mask")
    file = as_file(source) if isinstance(source, str | Path | InputFile) else None
    if file is not None and is_annotation_file(file):
        if color is not None:
            raise InputError(f"{name} holds outlines, not colours.", "Choose the object with --category.")
        mask = draw_mask(
            name,
            read_document(file),
            target,
            label=label,
            category=category,
            annotation=None if annotation is None else str(annotation),
            ignore_crowd=ignore_crowd,
            invert=invert,
            most_pixels=most_pixels,
        )
        return _as_shown(mask, target, name)
    content, orientation = _read_raster(source, file, most_pixels)
    if category is not None or annotation is not None:
        raise InputError(
            f"{name} is no file of annotations, so {given} chooses nothing in it.",
            "Choose its object with --label or --color.",
        )
    mask = read_meaning(content, label=label, color=color, invert=invert, name=name)
    return _as_shown(mask, target, name) if orientation == 1 else mask


def _only_choice(**choices: Any) -> str | None:
    """The option that says which object is meant, if one does.

    Raises:
        UsageError: several do.
    """
    given = [f"--{name}" for name, value in choices.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} each say what the object is.", "Give one of them.")
    return given[0] if given else None


def _read_raster(
    source: MaskSource, file: InputFile | None, most_pixels: int
) -> tuple[Image.Image | NDArray[Any], int]:
    """The values of a mask, upright, and the EXIF orientation that was undone."""
    if isinstance(source, Image.Image):
        return upright(source)
    if file is None:
        check_mask(source)
        return np.asarray(source), 1
    return (read_array_file(file, most_pixels), 1) if is_array_file(file) else load_image(file, most_pixels)


def _as_shown(mask: NDArray[np.bool_], target: Target, name: str) -> NDArray[np.bool_]:
    """A mask without an orientation of its own, in that of its image.

    Where the image is turned by its EXIF block, the mask may have been drawn on the image as stored, or as
    shown. Their sizes tell where they differ; else it is taken as shown, and said.
    """
    if target.orientation == 1 or mask.shape not in (target.size_hw, target.stored_hw):
        return mask
    image = f"{name}: its image is turned by EXIF orientation {target.orientation}"
    if mask.shape != target.size_hw:
        note(f"{image}; the mask has the size of the image as stored and was turned with it.")
        return np.array(Image.fromarray(mask).transpose(TURNS[target.orientation]))
    if target.size_hw == target.stored_hw:
        note(f"{image}; the mask was taken as drawn on the image as shown. If not, turn the mask as well.")
    return mask


def read_pair(
    image: ImageSource, mask: MaskSource, *, fit: bool = False, most_pixels: int = MAX_PIXELS, **choice: Any
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read an image (H W 3) and its mask (H W), which must have the same size.

    Args:
        image: as in `read_image`.
        mask: as in `read_mask`, as is `choice`.
        fit: bring a mask of another size to that of its image, without smoothing.
        most_pixels: either may have.

    Raises:
        InputError: as `read_image`, `read_mask` and `check_pair`.
        UsageError: as `read_mask`.
    """
    pixels, orientation = _read_oriented(image, most_pixels)
    image_hw = (pixels.shape[0], pixels.shape[1])
    name = as_file(image).file_name if isinstance(image, str | Path | InputFile) else None
    target = Target(name, image_hw, orientation)
    read = read_mask(mask, target=target, most_pixels=most_pixels, **choice)
    if fit:
        read = fit_mask(read, image_hw, source_name(mask, "The mask"))
    check_pair(pixels, read, image, mask)
    return pixels, read


def read_pairs(
    images: Sequence[ImageSource],
    masks: Sequence[MaskSource],
    choice: MaskChoice,
    most_pixels: int = MAX_PIXELS,
) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    """Read images and their masks; each mask with the choice that is its own, or that is given for all.

    Raises:
        UsageError: as `read_mask`; or a choice is given for another number of masks.
        InputError: as `read_pair`.
    """
    count = len(masks)
    each: list[dict[str, Any]] = [{} for _ in masks]
    for what, value in vars(choice).items():
        several = value if isinstance(value, tuple) else (value,)
        if len(several) not in (0, 1, count):
            raise UsageError(
                f"--{what} is given {len(several)} times, for {count} masks.",
                "Give it once for all masks, or once per mask in their order.",
            )
        for number, own in enumerate(each):
            own[what] = several[number if len(several) == count else 0] if several else None
    return [
        read_pair(image, mask, most_pixels=most_pixels, **own)
        for image, mask, own in zip(images, masks, each, strict=True)
    ]


def fit_mask(mask: NDArray[np.bool_], image_hw: tuple[int, int], name: str) -> NDArray[np.bool_]:
    """A mask at its image's size; one that is only turned is left for `check_pair` to refuse."""
    (h, w), (mask_h, mask_w) = image_hw, mask.shape
    if (h, w) == mask.shape or (h, w) == (mask_w, mask_h):
        return mask
    resized = cv2.resize(mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST_EXACT)
    fitted: NDArray[np.bool_] = resized.astype(bool)
    squeezed = not math.isclose(h * mask_w, w * mask_h, rel_tol=0.02)
    note(
        f"{name} is {mask_w} x {mask_h} and was brought to the {w} x {h} of its image"
        f"{', another shape' if squeezed else ''}."
    )
    if fitted.all() or not fitted.any():
        raise InputError(f"{name} marks nothing at {w} x {h}.", "Use a mask of the image's own size.")
    return fitted


def check_pair(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    image_source: ImageSource = "The image",
    mask_source: MaskSource = "its mask",
) -> None:
    """Check that a mask (H W) has the size of its image (H W 3); the sources name them in the message.

    Raises:
        InputError: the sizes differ; names both.
    """
    (h, w), (mask_h, mask_w) = image.shape[:2], mask.shape
    if (h, w) != (mask_h, mask_w):
        turned = (h, w) == (mask_w, mask_h)
        raise InputError(
            f"{source_name(image_source, 'The image')} is {w} x {h} pixels and "
            f"{source_name(mask_source, 'its mask')} is {mask_w} x {mask_h}.",
            "One of them is turned: save the mask in the orientation of the image."
            if turned
            else "A mask must have the size of its image; --fit-mask resizes it (nearest neighbour).",
        )
