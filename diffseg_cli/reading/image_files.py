"""Image files in: opened without trust and decoded upright, or one sentence that says what is wrong."""

import io
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
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from diffseg_cli.errors import InputError
from diffseg_cli.reading.array_files import MAGIC as NPY_MAGIC
from diffseg_cli.reading.input_files import InputFile

MAX_PIXELS = 100_000_000  # of an image or mask; with it every step stays below 2 GB
MOST_BYTES = 1_000_000_000  # of a file that is read again as a whole
STRIP_ROWS = 256
# Formats that are decoded inside this process: Pillow hands PostScript, for one, to another program.
FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000"]
if find_spec("PIL.AvifImagePlugin"):  # newer than the oldest Pillow that serves
    FORMATS.append("AVIF")

PNG_MAGIC, TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
ORIENTATION_TAG, BITS_TAG, PLANES_TAG = 0x0112, 258, 284
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
    *(RuntimeError, cv2.error, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)
LOOKALIKES = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer: the file itself was never fetched",
        "Run `git lfs pull`.",
    ),
    (b"%PDF", "is a PDF document", "Export the page as PNG."),
    (b"<", "is text (SVG, XML or a web page), not pixels", "Save the image itself as PNG or JPEG."),
    (b"filename,file_size", "is a CSV file of VIA", "Export the annotations as JSON."),
    (b"#filename", "is a CSV file of annotations", "Export them as COCO JSON."),
    (NPY_MAGIC, "is a NumPy array, which is read as a mask only", "Save the image as PNG."),
)


def open_image(file: InputFile, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image file and look at its header only: cheap, before anything slow starts.

    Raises:
        InputError: missing, unreadable, too large, or no image.
    """
    name = file.name
    try:
        if isinstance(file.content, Path) and file.content.is_dir():
            raise InputError(f"{name} is a folder, not an image.", "Name one image in it.")
        if file.is_special:
            raise InputError(f"{name} is not a regular file.", "Save the image to a file first.")
        image = _open(file)
    except FileNotFoundError as error:
        raise InputError(
            f"{name} does not exist.", f"Check the name; a relative one starts at {Path.cwd()}."
        ) from error
    except PermissionError as error:
        raise InputError(f"{name} cannot be read: permission denied.", "Check who may read it.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, MAX_PIXELS) from error
    except DAMAGED as error:
        raise _refusal(file, error) from error
    if image.width * image.height > most_pixels:
        raise _too_large(name, most_pixels, f" ({image.width} x {image.height})")
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PLANES_TAG) == 2 and _is_deep_color(image):
        raise InputError(
            f"{name} is a TIFF of 16 bits that keeps its colours in separate planes, which is not read here.",
            "Save it as PNG, or with interleaved colours.",
        )
    return image


def _open(file: InputFile) -> Image.Image:
    try:
        return Image.open(file.content if isinstance(file.content, Path) else file.open(), formats=FORMATS)
    except ValueError:
        slim = _without_text(file)
        if slim is None:
            raise
        return Image.open(slim, formats=["PNG"])


def _without_text(file: InputFile) -> io.BytesIO | None:
    """A PNG without its texts and colour profile; None of what is no PNG, or has none.

    Pillow refuses a whole image for more than a megabyte of them.
    """
    content = file.read(MOST_BYTES, "Save it again, without its texts.")
    kept, start = [PNG_MAGIC], len(PNG_MAGIC)
    while content.startswith(PNG_MAGIC) and start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] not in TEXTS:
            kept.append(content[start:end])
        start = end
    return io.BytesIO(b"".join(kept)) if len(content) > sum(map(len, kept)) > len(PNG_MAGIC) else None


def load_image(file: InputFile, most_pixels: int = MAX_PIXELS) -> tuple[Image.Image, int]:
    """Decode an image file.

    Returns:
        The image upright, and the EXIF orientation that was undone for it, as `orientation_of`.

    Raises:
        InputError: as `open_image`, or damaged.
    """
    with open_image(file, most_pixels) as image:
        try:
            is_deep = _is_deep_color(image)
            try:
                loaded, orientation = upright(image)
            except ValueError:  # texts may also come last
                slim = _without_text(file)
                if slim is None:
                    raise
                loaded, orientation = upright(Image.open(slim, formats=["PNG"]))
            return _brightened(loaded, file, orientation) if is_deep else loaded, orientation
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(file.name, MAX_PIXELS) from error
        except DAMAGED as error:
            raise InputError(
                f"{file.name} is damaged or cut short: {str(error).rstrip('.') or type(error).__name__}.",
                "Copy or download it again.",
            ) from error


def upright(image: Image.Image) -> tuple[Image.Image, int]:
    """Turned as a viewer shows it, and the EXIF orientation undone for it; a damaged block turns nothing."""
    orientation = orientation_of(image)
    image.load()  # a TIFF turns itself on loading, and forgets its orientation
    turn = TURNS.get(orientation_of(image))
    return (image if turn is None else image.transpose(turn)), orientation


def orientation_of(image: Image.Image) -> int:
    """Of its EXIF block, 1 to 8; 1 where there is none or a damaged one."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except DAMAGED:
        return 1
    return orientation if orientation in TURNS else 1


# --- colours of 16 bits --------------------------------------------------------------------------------


def _is_deep_color(image: Image.Image) -> bool:
    """Whether Pillow will keep the upper 8 of 16 bits of its colours; to be asked before it is loaded."""
    if isinstance(image, TiffImageFile):
        return image.mode in ("RGB", "RGBA") and max(image.tag_v2.get(BITS_TAG, (8,))) > 8
    return (
        isinstance(image, PngImageFile)
        and bool(image.tile)
        and str(image.tile[0][3]) in ("RGB;16B", "RGBA;16B")
    )


def _brightened(image: Image.Image, file: InputFile, orientation: int) -> Image.Image:
    """Colours of 12 or 14 bits in 16, whose upper 8 bits are nearly black, as `to_8_bits` scales grey.

    OpenCV decodes them again. Where it disagrees with Pillow on the upper bits, nothing is changed.
    """
    dark = np.asarray(image)
    if dark[..., :3].max() > 63:
        return image
    content = np.frombuffer(file.read(MOST_BYTES, "Scale it down first."), dtype=np.uint8)
    deep = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if deep is None or deep.dtype != np.uint16 or deep.ndim != 3:
        return image
    deep = np.ascontiguousarray(deep[..., 2::-1])
    if orientation in TURNS and image.format != "TIFF":
        planes = [
            np.asarray(Image.fromarray(plane).transpose(TURNS[orientation]))
            for plane in deep.transpose(2, 0, 1)
        ]
        deep = np.stack(planes, axis=2)
    if deep.shape[:2] != dark.shape[:2] or not np.array_equal(deep >> 8, dark[..., :3]):
        return image
    bright = Image.fromarray(to_8_bits(deep, file.name))
    if image.mode == "RGBA":
        bright.putalpha(image.getchannel("A"))
    return bright


def to_8_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Values of any depth (H W ...) -> uint8; the rule is in `image_io.read_image`.

    Raises:
        InputError: some are no numbers.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{name} holds values that are not numbers.", "Replace them, or save it as PNG.")
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, next(top for top in (255.0, 1023.0, 4095.0, 16383.0, 65535.0) if high <= top)
    levels = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), STRIP_ROWS):  # a whole image of float64 would take a gigabyte
        strip = values[top : top + STRIP_ROWS].astype(np.float64)
        levels[top : top + STRIP_ROWS] = np.rint((strip - low) * (255 / max(high - low, 1e-12)))
    return levels


# --- what is said of files -----------------------------------------------------------------------------


def describe_image(file: InputFile) -> str:
    """Format, kind of pixels and size of an image file, from its header. Raises as `open_image`."""
    with open_image(file) as image:
        turned = ", turned by its EXIF orientation" if orientation_of(image) > 1 else ""
        return f"{image.format}, {image.mode}, {image.width} x {image.height}{turned}"


def _too_large(name: str, most_pixels: int, size: str = "") -> InputError:
    return InputError(
        f"{name} is too large{size}: more than {most_pixels / 10**6:g} megapixels.", "Scale it down first."
    )


def _refusal(file: InputFile, error: Exception) -> InputError:
    """Why a file that no decoder takes is refused."""
    name = file.name
    try:
        with file.open() as stream:
            head = stream.read(64)
    except (OSError, ValueError) as second:
        reason = getattr(second, "strerror", None) or second
        return InputError(f"{name} cannot be read: {reason}.", "Check the path and its permissions.")
    if not head:
        return InputError(f"{name} is empty (0 bytes).", "Copy or download it again.")
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return InputError(f"{name} is a HEIC image, which is not read here.", "Convert it to JPEG or PNG.")
    for magic, what, hint in LOOKALIKES:
        if head.lstrip().startswith(magic):
            return InputError(f"{name} {what}.", hint)
    if isinstance(error, UnidentifiedImageError):
        return InputError(
            f"{name} is not an image in a format that is read here.", "Use PNG, JPEG, WebP, TIFF or BMP."
        )
    return InputError(f"{name} is damaged: {str(error).rstrip('.')}.", "Copy or download it again.")
