"""Pictures and masks in: every form a user has them in, or one sentence that says what is wrong.

Everything comes out upright (EXIF orientation applied, to masks as well), at its own size, as numpy arrays.
What the numbers or colours of a mask mean is `mask_values.py`.
"""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.reading.array_files import MAGIC as NPY_MAGIC
from diffseg_cli.reading.array_files import is_array_file, read_array_file
from diffseg_cli.reading.mask_files import annotated_mask, is_annotation_file
from diffseg_cli.reading.mask_shapes import Target
from diffseg_cli.reading.mask_values import DEEP_MODES, MAX_PIXELS, note, read_meaning

ImageSource = str | Path | Image.Image | NDArray[np.uint8]
MaskSource = str | Path | Image.Image | NDArray[Any]

NO_TARGET = Target()
STRIP_ROWS = 256
# Formats that are decoded inside this process: Pillow hands PostScript, for one, to another program.
FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000"]
if find_spec("PIL.AvifImagePlugin"):  # newer than the oldest Pillow that serves
    FORMATS.append("AVIF")

ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What reading damaged bytes ends in: decoders check little of them.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AssertionError),
    *(RuntimeError, NotImplementedError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)
LOOKALIKES = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer: the file itself was never fetched",
        "Run `git lfs pull`.",
    ),
    (b"%PDF", "is a PDF document", "Export the page as PNG."),
    (b"<", "is text (SVG, XML or a web page), not pixels", "Save the picture itself as PNG or JPEG."),
    (NPY_MAGIC, "is a NumPy array, which is read as a mask only", "Save the picture as PNG."),
)


def source_name(source: ImageSource | MaskSource, otherwise: str) -> str:
    """How a message calls a picture: its path, or what it is when it has none."""
    return str(source) if isinstance(source, str | Path) else otherwise


# --- files ---------------------------------------------------------------------------------------------


def _open(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Open a picture file, or its content under a name for messages, and look at the header only."""
    try:
        if content is None and Path(path).is_dir():
            raise InputError(f"{path} is a folder, not a picture.", "Name one picture in it.")
        image = Image.open(path if content is None else io.BytesIO(content), formats=FORMATS)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist.", f"Check the name; a relative one starts at {Path.cwd()}."
        ) from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied.", "Check who may read it.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except DAMAGED as error:
        raise _refusal(path, content, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f" ({image.width} x {image.height})")
    return image


def _load(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Decode a picture file, or its content, upright."""
    with _open(path, content) as image:
        try:
            return _upright(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(path) from error
        except DAMAGED as error:
            raise InputError(
                f"{path} is damaged or cut short: {str(error).rstrip('.') or type(error).__name__}.",
                "Copy or download it again.",
            ) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as a viewer shows it; a damaged EXIF block turns nothing, as in viewers."""
    image.load()  # a TIFF turns itself on loading, and only then forgets its orientation
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION_TAG, 1))
    except DAMAGED:
        return image
    return image if turn is None else image.transpose(turn)


def _too_large(path: str | Path, size: str = "", most: int = MAX_PIXELS) -> InputError:
    return InputError(
        f"{path} is too large{size}: more than {most / 10**6:g} megapixels.", "Scale it down first."
    )


def _refusal(path: str | Path, content: bytes | None, error: Exception) -> InputError:
    """Why a file that no decoder takes is refused."""
    try:
        with Path(path).open("rb") if content is None else io.BytesIO(content) as stream:
            head = stream.read(64)
    except (OSError, ValueError) as second:
        reason = getattr(second, "strerror", None) or second
        return InputError(f"{path} cannot be read: {reason}.", "Check the path and its permissions.")
    if not head:
        return InputError(f"{path} is empty (0 bytes).", "Copy or download it again.")
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return InputError(f"{path} is a HEIC picture, which is not read here.", "Convert it to JPEG or PNG.")
    for magic, what, hint in LOOKALIKES:
        if head.lstrip().startswith(magic):
            return InputError(f"{path} {what}.", hint)
    if isinstance(error, UnidentifiedImageError):
        return InputError(
            f"{path} is not a picture in a format that is read here.", "Use PNG, JPEG, WebP, TIFF or BMP."
        )
    return InputError(f"{path} is damaged: {str(error).rstrip('.')}.", "Copy or download it again.")


# --- pictures ------------------------------------------------------------------------------------------


def check_image(path: str | Path) -> None:
    """Look at a picture's header: cheap, before anything slow starts. Raises as `read_image`."""
    _open(Path(path)).close()


def check_image_bytes(content: bytes, name: str, most_pixels: int = MAX_PIXELS) -> int:
    """The same for a picture file's content, with a limit of its own; arguments as in `read_image_bytes`.

    Returns:
        How many pixels it has.
    """
    with _open(name, content) as image:
        if image.width * image.height > most_pixels:
            raise _too_large(name, f" ({image.width} x {image.height})", most_pixels)
        return image.width * image.height


def describe_image(path: str | Path) -> str:
    """Format, kind of pixels and size of a picture file, from its header. Raises as `read_image`."""
    with _open(Path(path)) as image:
        try:
            turned = image.getexif().get(ORIENTATION_TAG, 1) in TURNS
        except DAMAGED:
            turned = False
        kind, mode, size = image.format, image.mode, f"{image.width} x {image.height}"
    return f"{kind}, {mode}, {size}{', turned by its EXIF orientation' if turned else ''}"


def read_image(source: ImageSource) -> NDArray[np.uint8]:
    """Read a picture as RGB, upright.

    Transparent places become white, as on paper; colours hidden under them would otherwise come back. Of an
    animation the first frame is taken. Grey of more than 8 bits is scaled by the smallest of 8, 10, 12, 14
    and 16 bits that holds its largest value (12-bit X-rays are stored in 16); floats by 1 if they lie in
    [0, 1]; any other numbers from their smallest to their largest.

    Args:
        source: path, PIL picture (its EXIF orientation is applied too), or uint8 array (H W 3), (H W 4) or
            (H W).

    Returns:
        uint8 (H W 3).

    Raises:
        InputError: missing, unreadable, damaged, too large (100 megapixels), or no picture.
        ValueError: an array of another type or shape.
    """
    if isinstance(source, str | Path):
        image = _load(Path(source))
    elif isinstance(source, Image.Image):
        image = _upright(source)
    else:
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,), (4,)):
            raise ValueError(f"a picture must be uint8 (H W 3), not {source.dtype} {source.shape}")
        image = Image.fromarray(source)
    return _as_rgb(image, source_name(source, "The picture"))


def read_image_bytes(content: bytes, name: str) -> NDArray[np.uint8]:
    """Read a picture file's content that came another way, such as a pipe; as `read_image`.

    Args:
        content: the whole file.
        name: what messages call it.
    """
    return _as_rgb(_load(name, content), name)


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
) -> NDArray[np.bool_]:
    """Read which pixels are the object, upright.

    Understood without a choice: black and white in any depth (0 and one other value); a palette picture with
    one label besides 0 and 255 (VOC's "ignore", never object); one colour on black; a cut-out's alpha
    channel; soft or JPEG-damaged borders between 0 and 255 (cut at 127, with a `MaskNote` warning). NPY and
    NPZ files too, and COCO, LabelMe and YOLO annotations of one class.

    Args:
        source: path, PIL picture, or array: bool, integer or float (H W), or uint8 colours (H W 3), (H W 4).
        label: the value that is the object, where there are several; in COCO and YOLO the class number.
        color: its colour, where it is drawn in colours: "#RRGGBB", "RRGGBB" or a CSS name.
        category: in an annotation file, the class by name or number.
        annotation: in an annotation file, one object: COCO's id, LabelMe's shape, YOLO's line (from 1).
        invert: the object is everything else (never an ignored area).
        target: the picture, for an annotation file.

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
    if isinstance(source, str | Path) and is_annotation_file(Path(source)):
        if color is not None:
            raise InputError(f"{name} holds outlines, not colours.", "Choose the object with --category.")
        category = category if label is None else str(label)
        return annotated_mask(Path(source), target, category=category, annotation=annotation, invert=invert)
    content: Image.Image | NDArray[Any]
    if isinstance(source, str | Path):
        path = Path(source)
        content = read_array_file(path) if is_array_file(path) else _load(path)
    else:
        content = _upright(source) if isinstance(source, Image.Image) else source
    if category is not None or annotation is not None:
        raise InputError(
            f"{name} is no COCO, LabelMe or YOLO file, so {given[0]} chooses nothing in it.",
            "Choose its object with --label or --color.",
        )
    return read_meaning(content, label=label, color=color, invert=invert, name=name)


def read_pair(
    image: ImageSource, mask: MaskSource, *, fit: bool = False, **choice: Any
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read a picture and its mask, which must have the same size.

    Args:
        image: as in `read_image`.
        mask: as in `read_mask`.
        fit: bring a mask of another size to that of its picture, without smoothing.
        choice: label, color, category, annotation, invert of `read_mask`.

    Returns:
        uint8 (H W 3) and bool (H W).

    Raises:
        InputError: as `read_image`, `read_mask` and `check_pair`.
        UsageError: as `read_mask`.
    """
    pixels = read_image(image)
    image_hw = (pixels.shape[0], pixels.shape[1])
    name = str(image) if isinstance(image, str | Path) else None
    read = read_mask(mask, target=Target(name, image_hw), **choice)
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
