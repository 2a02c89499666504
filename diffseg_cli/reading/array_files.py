"""NumPy files read without believing them: no pickles, and no memory reserved before the bytes are there."""

import math
import tokenize
import zipfile
import zlib
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.errors import InputError
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.reading.mask_shapes import listed, plain

MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
MOST_BYTES = 256_000_000  # telling an array's values apart takes several times as much
# What reading damaged bytes ends in.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError),
    *(RuntimeError, MemoryError, tokenize.TokenError, zlib.error, zipfile.BadZipFile),
)


def is_array_file(file: InputFile) -> bool:
    """NPY or NPZ, by content."""
    return file.head(len(MAGIC)).startswith((MAGIC, ZIP_MAGIC))


def read_array_file(file: InputFile, most_pixels: int) -> NDArray[Any]:
    """The array of a NPY file, or of a NPZ file that has one (or one called "mask").

    Raises:
        InputError: the file is damaged, has more than `most_pixels`, or holds something else.
    """
    try:
        with file.open() as stream:
            if stream.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
                stream.seek(0)
                return _read_npy(stream, file.name, most_pixels)
            with zipfile.ZipFile(stream) as archive:
                return _read_npy(archive.open(_member(archive, file.name)), file.name, most_pixels)
    except DAMAGED as error:
        raise InputError(
            f"{file.name} is damaged, or no NumPy file of plain numbers.", "Save it again with numpy.save."
        ) from error


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The one array that is meant."""
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if len(members) != 1 and "mask" not in members:
        raise InputError(
            f"{name} holds {len(members)} arrays: {listed(map(plain, members))}.",
            "Save the mask alone, or as 'mask'.",
        )
    info = members.get("mask") or next(iter(members.values()))
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("a compression NumPy does not use")
    return info


def _read_npy(stream: IO[bytes], name: str, most_pixels: int) -> NDArray[Any]:
    major, _ = np.lib.format.read_magic(stream)
    read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[major]
    shape, by_column, dtype = read_header(stream)
    if dtype.kind not in "buif" or min(shape, default=0) < 0:
        raise ValueError("no plain numbers")
    h, w = (*sorted(shape, reverse=True), 1, 1)[:2]  # channels come first or last, and are few
    if h * w > most_pixels:
        raise InputError(
            f"{name} holds an array of {' x '.join(map(str, shape))}: more than "
            f"{most_pixels / 10**6:g} megapixels.",
            "Scale it down first.",
        )
    size = math.prod(shape) * dtype.itemsize
    if size > MOST_BYTES:
        raise InputError(
            f"{name} holds an array of {size / 1e6:.0f} MB: more than {MOST_BYTES // 10**6} MB.",
            "Save it as bool or uint8.",
        )
    content = stream.read(size)
    if len(content) < size:
        raise ValueError("cut short")
    array: NDArray[Any] = np.frombuffer(content, dtype).reshape(shape, order="F" if by_column else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
