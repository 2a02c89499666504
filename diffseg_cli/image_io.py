"""Pictures and masks in: every form a user has them in, or one sentence that says what is wrong.

Everything comes out upright (EXIF orientation applied, to masks as well), at its own size, as numpy arrays.
What the numbers or colours of a mask mean is `mask_values.py`.
"""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diffseg_cli.errors import InputError
from diffseg_cli.mask_values import DEEP_MODES, read_meaning

ImageSource = str | Path | Image.Image | NDArray[np.uint8]
MaskSource = str | Path | Image.Image | NDArray[Any]

MAX_PIXELS = 178_000_000  # as much as Pillow opens by itself; 0.5 GB in memory as RGB

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
    (b"\x93NUMPY", "is a NumPy array, which is read as a mask only", "Save the picture as PNG."),
)


def source_name(source: ImageSource | MaskSource, otherwise: str) -> str:
    """How a message calls a picture: its path, or what it is when it has none."""
    return str(source) if isinstance(source, str | Path) else otherwise


# --- files ---------------------------------------------------------------------------------------------


def _open(path: Path) -> Image.Image:
    """Open a picture file and look at its header only."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a picture.", "Name one picture in it.")
        image = Image.open(path)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist.", f"Check the name; a relative one starts at {Path.cwd()}."
        ) from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied.", "Check who may read it.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except DAMAGED as error:
        raise _refusal(path, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f" ({image.width} x {image.height})")
    return image


def _load(path: Path) -> Image.Image:
    """Decode a picture file, upright."""
    with _open(path) as image:
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


def _too_large(path: Path, size: str = "") -> InputError:
    return InputError(
        f"{path} is too large{size}: more than {MAX_PIXELS // 10**6} megapixels.", "Scale it down first."
    )


def _refusal(path: Path, error: Exception) -> InputError:
    """Why a file that no decoder takes is refused."""
    try:
        with path.open("rb") as stream:
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
        InputError: missing, unreadable, damaged, too large (178 megapixels), or no picture.
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
    name = source_name(source, "The picture")
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
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _to_8_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Grey of any depth (H W) -> uint8 (H W); the rule is in `read_image`."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{name} holds values that are not numbers.", "Replace them, or save it as PNG.")
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, next(top for top in (255.0, 1023.0, 4095.0, 16383.0, 65535.0) if high <= top)
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
    return np.rint(scaled).astype(np.uint8)


# --- masks ---------------------------------------------------------------------------------------------


def read_mask(
    source: MaskSource, *, label: int | None = None, color: str | None = None, invert: bool = False
) -> NDArray[np.bool_]:
    """Read which pixels are the object, upright.

    Understood without a flag: black and white in any depth (0 and one other value); a palette picture with
    one label besides 0 and 255 (VOC's "ignore", never object); one colour on black; a cut-out's alpha
    channel; soft or JPEG-damaged borders between 0 and 255 (cut at 127, with a `MaskNote` warning). NPY and
    NPZ files too.

    Args:
        source: path, PIL picture, or array: bool, integer or float (H W), or uint8 colours (H W 3), (H W 4).
        label: the value that is the object, where there are several.
        color: its colour, where it is drawn in colours: "#RRGGBB", "RRGGBB" or a CSS name.
        invert: the object is everything else (never VOC's "ignore").

    Returns:
        bool (H W), with pixels of both kinds.

    Raises:
        InputError: as `read_image`; or the mask is ambiguous, empty or full.
        UsageError: both label and color, or a colour that is none.
    """
    content: Image.Image | NDArray[Any]
    if isinstance(source, str | Path):
        path = Path(source)
        content = _load_array(path) if _is_array_file(path) else _load(path)
    else:
        content = _upright(source) if isinstance(source, Image.Image) else source
    name = source_name(source, "The mask")
    return read_meaning(content, label=label, color=color, invert=invert, name=name)


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
            else "A mask must have the size of its picture; resize it without smoothing (nearest neighbour).",
        )


def _is_array_file(path: Path) -> bool:
    """NPY or NPZ, by content; anything unreadable is left for the picture reader to name."""
    try:
        with path.open("rb") as stream:
            head = stream.read(6)
    except (OSError, ValueError):
        return False
    return head == b"\x93NUMPY" or head[:4] == b"PK\x03\x04"


def _load_array(path: Path) -> NDArray[Any]:
    """The array of a NPY file, or of a NPZ file that has one (or one called "mask"); never unpickles."""
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = loaded.files
            if len(names) != 1 and "mask" not in names:
                raise InputError(
                    f"{path} holds {len(names)} arrays: {', '.join(names[:6])}.",
                    "Save the mask alone, or as 'mask'.",
                )
            array: NDArray[Any] = loaded["mask" if "mask" in names else names[0]]
            return array
    except (*DAMAGED, MemoryError) as error:
        raise InputError(
            f"{path} is damaged, or no NumPy file of plain numbers.", "Save it again with numpy.save."
        ) from error
