"""Pictures and masks in: what every form of them reads as, and what is said of those that cannot be used."""

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.reading.image_io import check_image, check_pair, read_image, read_mask
from diffseg_cli.reading.notes import MaskNote

TMP_PATH = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def photo(size_hw: tuple[int, int] = (24, 32)) -> Image.Image:
    """A picture whose pixels all differ from their neighbours, so that a turn cannot go unnoticed."""
    h, w = size_hw
    red, green = np.meshgrid(np.arange(w) * 255 // w, np.arange(h) * 255 // h)
    return Image.fromarray(np.stack([red, green, 255 - red // 2 - green // 2], axis=2).astype(np.uint8))


def disc(size_hw: tuple[int, int] = (60, 80), radius: int = 18) -> NDArray[np.bool_]:
    y, x = np.ogrid[: size_hw[0], : size_hw[1]]
    return (y - size_hw[0] // 2) ** 2 + (x - size_hw[1] // 3) ** 2 <= radius**2


def palette_picture(indices: NDArray[Any], colors: dict[int, tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    palette = np.zeros((256, 3), dtype=np.uint8)
    for index, color in colors.items():
        palette[index] = color
    image.putpalette(palette.tobytes())
    return image


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Message and hint of the InputError a call must raise; each is one or two plain sentences."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert caught.value.hint
    assert caught.value.message.endswith(".") and "\n" not in caught.value.message
    return f"{caught.value.message} {caught.value.hint}"


# --- pictures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientation_is_applied_to_picture_and_mask(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    photo().save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert shown.shape == ((32, 24, 3) if orientation > 4 else (24, 32, 3))
    np.testing.assert_array_equal(read_image(path), shown)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(image), shown)
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[:5, :9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "mask.png"))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), np.asarray(expected) > 0)


def test_all_sources_of_one_picture_agree(tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    array = np.asarray(photo())
    for source in (tmp_path / "photo.png", str(tmp_path / "photo.png"), photo(), array):
        np.testing.assert_array_equal(read_image(source), array)
    grey = np.asarray(photo().convert("L"))
    np.testing.assert_array_equal(read_image(grey), np.repeat(grey[..., None], 3, axis=2))
    assert read_image(photo()).flags.writeable


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = photo().convert(mode)
    path = tmp_path / ("photo.tif" if mode in ("CMYK", "YCbCr") else "photo.png")
    source: Path | Image.Image = image
    if mode != "HSV":
        image.save(path)
        source = path
    read = read_image(source)
    assert read.dtype == np.uint8 and read.shape == (24, 32, 3)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read - expected).max() <= (3 if mode in ("CMYK", "YCbCr") else 0)


def test_transparent_places_are_white_and_hidden_colours_stay_hidden(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[..., 0] = 200
    rgba[:2, :, 3] = 255
    rgba[3, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "cut.png")
    read = read_image(tmp_path / "cut.png")
    assert read[0, 0].tolist() == [200, 0, 0]
    assert read[2, 0].tolist() == [255, 255, 255]
    assert read[3, 0].tolist() == pytest.approx([228, 127, 127], abs=1)
    indexed = palette_picture(np.array([[0, 1]]), {0: (9, 9, 9), 1: (200, 0, 0)})
    indexed.save(tmp_path / "cut.gif", transparency=0)
    assert read_image(tmp_path / "cut.gif")[0].tolist() == [[255, 255, 255], [200, 0, 0]]


@pytest.mark.parametrize(("highest", "bits"), [(255, 8), (1023, 10), (3000, 12), (4096, 14), (60000, 16)])
def test_deep_grey_keeps_its_depth(tmp_path: Path, highest: int, bits: int) -> None:
    values = np.linspace(0, highest, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "xray.png")
    read = read_image(tmp_path / "xray.png")
    np.testing.assert_allclose(read[..., 1], values / (2**bits - 1) * 255, atol=0.51)


def test_float_pictures(tmp_path: Path) -> None:
    unit = np.linspace(0, 0.5, 16, dtype=np.float32).reshape(4, 4)
    Image.fromarray(unit).save(tmp_path / "unit.tif")
    assert read_image(tmp_path / "unit.tif").max() == 128
    Image.fromarray(unit - 3).save(tmp_path / "any.tif")
    assert (read_image(tmp_path / "any.tif").min(), read_image(tmp_path / "any.tif").max()) == (0, 255)
    unit[0, 0] = np.nan
    Image.fromarray(unit).save(tmp_path / "nan.tif")
    assert "not numbers" in refusal(read_image, tmp_path / "nan.tif")


# --- files that cannot be used -------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [read_image, read_mask, check_image])
def test_unusable_files_are_named_with_their_fault(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    contents = {
        "empty.png": (b"", "is empty (0 bytes)"),
        "text.png": (b"just words\n" * 9, "is not an image in a format"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "is text (SVG, XML or a web page)"),
        "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(60), "HEIC"),
        "paper.pdf": (b"%PDF-1.7\n", "PDF"),
    }
    for name, (content, expected) in contents.items():
        (tmp_path / name).write_bytes(content)
        said = refusal(reader, tmp_path / name)
        assert str(tmp_path / name) in said and expected in said
    assert "does not exist" in refusal(reader, tmp_path / "nowhere.png")
    assert "is a folder" in refusal(reader, tmp_path)
    assert "cannot be read" in refusal(reader, tmp_path / "nul\0.png")
    assert "cannot be read" in refusal(reader, tmp_path / "text.png" / "below.png")
    assert "cannot be read" in refusal(reader, tmp_path / ("long" * 100))


@pytest.mark.parametrize("reader", [read_image, read_mask, check_image])
def test_a_file_one_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Callable[[Path], Any]
) -> None:
    path = tmp_path / "private.png"
    photo().save(path)

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)  # root may read everything
    assert f"{path} cannot be read: permission denied" in refusal(reader, path)


def bomb(side: int) -> bytes:
    """The header of a PNG of side x side pixels."""
    stream = io.BytesIO()
    Image.new("1", (8, 8)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("side", [10_001, 40_000, 2**31 - 1])
@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    for reader in (read_image, read_mask, check_image):
        assert "more than 100 megapixels" in refusal(reader, tmp_path / "bomb.png")


@TMP_PATH
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "tif", "webp", "bmp", "gif"]))
def test_a_cut_file_is_refused_or_reads_the_same(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    photo((40, 40)).save(path)
    whole, content = read_image(path), path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        read = read_image(path)
    except InputError as error:
        assert str(path) in error.message and error.hint
    else:
        np.testing.assert_array_equal(read, whole)


@TMP_PATH
@given(data=st.data(), suffix=st.sampled_from(["png", "jpg", "tif", "webp", "gif", "npy", "npz"]))
def test_damaged_bytes_never_end_in_another_error(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    path = tmp_path / f"mask.{suffix}"
    grey = disc((40, 40), 9).astype(np.uint8) * 255
    if suffix == "npy":
        np.save(path, grey)
    elif suffix == "npz":
        np.savez_compressed(path, mask=grey)
    else:
        Image.fromarray(grey).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for reader in (read_image, read_mask):
            try:
                assert reader(path).ndim in (2, 3)
            except InputError as error:
                assert str(path) in error.message


# --- masks ---------------------------------------------------------------------------------------------

DISC = disc()
GREY = DISC.astype(np.uint8) * 255


def smoothed() -> NDArray[np.uint8]:
    large = Image.fromarray(disc((240, 320), 72).astype(np.uint8) * 255)
    return np.asarray(large.resize((80, 60), Image.Resampling.BOX))


def through_jpeg(array: NDArray[np.uint8], quality: int) -> Image.Image:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality)
    return Image.open(stream)


CLEAR: dict[str, Any] = {
    "grey 0/255": Image.fromarray(GREY),
    "grey 0/1": Image.fromarray(DISC.astype(np.uint8)),
    "grey 0/128": Image.fromarray(DISC.astype(np.uint8) * 128),
    "1-bit": Image.fromarray(DISC),
    "RGB that is grey": Image.fromarray(np.repeat(GREY[..., None], 3, axis=2)),
    "palette label 15 with VOC's border": palette_picture(
        np.where(DISC, 15, np.where(disc(radius=21), 255, 0)), {15: (192, 128, 128), 255: (224, 224, 192)}
    ),
    "palette written white first": palette_picture(np.where(DISC, 0, 1), {0: (255, 255, 255), 1: (0, 0, 0)}),
    "one colour on black": Image.fromarray(np.where(DISC[..., None], [200, 30, 40], 0).astype(np.uint8)),
    "VOC colours": Image.fromarray(
        np.where(
            DISC[..., None], [192, 128, 128], np.where(disc(radius=21)[..., None], [224, 224, 192], 0)
        ).astype(np.uint8)
    ),
    "RGBA cut-out": Image.fromarray(
        np.dstack([np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), GREY])
    ),
    "LA cut-out": Image.fromarray(np.dstack([GREY // 3, GREY]), mode="LA"),
    "opaque RGBA": Image.fromarray(np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)])),
    "16-bit 0/65535": Image.fromarray(DISC.astype(np.uint16) * 65535),
    "bool array": DISC,
    "uint8 array of one channel": GREY[..., None],
    "int64 array": DISC.astype(np.int64) * 7,
    "float 0/1": DISC.astype(np.float32),
    "float 0/255": DISC * 255.0,
    "channel first": DISC[None].astype(np.uint8),
}


@pytest.mark.parametrize("kind", ["grey", "alpha", "float"])
@pytest.mark.filterwarnings("ignore::diffseg_cli.reading.notes.MaskNote")
def test_level_127_of_a_soft_border_is_background_and_128_is_object(kind: str) -> None:
    levels = np.zeros((20, 40), np.uint8)
    levels[:, 10:14], levels[:, 14:] = (60, 127, 128, 200), 255
    soft = {
        "grey": Image.fromarray(levels),
        "alpha": Image.fromarray(np.dstack([np.full_like(levels, 90)] * 3 + [levels])),
        "float": levels / 255,
    }
    np.testing.assert_array_equal(read_mask(soft[kind]), levels >= 128)


@pytest.mark.parametrize("form", CLEAR)
@pytest.mark.filterwarnings("error")
def test_clear_masks_need_no_flag(form: str) -> None:
    mask = read_mask(CLEAR[form])
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, DISC)


@pytest.mark.parametrize("form", CLEAR)
def test_invert_swaps_all_but_ignored_pixels(form: str) -> None:
    ignored = disc(radius=21) if "VOC" in form else DISC
    np.testing.assert_array_equal(read_mask(CLEAR[form], invert=True), ~ignored & ~DISC)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif", "npy", "npz", "mask.npz"])
def test_masks_from_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    if suffix == "npy":
        np.save(path, DISC)
    elif suffix == "npz":
        np.savez(path, anything=DISC)
    elif suffix == "mask.npz":
        np.savez_compressed(path, other=np.zeros(3), mask=GREY)
    else:
        Image.fromarray(GREY).save(path)
    np.testing.assert_array_equal(read_mask(path), DISC)
    np.testing.assert_array_equal(read_mask(str(path)), DISC)


SOFT: dict[str, Any] = {
    "smoothed": Image.fromarray(smoothed()),
    "smoothed, four levels": Image.fromarray(((smoothed().astype(int) + 25) // 51 * 51).astype(np.uint8)),
    "enlarged": Image.fromarray(GREY[::6, ::6]).resize((80, 60), Image.Resampling.BILINEAR),
    "smoothed 16-bit": Image.fromarray(smoothed().astype(np.uint16) * 257),
    "smoothed float": smoothed() / 255.0,
    "soft alpha": Image.fromarray(np.dstack([GREY, GREY, GREY, smoothed()])),
    "JPEG 95": through_jpeg(GREY, 95),
    "JPEG 60": through_jpeg(GREY, 60),
    "colour JPEG": through_jpeg(np.repeat(GREY[..., None], 3, axis=2), 85),
}


@pytest.mark.parametrize("form", SOFT)
def test_soft_borders_are_cut_in_the_middle_and_mentioned_once(form: str) -> None:
    with pytest.warns(MaskNote, match="soft borders") as notes:
        mask = read_mask(SOFT[form])
    assert len(notes) == 1
    union, both = (mask | DISC).sum(), (mask & DISC).sum()
    assert both / union > (0.75 if form == "enlarged" else 0.93)
    if "JPEG" in form:
        np.testing.assert_array_equal(mask, DISC)


def labelled(*labels: int, ignore: bool = False) -> NDArray[np.uint8]:
    """Blobs of several labels side by side, the last ringed by 255 if asked."""
    values = np.zeros((60, 120), dtype=np.uint8)
    for index, label in enumerate(labels):
        left = 5 + index * 110 // len(labels)
        if ignore:
            values[8:52, left - 3 : left + 80 // len(labels) + 3] = 255
        values[11:49, left : left + 80 // len(labels)] = label
    return values


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        (labelled(1, 2), "--label 1 or --label 2"),
        (labelled(3, ignore=True), "--label 3 or --label 255"),
        (labelled(1, 7, 15, 20, ignore=True), "--label 1 or --label 7 or --label 15, ..."),
        (labelled(128, 255), "--label 128 or --label 255"),
        (labelled(64, 128, 191, 255), "--label 64 or --label 128"),
        (labelled(1, 2) + 1, "--label 1 or --label 2"),
        (labelled(100, 200, ignore=True), "--label 100 or --label 200"),
    ],
)
def test_label_maps_are_never_guessed(values: NDArray[np.uint8], flag: str) -> None:
    said = refusal(read_mask, Image.fromarray(values))
    assert "120 x 60, grey" in said and "more than one label" in said and flag in said
    assert "%" in said  # the share of each value
    label = int(np.unique(values)[1])
    np.testing.assert_array_equal(read_mask(Image.fromarray(values), label=label), values == label)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(1, 223), min_size=2, max_size=6, unique=True),
    ignore=st.booleans(),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int64]),
)
def test_no_label_map_passes_for_a_soft_mask(labels: list[int], ignore: bool, dtype: Any) -> None:
    values = labelled(*labels, ignore=ignore).astype(dtype)
    assert "--label" in refusal(read_mask, values)
    for label in labels:
        np.testing.assert_array_equal(read_mask(values, label=label), values == label)


def test_palette_labels() -> None:
    colors = {1: (128, 0, 0), 9: (192, 0, 0), 255: (224, 224, 192)}
    image = palette_picture(labelled(1, 9, ignore=True), colors)
    said = refusal(read_mask, image)
    assert "palette" in said and "--label 1 or --label 9 (255 is 'ignore')" in said
    np.testing.assert_array_equal(read_mask(image, label=9), labelled(1, 9, ignore=True) == 9)
    np.testing.assert_array_equal(read_mask(image, color="#C00000"), labelled(1, 9, ignore=True) == 9)
    assert "255 means 'ignore'" in refusal(read_mask, image, label=255)
    assert "has no label 4" in refusal(read_mask, image, label=4)
    only_ignored = palette_picture(labelled(255), colors)
    assert "is empty" in refusal(read_mask, only_ignored) and "'ignore'" in refusal(read_mask, only_ignored)


def test_instance_numbers_of_16_bits(tmp_path: Path) -> None:
    values = labelled(1, 2).astype(np.uint16) * 1000
    Image.fromarray(values).save(tmp_path / "ids.png")
    assert "--label 1000 or --label 2000" in refusal(read_mask, tmp_path / "ids.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "ids.png", label=2000), values == 2000)


def test_colour_maps(tmp_path: Path) -> None:
    red, blue = [220, 20, 60], [0, 0, 142]
    values = labelled(1, 2)
    colors = np.select([values[..., None] == 1, values[..., None] == 2], [red, blue], 90).astype(np.uint8)
    image = Image.fromarray(colors)
    said = refusal(read_mask, image)
    assert "several colours: #5A5A5A" in said and "#DC143C (" in said and "--color '#" in said
    for color in ("#DC143C", "dc143c", "crimson"):
        np.testing.assert_array_equal(read_mask(image, color=color), values == 1)
    assert "no pixel of #FF0000" in refusal(read_mask, image, color="red")
    assert "--color" in refusal(read_mask, image, label=1)
    with pytest.raises(UsageError, match="'reddish' is not a colour"):
        read_mask(image, color="reddish")
    with pytest.raises(UsageError, match="--label and --color"):
        read_mask(image, color="red", label=1)
    with pytest.warns(MaskNote, match="unclean colours"):
        lossy = read_mask(through_jpeg(colors, 90), color="#DC143C")
    assert ((lossy & (values == 1)).sum() / (lossy | (values == 1)).sum()) > 0.85
    np.save(tmp_path / "m.npy", values)
    assert "--label" in refusal(read_mask, tmp_path / "m.npy", color="red")


def test_a_photograph_for_a_mask() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    assert "swapped" in refusal(read_mask, Image.fromarray(noise))
    assert "swapped" in refusal(read_mask, Image.fromarray(noise[..., 0]))
    assert "0 to 1" in refusal(read_mask, np.linspace(0, 1, 4800).reshape(60, 80))


@pytest.mark.parametrize("value", [0, 1, 255])
@pytest.mark.parametrize("invert", [False, True])
def test_empty_and_full_masks(value: int, invert: bool) -> None:
    said = refusal(read_mask, np.full((6, 8), value, np.uint8), invert=invert)
    assert ("is full" if bool(value) != invert else "is empty") in said
    assert f"It holds {value} (100%)" in said and "8 x 6" in said


def test_arrays_that_are_no_mask(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=DISC, b=DISC)
    assert "2 arrays: a, b" in refusal(read_mask, tmp_path / "two.npz")
    np.save(tmp_path / "line.npy", np.zeros(7))
    assert "7, and no mask" in refusal(read_mask, tmp_path / "line.npy")
    np.save(tmp_path / "object.npy", np.array([[{"a": 1}]]), allow_pickle=True)
    assert "no NumPy file of plain numbers" in refusal(read_mask, tmp_path / "object.npy")
    (tmp_path / "archive.npz").write_bytes(b"PK\x03\x04" + bytes(40))
    assert "no NumPy file" in refusal(read_mask, tmp_path / "archive.npz")
    assert "not numbers" in refusal(read_mask, np.array([[0.0, np.nan]]))
    np.save(tmp_path / "photo.npy", np.asarray(photo()))
    assert "read as a mask only" in refusal(read_image, tmp_path / "photo.npy")


def test_a_mask_of_another_size_names_both() -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    check_pair(image, DISC)
    said = refusal(check_pair, image, disc((30, 40)), "dog.jpg", Path("dog.png"))
    assert "dog.jpg is 80 x 60 pixels and dog.png is 40 x 30" in said and "nearest" in said
    assert "turned" in refusal(check_pair, image, DISC.T)
