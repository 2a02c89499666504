"""Images and masks as cameras, exporters and paint programs really save them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from diffseg_cli.errors import InputError
from diffseg_cli.reading.image_io import check_image, read_image, read_mask, read_pair
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.reading.notes import collected_notes

H, W = 120, 160


def block(top: int = 30, bottom: int = 80, left: int = 20, right: int = 90) -> NDArray[np.bool_]:
    mask = np.zeros((H, W), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


BLOCK, OTHER = block(), block(90, 110, 100, 150)


def saved(image: Image.Image, suffix: str = "PNG", **options: Any) -> InputFile:
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return InputFile("m", stream.getvalue())


def read(source: Any, **choice: Any) -> tuple[NDArray[np.bool_], str]:
    with collected_notes() as notes:
        mask = read_mask(source, **choice)
    return mask, " ".join(notes)


def refused(source: Any, **choice: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_mask(source, **choice)
    return f"{caught.value.message} {caught.value.hint}"


# --- ids in colours ------------------------------------------------------------------------------------


def colored(*places: tuple[NDArray[np.bool_], tuple[int, int, int]]) -> Image.Image:
    pixels = np.zeros((H, W, 3), dtype=np.uint8)
    for mask, color in places:
        pixels[mask] = color
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("colors", "ids"),
    [
        (((1, 0, 0), (2, 0, 0)), (1, 2)),
        (((1, 0, 0), (0, 1, 0)), (1, 256)),
        (((3, 2, 1), (0, 0, 4)), (3 + 2 * 256 + 65536, 4 * 65536)),
        (((200, 30, 0), (10, 200, 90)), (200 + 30 * 256, 10 + 200 * 256 + 90 * 65536)),
    ],
)
def test_ids_in_the_channels_of_a_panoptic_png(colors: Any, ids: tuple[int, int]) -> None:
    image = colored((BLOCK, colors[0]), (OTHER, colors[1]))
    said = refused(image)
    assert (
        "drawn in several colours" in said and "--color '#" in said and "of a panoptic PNG, --label" in said
    )
    for number, color, expected in zip(ids, colors, (BLOCK, OTHER), strict=True):
        mask, notes = read(image, label=number)
        np.testing.assert_array_equal(mask, expected)
        assert f"panoptic id {number} = R + 256 G + 65536 B" in notes
        np.testing.assert_array_equal(read(image, color="{:02x}{:02x}{:02x}".format(*color))[0], expected)
    assert "has no pixel of #090000" in refused(image, label=9)
    alone, notes = read(colored((BLOCK, colors[0])))
    np.testing.assert_array_equal(alone, BLOCK)
    assert notes == ""


def test_nearly_grey_jpeg_is_still_grey() -> None:
    image = Image.open(saved(colored((BLOCK, (255, 255, 255))), "JPEG", quality=80).open())
    np.testing.assert_array_equal(read(image)[0], BLOCK)


# --- cut-outs ------------------------------------------------------------------------------------------


def cut_out(alpha: NDArray[Any]) -> Image.Image:
    colors = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    return Image.fromarray(np.dstack([colors, alpha.astype(np.uint8)]))


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        (BLOCK * 255, ""),
        (BLOCK * 102, "never opaque: alpha 102 of 255 is the object"),
        (BLOCK * 1, "never opaque"),
        (np.where(BLOCK, 255, 60), ""),  # a dimmed background
        (cv2.blur((BLOCK * 100).astype(np.uint8), (3, 3)), "soft borders: values above 50"),
    ],
)
def test_alpha_however_faint(alpha: NDArray[Any], said: str) -> None:
    mask, notes = read(saved(cut_out(alpha)))
    assert (mask ^ BLOCK).sum() <= 4  # blurring takes the corners
    assert said in notes and bool(said) == bool(notes)


def test_a_palette_with_transparency() -> None:
    """A cut-out made small keeps its object; labels on a transparent ground stay labels."""
    small = cut_out(BLOCK * 255).quantize(64, method=Image.Quantize.FASTOCTREE)
    file = saved(small)
    assert Image.open(file.open()).mode == "P"
    assert (read(file)[0] ^ BLOCK).mean() < 0.003  # some colours of the palette are half clear
    labels = Image.fromarray(np.where(BLOCK, 1, np.where(OTHER, 2, 0)).astype(np.uint8), mode="P")
    labels.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    file = saved(labels, transparency=0)
    assert "--label 1 or --label 2" in refused(file)
    np.testing.assert_array_equal(read(file, label=2)[0], OTHER)


@pytest.mark.parametrize("invert", [False, True])
def test_a_mask_that_is_likely_inverted_is_mentioned(invert: bool) -> None:
    middle = block(20, 100, 30, 130)
    mask, notes = read(Image.fromarray(~middle ^ invert), invert=invert)
    np.testing.assert_array_equal(mask, ~middle)
    assert "marks the border of its image and not the middle" in notes
    assert ("leave out --invert-mask" if invert else "add --invert-mask") in notes
    for fine in (middle, block(60, 120, 0, 160), ~block(0, 30, 20, 60)):
        assert read(Image.fromarray(fine))[1] == ""


# --- orientation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["as shown", "as stored", "turned itself"])
def test_a_mask_in_the_orientation_of_its_image(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((H, W, 3), dtype=np.uint8)
    stored[BLOCK] = (200, 100, 50)
    Image.fromarray(stored).save(tmp_path / "dog.png", exif=exif)
    with Image.open(tmp_path / "dog.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))[..., 0] > 0
    as_saved = Image.fromarray(shown if kind == "as shown" else BLOCK)
    as_saved.save(tmp_path / "m.png", **({"exif": exif} if kind == "turned itself" else {}))
    with collected_notes() as notes:
        _, mask = read_pair(tmp_path / "dog.png", tmp_path / "m.png")
    if kind == "as stored" and 1 < orientation < 5:  # both fit: it is said which was taken
        np.testing.assert_array_equal(mask, BLOCK)
    else:
        np.testing.assert_array_equal(mask, shown)
    expected = ""
    if kind != "turned itself" and orientation > 1:
        expected = "taken as drawn on the image as shown" if orientation < 5 else "turned with it"
        expected = "" if orientation > 4 and kind == "as shown" else expected
    assert expected in " ".join(notes) and len(notes) == bool(expected)


# --- deep colours and large texts ----------------------------------------------------------------------


def png_with(place: str) -> InputFile:
    content = saved(Image.fromarray(BLOCK)).content
    assert isinstance(content, bytes)
    kind, data = {
        "a text": (b"zTXt", b"k\0\0" + zlib.compress(b"x" * 3_000_000)),
        "an international text": (b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
        "a colour profile": (b"iCCP", b"k\0\0" + zlib.compress(bytes(3_000_000))),
        "a text at the end": (b"zTXt", b"k\0\0" + zlib.compress(b"x" * 3_000_000)),
    }[place]
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    cut = len(content) - 12 if "end" in place else 33
    return InputFile("m", content[:cut] + chunk + content[cut:])


@pytest.mark.parametrize(
    "place", ["a text", "an international text", "a colour profile", "a text at the end"]
)
def test_a_png_with_megabytes_beside_its_pixels(place: str) -> None:
    file = png_with(place)
    with pytest.raises(ValueError, match="MAX_TEXT"):
        Image.open(file.open()).load()
    assert check_image(file) == H * W
    np.testing.assert_array_equal(read(file)[0], BLOCK)
    assert isinstance(file.content, bytes)
    with pytest.raises(InputError, match="damaged"):
        read_image(InputFile("m", file.content[:60]))
    assert PngImagePlugin.MAX_TEXT_CHUNK == 2**20  # of the whole process


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    ("highest", "top"), [(255, 255), (1000, 1023), (4095, 4095), (16000, 16383), (60000, 65535)]
)
def test_deep_colours_keep_their_depth(suffix: str, highest: int, top: int) -> None:
    values = np.linspace(0, highest, 8 * 8 * 3).astype(np.uint16).reshape(8, 8, 3)
    file = InputFile("m", cv2.imencode(suffix, values[..., ::-1])[1].tobytes())
    np.testing.assert_allclose(read_image(file), values / top * 255, atol=1.01)


def test_deep_colours_with_alpha_and_orientation() -> None:
    values = np.linspace(0, 4000, 8 * 9 * 3).astype(np.uint16).reshape(8, 9, 3)
    alpha = np.full((8, 9, 1), 65535, dtype=np.uint16)
    alpha[0, 0] = 0
    content = cv2.imencode(".png", np.dstack([values[..., ::-1], alpha]))[1].tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block + struct.pack(">I", zlib.crc32(b"eXIf" + block))
    found = read_image(InputFile("m", content[:33] + chunk + content[33:]))
    assert found.shape == (9, 8, 3) and found[0, 7].tolist() == [255, 255, 255]
    expected = np.rot90(values / 4095 * 255, -1)
    np.testing.assert_allclose(found[1:], expected[1:], atol=1.01)


def planar_tiff() -> bytes:
    """An uncompressed TIFF of 16 bits whose colours lie in separate planes, 4 x 2."""
    planes = [struct.pack("<8H", *range(start, start + 8)) for start in (0, 20_000, 60_000)]
    tags = [
        *((256, 3, 1, 4), (257, 3, 1, 2), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, 210)),
        *((277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 3, 222), (284, 3, 1, 2)),
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(
        struct.pack("<HHII", *tag) for tag in tags
    )
    head = (head + bytes(4)).ljust(200, b"\0")
    head += struct.pack("<3H", 16, 16, 16).ljust(10, b"\0")
    head += struct.pack("<3I", *(240 + 16 * index for index in range(3))) + struct.pack("<3I", 16, 16, 16)
    return head.ljust(240, b"\0") + b"".join(planes)


def test_deep_colours_in_planes_are_refused() -> None:
    file = InputFile("m", planar_tiff())
    with Image.open(file.open()) as image:
        assert image.size == (4, 2) and image.mode == "RGB"  # Pillow takes it
    for reader in (read_image, read_mask, check_image):
        with pytest.raises(InputError, match="colours in separate planes"):
            reader(file)
