"""Pictures and masks in: every form a user has them in, or one sentence that says what is wrong.

Everything comes out upright (EXIF orientation applied, to masks as well), at its own size, as numpy arrays.
What the numbers or colours of a mask mean is `mask_values.py`.
"""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.reading.array_files import is_array_file, read_array_file
from diffseg_cli.reading.image_files import DAMAGED, MAX_PIXELS, load_image, open_image, upright
from diffseg_cli.reading.input_files import InputFile, as_file
from diffseg_cli.reading.mask_files import annotated_mask, is_annotation_file
from diffseg_cli.reading.mask_shapes import Target
from diffseg_cli.reading.mask_values import DEEP_MODES, read_meaning
from diffseg_cli.reading.notes import note

ImageSource = str | Path | InputFile | Image.Image | NDArray[np.uint8]
MaskSource = str | Path | InputFile | Image.Image | NDArray[Any]

NO_TARGET = Target()
STRIP_ROWS = 256


def source_name(source: ImageSource | MaskSource, otherwise: str) -> str:
    """How a message calls a picture: its path, or what it is when it has none."""
    return as_file(source).name if isinstance(source, str | Path | InputFile) else otherwise


# --- pictures ------------------------------------------------------------------------------------------


def check_image(source: str | Path | InputFile, most_pixels: int = MAX_PIXELS) -> int:
    """Look at a picture's header: cheap, before anything slow starts. Raises as `read_image`.

    Returns:
        How many pixels it has.
    """
    with open_image(as_file(source), most_pixels) as image:
        return image.width * image.height


def read_image(source: ImageSource, most_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read a picture as RGB, upright.

    Transparent places become white, as on paper; colours hidden under them would otherwise come back. Of an
    animation the first frame is taken. Grey of more than 8 bits is scaled by the smallest of 8, 10, 12, 14
    and 16 bits that holds its largest value (12-bit X-rays are stored in 16); floats by 1 if they lie in
    [0, 1]; any other numbers from their smallest to their largest.

    Args:
        source: file, PIL picture (its EXIF orientation is applied too), or uint8 array (H W 3), (H W 4) or
            (H W).
        most_pixels: a file may have.

    Returns:
        uint8 (H W 3).

    Raises:
        InputError: missing, unreadable, damaged, too large, or no picture.
        ValueError: an array of another type or shape.
    """
    if isinstance(source, str | Path | InputFile):
        image = load_image(as_file(source), most_pixels)
    elif isinstance(source, Image.Image):
        image = upright(source)
    else:
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,), (4,)):
            raise ValueError(f"a picture must be uint8 (H W 3), not {source.dtype} {source.shape}")
        image = Image.fromarray(source)
    return _as_rgb(image, source_name(source, "The picture"))


def _as_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    try:
        return _to_rgb(image, name)
    except DAMAGED as error:
        raise InputError(
            f"{name} cannot be turned into RGB: {str(error).rstrip('.')}.", "Save it as an RGB PNG."
        ) from error


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode in DEEP_MODES:
        return np.repeat(_to_8_bits(np.asarray(image), name)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        return np.array(paper)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_8_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Grey of any depth (H W) -> uint8 (H W); the rule is in `read_image`."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{name} holds values that are not numbers.", "Replace them, or save it as PNG.")
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, next(top for top in (255.0, 1023.0, 4095.0, 16383.0, 65535.0) if high <= top)
    levels = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), STRIP_ROWS):  # a whole picture of float64 would take a gigabyte
        strip = values[top : top + STRIP_ROWS].astype(np.float64)
        levels[top : top + STRIP_ROWS] = np.rint((strip - low) * (255 / max(high - low, 1e-12)))
    return levels


# --- masks ---------------------------------------------------------------------------------------------


def read_mask(
    source: MaskSource,
    *,
    label: int | None = None,
    color: str | None = None,
    category: str | None = None,
    annotation: int | None = None,
    invert: bool = False,
    target: Target = NO_TARGET,
    most_pixels: int = MAX_PIXELS,
) -> NDArray[np.bool_]:
    """Read which pixels are the object, upright.

    Understood without a choice: black and white in any depth (0 and one other value); a palette picture with
    one label besides 0 and 255 (VOC's "ignore", never object); one colour on black; a cut-out's alpha
    channel; soft or JPEG-damaged borders between 0 and 255 (cut at 127, with a `MaskNote` warning). NPY and
    NPZ files too, and COCO, LabelMe and YOLO annotations of one class.

    Args:
        source: file, PIL picture, or array: bool, integer or float (H W), or uint8 colours (H W 3), (H W 4).
        label: the value that is the object, where there are several; in COCO and YOLO the class number.
        color: its colour, where it is drawn in colours: "#RRGGBB", "RRGGBB" or a CSS name.
        category: in an annotation file, the class by name or number.
        annotation: in an annotation file, one object: COCO's id, LabelMe's shape, YOLO's line (from 1).
        invert: the object is everything else (never an ignored area).
        target: the picture, for an annotation file.
        most_pixels: a file may have.

    Returns:
        bool (H W), with pixels of both kinds.

    Raises:
        InputError: as `read_image`; or the mask is ambiguous, empty or full.
        UsageError: two choices that exclude each other, or a colour that is none.
    """
    choices = {"--label": label, "--color": color, "--category": category, "--annotation": annotation}
    given = [option for option, value in choices.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} each say what the object is.", "Give one of them.")
    name = source_name(source, "The mask")
    file = as_file(source) if isinstance(source, str | Path | InputFile) else None
    if file is not None and is_annotation_file(file):
        if color is not None:
            raise InputError(f"{name} holds outlines, not colours.", "Choose the object with --category.")
        category = category if label is None else str(label)
        return annotated_mask(file, target, category=category, annotation=annotation, invert=invert)
    content: Image.Image | NDArray[Any]
    if isinstance(source, Image.Image):
        content = upright(source)
    elif file is None:
        content = np.asarray(source)
    elif is_array_file(file):
        content = read_array_file(file, most_pixels)
    else:
        content = load_image(file, most_pixels)
    if category is not None or annotation is not None:
        raise InputError(
            f"{name} is no COCO, LabelMe or YOLO file, so {given[0]} chooses nothing in it.",
            "Choose its object with --label or --color.",
        )
    return read_meaning(content, label=label, color=color, invert=invert, name=name)


def read_pair(
    image: ImageSource, mask: MaskSource, *, fit: bool = False, most_pixels: int = MAX_PIXELS, **choice: Any
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read a picture and its mask, which must have the same size.

    Args:
        image: as in `read_image`.
        mask: as in `read_mask`.
        fit: bring a mask of another size to that of its picture, without smoothing.
        most_pixels: either may have.
        choice: label, color, category, annotation, invert of `read_mask`.

    Returns:
        uint8 (H W 3) and bool (H W).

    Raises:
        InputError: as `read_image`, `read_mask` and `check_pair`.
        UsageError: as `read_mask`.
    """
    pixels = read_image(image, most_pixels)
    image_hw = (pixels.shape[0], pixels.shape[1])
    name = as_file(image).file_name if isinstance(image, str | Path | InputFile) else None
    read = read_mask(mask, target=Target(name, image_hw), most_pixels=most_pixels, **choice)
    if fit:
        read = fit_mask(read, image_hw, source_name(mask, "The mask"))
    check_pair(pixels, read, image, mask)
    return pixels, read


def fit_mask(mask: NDArray[np.bool_], image_hw: tuple[int, int], name: str) -> NDArray[np.bool_]:
    """A mask at its picture's size; one that is only turned is left for `check_pair` to refuse."""
    (h, w), (mask_h, mask_w) = image_hw, mask.shape
    if (h, w) == mask.shape or (h, w) == (mask_w, mask_h):
        return mask
    resized = cv2.resize(mask.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST_EXACT)
    fitted: NDArray[np.bool_] = resized.astype(bool)
    squeezed = not math.isclose(h * mask_w, w * mask_h, rel_tol=0.02)
    note(
        f"{name} is {mask_w} x {mask_h} and was brought to the {w} x {h} of its picture"
        f"{', another shape' if squeezed else ''}."
    )
    if fitted.all() or not fitted.any():
        raise InputError(f"{name} marks nothing at {w} x {h}.", "Use a mask of the picture's own size.")
    return fitted


def check_pair(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    image_source: ImageSource = "The picture",
    mask_source: MaskSource = "its mask",
) -> None:
    """Check that a mask has the size of its picture.

    Args:
        image: (H W 3).
        mask: (H W).
        image_source: what the picture was read from, for the message.
        mask_source: what the mask was read from.

    Raises:
        InputError: the sizes differ; names both.
    """
    (h, w), (mask_h, mask_w) = image.shape[:2], mask.shape
    if (h, w) != (mask_h, mask_w):
        turned = (h, w) == (mask_w, mask_h)
        raise InputError(
            f"{source_name(image_source, 'The picture')} is {w} x {h} pixels and "
            f"{source_name(mask_source, 'its mask')} is {mask_w} x {mask_h}.",
            "One of them is turned: save the mask in the orientation of the picture."
            if turned
            else "A mask must have the size of its picture; --fit-mask resizes it (nearest neighbour).",
        )
