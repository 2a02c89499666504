"""Attention maps as arrays and sheets: they agree with each other and with their documentation."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from diffseg_cli import assembly
from diffseg_cli.attention_dump import (
    REGION_LEVEL,
    AttentionDump,
    detail_sheet,
    draw_maps,
    dump_attention,
    main_sheet,
    write_arrays,
)
from diffseg_cli.cli.main import app
from diffseg_cli.config import CompactConfig
from diffseg_cli.errors import UsageError
from diffseg_cli.loading import build_compact
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.reading.mask_checks import point_mask
from diffseg_cli.results.palette import concept_color
from diffseg_cli.results.sheet import PAPER, Tile, draw_sheet, tile_size
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.trained import untrained

POINTS = [(90, 40), (10, 80)]
DOCUMENT = Path(__file__).parents[1] / "docs" / "attention-maps.md"


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    # Random features resemble each other: look closely.
    backbone = build_compact(CompactConfig(image_size=128, temperature=150))
    return Segmenter(backbone=backbone, trained=untrained(), hed=None, head="attention")


def picture(size_hw: tuple[int, int] = (90, 120)) -> NDArray[np.uint8]:
    """A bright square on noise."""
    image = np.random.default_rng(1).integers(0, 120, (*size_hw, 3), dtype=np.uint8)
    image[20:60, 70:110] = (250, 60, 40)
    return image


@pytest.fixture(scope="module")
def support(segmenter: Segmenter) -> SupportFeatures:
    mask = np.zeros((90, 120), dtype=bool)
    mask[20:60, 70:110] = True
    return segmenter.encode_support([(picture(), mask), (picture()[:, ::-1].copy(), mask[:, ::-1])])


@pytest.fixture(scope="module")
def full(segmenter: Segmenter, support: SupportFeatures) -> AttentionDump:
    everything = {"layers": True, "heads": True, "tokens": True, "matrices": True}
    parts = [point_mask(*point, (90, 120)) for point in POINTS]
    return dump_attention(segmenter, picture(), support, parts=parts, **everything)


def test_every_array_is_documented_with_its_shape(full: AttentionDump) -> None:
    patterns = {}
    for name, shape in re.findall(r"^\| `([\w/{}]+)` \| \(([\w ]+)\)", DOCUMENT.read_text(), re.MULTILINE):
        pattern = (
            re.escape(name)
            .replace(r"\{name\}", r"[\w.]+")
            .replace(r"\{step\}", r"\d+")
            .replace(r"\{i\}", r"\d+")
        )
        patterns[re.sub(r"\\\{[hw]\\\}", r"\\d+", pattern)] = shape.split()
    size = {"H": 16, "W": 16, "a": 1, "t": 8}  # two supports with four tokens each
    grids = {"stride_16": 8, "stride_32": 4}
    seen = set()
    for name, array in full.arrays.items():
        (pattern,) = [pattern for pattern in patterns if re.fullmatch(pattern, name)]
        seen.add(pattern)
        side = next((grid for layer, grid in grids.items() if layer in name), 0)
        side = int(name.split("/")[1].split("x")[0]) if name.startswith("scales/") else side
        letters = {**size, "h": side, "w": side, "n": side * side}
        assert array.shape == tuple(letters[letter] for letter in patterns[pattern]), name
        assert array.dtype == np.float32
    assert seen == set(patterns)


def test_parts_add_up_to_the_whole(full: AttentionDump) -> None:
    arrays = full.arrays
    close = {"rtol": 1e-4, "atol": 1e-7}
    assert full.layers_of == {"8x8": 1, "4x4": 1}
    for layer, scale in (("stride_16", "8x8"), ("stride_32", "4x4")):
        prefix = f"layers/{layer}/t0"
        cross = arrays[f"scales/{scale}/cross"]
        np.testing.assert_allclose(arrays[f"{prefix}/cross"], cross, **close)
        np.testing.assert_allclose(arrays[f"{prefix}/head_cross"].mean(0), cross, **close)
        np.testing.assert_allclose(arrays[f"{prefix}/tokens"].sum(0), cross, **close)
        affinity = arrays[f"scales/{scale}/affinity"]
        np.testing.assert_allclose(arrays[f"{prefix}/affinity"], affinity, **close)
        np.testing.assert_allclose(arrays[f"{prefix}/head_affinity"].mean(0), affinity, **close)
        np.testing.assert_allclose(arrays[f"scales/{scale}/self"].sum(1), 1, rtol=1e-4)
    both = [arrays[f"scales/{scale}/affinity"] for scale in full.layers_of]
    np.testing.assert_allclose(np.mean(both, axis=0), arrays["affinity"], **close)
    for name in ("region", "affinity", "scales/8x8/affinity"):
        assert arrays[name].sum() == pytest.approx(1, abs=1e-4) and arrays[name].min() >= 0


def test_details_change_nothing_and_are_kept_only_when_asked(
    segmenter: Segmenter, support: SupportFeatures, full: AttentionDump
) -> None:
    plain = dump_attention(segmenter, picture(), support)
    assert full.arrays.keys() - plain.arrays.keys() >= {"points/1/affinity", "points/2/affinity"}
    assert not [name for name in plain.arrays if name.startswith("layers/") or name.endswith("/self")]
    for name, array in plain.arrays.items():
        np.testing.assert_array_equal(array, full.arrays[name])
    tokens = dump_attention(segmenter, picture(), support, tokens=True).arrays
    assert {name.rpartition("/")[2] for name in tokens if name.startswith("layers/")} == {"tokens"}


def test_the_region_is_where_it_was_put(segmenter: Segmenter, support: SupportFeatures) -> None:
    found = dump_attention(segmenter, picture(), support).arrays
    np.testing.assert_array_equal(found["region"] > 0, found["score_map"] > REGION_LEVEL)

    square = np.zeros((90, 120), dtype=bool)
    square[20:60, 70:110] = True
    inside = dump_attention(segmenter, picture(), support, region=square).arrays
    y, x = np.nonzero(inside["region"])
    assert (y.min(), y.max(), x.min(), x.max()) == (3, 10, 9, 14)  # 16 cells over 90 x 120 pixels
    outside = dump_attention(segmenter, picture(), support, region=~square).arrays
    cells = inside["region"] > 0
    assert inside["affinity"][cells].sum() > 1.5 * outside["affinity"][cells].sum()

    point = dump_attention(segmenter, picture(), support, region=point_mask(119, 0, (90, 120))).arrays
    assert point["region"][0, 15] == 1


@pytest.mark.parametrize("size_hw", [(5, 7), (7, 300), (1, 1)])
def test_a_point_of_a_tiny_picture_is_not_lost(
    segmenter: Segmenter, support: SupportFeatures, size_hw: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size_hw, 3), dtype=np.uint8)
    for y, x in {(0, 0), (size_hw[0] - 1, size_hw[1] - 1), (size_hw[0] // 2, size_hw[1] // 2)}:
        dump = dump_attention(segmenter, image, support, region=point_mask(x, y, size_hw))
        assert dump.arrays["region"].sum() == pytest.approx(1)
        assert np.isfinite(dump.arrays["affinity"]).all()
        assert main_sheet(dump, image, point_mask(x, y, size_hw), "tiny").ndim == 3


@pytest.mark.parametrize("point", [(-1, 0), (120, 0), (0, 90)])
def test_a_point_outside_is_refused_with_the_size(point: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="outside the image") as caught:
        point_mask(*point, (90, 120))
    assert "120 x 90" in str(caught.value.hint)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_come_back_from_the_file(full: AttentionDump, tmp_path: Path, suffix: str) -> None:
    info = {"query": "scene.jpg", "seed": 3, "region": "point 1,2"}
    path = tmp_path / "new" / f"scene_attn{suffix}"
    write_arrays(path, full.arrays, info)
    read: dict[str, Any]
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            read = {name: file[name] for name in file.files}
        assert json.loads(str(read.pop("info"))) == info
    else:
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            assert json.loads(file.metadata()["info"]) == info
    assert read.keys() == full.arrays.keys()
    for name, array in full.arrays.items():
        np.testing.assert_array_equal(read[name], array)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_sheets_have_a_tile_for_every_map(full: AttentionDump) -> None:
    tile_h, tile_w = tile_size((90, 120), 300)
    assert (tile_h, tile_w) == (225, 300)
    sheet = main_sheet(full, picture(), None, "scene.jpg")
    assert sheet.shape[1] == 4 * (300 + 14) + 14 and sheet.shape[0] > 3 * 225
    green, mask = np.zeros((40, 40, 3), np.uint8), point_mask(5, 5, (90, 120))
    green[..., 1] = 255
    more = main_sheet(full, picture(), None, "scene.jpg", supports=[green] * 2, mask=mask, points=POINTS)
    assert more.shape[0] > sheet.shape[0] + 2 * 225
    assert ((more == (0, 255, 0)).all(axis=2)).sum() == 2 * 225 * 225
    bright = {kind: detail_sheet(full, picture(), kind, kind) for kind in ("layers", "heads", "tokens")}
    for kind, columns, rows in (("layers", 2, 2), ("heads", 1, 4), ("tokens", 8, 2)):
        tile_hw = tile_size((90, 120), 220)
        covered = (np.abs(bright[kind].astype(int) - PAPER).sum(axis=2) > 0).sum()
        assert covered >= 0.95 * columns * rows * tile_hw[0] * tile_hw[1], kind


def test_a_colour_bar_runs_from_the_lowest_to_the_highest_value() -> None:
    tile = Tile(np.zeros((9, 9, 3), np.uint8), "map", scale=("0.1", "0.9"))
    sheet = draw_sheet([("", [tile])], heading="", tile_hw=(200, 200)).astype(int)
    bar = [row for row in sheet if np.ptp(row.sum(1)) > 300 and len(np.unique(row, axis=0)) > 80]
    assert len(bar) == 8  # pixels high
    bright = bar[0].sum(1)[50:160]
    assert (np.diff(bright) >= -12).all() and bright[-1] > bright[0] + 300


def test_every_map_is_drawn_at_the_size_of_the_image(full: AttentionDump) -> None:
    drawn = dict(draw_maps(full, picture()))
    assert {pixels.shape for pixels in drawn.values()} == {(90, 120, 3)}
    assert {"score_map", "points/2/affinity", "scales/8x8/cross"} <= drawn.keys()
    assert {"layers/stride_32/t0/tokens_7", "layers/stride_16/t0/head_cross_0"} <= drawn.keys()
    assert not [name for name in drawn if "self" in name]
    maps = [name for name, array in full.arrays.items() if array.ndim == 3]
    flat = len(full.arrays) - len(maps) - 2  # two matrices
    assert len(drawn) == flat + sum(len(full.arrays[name]) for name in maps)


def test_the_verb_writes_maps_and_takes_several_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segmenter: Segmenter
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: segmenter)
    mask = np.zeros((90, 120), dtype=np.uint8)
    mask[20:60, 70:110] = 255
    Image.fromarray(picture()).save("a.png")
    Image.fromarray(mask).save("m.png")
    words = ["attn", "-s", "a.png", "-m", "m.png", "-q", "a.png", "-o", "out", "--maps", "--json"]
    done = CliRunner().invoke(app, [*words, "--point", "90,40", "--point", "10,80", "--point", "10,80"])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert row["arrays"]["points/2/affinity"] == [16, 16] and "points/3/affinity" not in row["arrays"]
    assert row["outputs"]["maps"] == "out/a_attn_maps" and row["region"] == "point 90,40 and 10,80"
    with Image.open("out/a_attn_maps/points/2/affinity.png") as shown:
        assert shown.size == (120, 90)
    outside = CliRunner().invoke(app, [*words, "--point", "120,0"])
    assert outside.exit_code == 2 and "outside the image" in outside.stderr


def test_the_verb_shows_where_it_looked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segmenter: Segmenter
) -> None:
    monkeypatch.chdir(tmp_path)
    calibrated = replace(segmenter.trained, presence=PresenceCalibration((1.0, 1.0, 1.0), -1.0))
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: segmenter.with_trained(calibrated))
    scene, mask = picture((300, 400)), np.zeros((300, 400), dtype=bool)
    mask[20:60, 70:110] = True
    Image.fromarray(scene).save("a.png")
    Image.fromarray(mask).save("m.png")
    words = ["attn", "-s", "a.png", "-m", "m.png", "-q", "a.png", "--json"]
    plain = CliRunner().invoke(app, [*words, "-o", "plain"])
    zoomed = CliRunner().invoke(app, [*words, "-o", "zoomed", "--zoom", "8"])
    assert (plain.exit_code, zoomed.exit_code) == (0, 0), plain.output + zoomed.output
    assert json.loads(plain.stdout)["windows"] == []
    windows = json.loads(zoomed.stdout)["windows"]
    assert [each["box_xywh"] for each in windows[:4]] == [
        [left, top, 250, 188] for top in (0, 112) for left in (0, 150)
    ]
    assert all(0 < each["presence"] < 1 for each in windows)
    with Image.open("plain/a_attn.png") as before, Image.open("zoomed/a_attn.png") as after:
        assert after.height > before.height + 2 * 225  # five more tiles
        frames = np.array(after)
    for number in range(4):
        assert (frames == concept_color(number)).all(axis=2).sum() > 100
    refused = CliRunner().invoke(app, [*words, "--zoom", "1"])
    assert refused.exit_code == 2 and "neither auto nor off" in refused.stderr


def test_a_sheet_wraps_long_rows_and_fits_long_titles() -> None:
    red = Tile(np.full((4, 4, 3), (255, 0, 0), np.uint8), "a title that is much too long for it", "note")
    sheet = draw_sheet([("", [red] * 5)], heading="five " * 40, tile_hw=(40, 40), most_columns=3)
    is_red = (sheet == (255, 0, 0)).all(axis=2)
    assert is_red.sum() == 5 * 40 * 40
    starts = np.flatnonzero(np.diff(is_red.any(axis=1).astype(int)) == 1)
    assert len(starts) == 2  # two lines of tiles


@pytest.mark.parametrize(
    ("image_hw", "tile"), [((100, 200), (150, 300)), ((3000, 10), (300, 75)), ((1, 1), (300, 300))]
)
def test_tiles_keep_the_shape_of_the_picture(image_hw: tuple[int, int], tile: tuple[int, int]) -> None:
    assert tile_size(image_hw, 300) == tile
