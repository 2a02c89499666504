"""Picture files in: opened without trust and decoded upright, or one sentence that says what is wrong."""

import struct
import tokenize
import zipfile
import zlib
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from diffseg_cli.errors import InputError
from diffseg_cli.reading.array_files import MAGIC as NPY_MAGIC
from diffseg_cli.reading.input_files import InputFile

MAX_PIXELS = 100_000_000  # of a picture or mask; with it every step stays below 2 GB
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


def open_image(file: InputFile, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture file and look at its header only: cheap, before anything slow starts.

    Raises:
        InputError: missing, unreadable, too large, or no picture.
    """
    name = file.name
    try:
        if isinstance(file.content, Path) and file.content.is_dir():
            raise InputError(f"{name} is a folder, not a picture.", "Name one picture in it.")
        image = Image.open(file.content if isinstance(file.content, Path) else file.open(), formats=FORMATS)
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
    return image


def load_image(file: InputFile, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture file, upright.

    Raises:
        InputError: as `open_image`, or damaged.
    """
    with open_image(file, most_pixels) as image:
        try:
            return upright(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(file.name, MAX_PIXELS) from error
        except DAMAGED as error:
            raise InputError(
                f"{file.name} is damaged or cut short: {str(error).rstrip('.') or type(error).__name__}.",
                "Copy or download it again.",
            ) from error


def upright(image: Image.Image) -> Image.Image:
    """Turned as a viewer shows it; a damaged EXIF block turns nothing, as in viewers."""
    image.load()  # a TIFF turns itself on loading, and only then forgets its orientation
    turn = TURNS.get(orientation_of(image))
    return image if turn is None else image.transpose(turn)


def orientation_of(image: Image.Image) -> int:
    """Of its EXIF block, 1 to 8; 1 where there is none or a damaged one."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except DAMAGED:
        return 1
    return orientation if orientation in TURNS else 1


def describe_image(file: InputFile) -> str:
    """Format, kind of pixels and size of a picture file, from its header. Raises as `open_image`."""
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
        return InputError(f"{name} is a HEIC picture, which is not read here.", "Convert it to JPEG or PNG.")
    for magic, what, hint in LOOKALIKES:
        if head.lstrip().startswith(magic):
            return InputError(f"{name} {what}.", hint)
    if isinstance(error, UnidentifiedImageError):
        return InputError(
            f"{name} is not a picture in a format that is read here.", "Use PNG, JPEG, WebP, TIFF or BMP."
        )
    return InputError(f"{name} is damaged: {str(error).rstrip('.')}.", "Copy or download it again.")
