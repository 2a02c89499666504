"""The scripts of `benchmarks/`: every contender tiny on the CPU, and counts against what is known."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import cold_start, compare, curves, flop, gpu, growth
from benchmarks.contenders import CONTENDERS, Contender, Setting, Straightforward, middle
from diffseg_cli.bench.random_kandinsky import TINY, random_networks
from diffseg_cli.models.attention import score_maps
from diffseg_cli.models.kandinsky import KandinskyBackbone
from diffseg_cli.segmenter import Segmenter

CPU = torch.device("cpu")
ON_KANDINSKY_SCALE = ("diffseg", "straightforward", "seggpt-l", "dinov2-l+sam-h")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffseg_cli.bench.subject.IMAGE_HW", (60, 80))
    monkeypatch.setattr("diffseg_cli.bench.meters.CEILING_SIZES", (64,))


@pytest.mark.parametrize("name", ON_KANDINSKY_SCALE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_contender_gives_masks(name: str, dtype: torch.dtype) -> None:
    contender = CONTENDERS[name](Setting(CPU, dtype, batch_size=2, tiny=True))
    with torch.inference_mode():
        masks: Tensor = contender.query(contender.support())
    assert masks.dtype == torch.bool and masks.shape[0] == 2
    assert contender.weights_bytes > 0


def test_the_plain_method_has_the_maps_of_ours() -> None:
    """(HW)x(HW) matrices, written out, give the score map that running sums give."""
    setting = Setting(CPU, torch.float32, tiny=True)
    plain = Straightforward(random_networks(TINY, device=CPU), setting)
    ours = KandinskyBackbone(random_networks(TINY, device=CPU), device=CPU)
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    encoded_support = plain.support(images[:1], middle(images[:1]))
    embeds = encoded_support[2]
    torch.testing.assert_close(ours.embed(images[:1], middle(images[:1]))[:, 0], embeds)
    plain.query(images, encoded_support)
    encoded = ours.encode(images)
    maps = ours.look(encoded, embeds[:, None, None], timesteps=(50,), noise=torch.ones_like(encoded))
    expected = score_maps(maps, (16, 16)).score_map
    torch.testing.assert_close(plain._score_map((16, 16)), expected, rtol=1e-3, atol=1e-3)


def test_the_look_computes_the_floor_and_nothing_more() -> None:
    rows = {row["part"]: row for row in flop.floor_table(configs=TINY)}
    assert rows["look"]["computed"] == rows["look"]["floor"] > 0
    assert rows["encode"]["computed"] == rows["encode"]["floor"] == rows["support: encode"]["floor"]
    assert rows["decode"]["computed"] <= rows["decode"]["floor"]
    parts = ("encode", "look", "decode", "edges", "SCM", "score map", "PAM")
    assert rows["one query"]["computed"] == sum(rows[part]["computed"] for part in parts)


def test_costs_of_contenders_need_no_memory() -> None:
    rows = flop.contender_costs(2, tiny=True)
    assert tuple(rows) == flop.ON_META == ON_KANDINSKY_SCALE
    assert rows["straightforward"]["tensor_bytes"] > rows["diffseg"]["tensor_bytes"] > 0
    assert rows["seggpt-l"]["support"] == 0 < min(row["query"] for row in rows.values())


def test_comparison_writes_json_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [word for name in ("diffseg", "seggpt-l") for word in ("--only", name)]
    compare.main(["--tiny", "--device", "cpu", "--repeats", "1", *names, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "compare.json").read_text())
    assert list(record["contenders"]) == ["diffseg", "seggpt-l"]
    for row in record["contenders"].values():
        assert row["seconds"]["query"] >= row["fastest"]["query"] > 0 and row["flop"]["query"] > 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "compare.md").read_text()
    assert printed.splitlines()[4].startswith("| diffseg: ") and "| 1.00 |" in printed


def test_a_contender_too_large_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(_: Setting) -> Contender:
        raise torch.OutOfMemoryError

    monkeypatch.setitem(CONTENDERS, "straightforward", too_large)
    setting = Setting(CPU, torch.float32, tiny=True)
    record = compare.compare(setting, ["straightforward", "seggpt-l"], repeats=1)
    assert record["contenders"]["straightforward"] == {"error": "out of memory"}
    assert "seconds" in record["contenders"]["seggpt-l"]
    assert "| straightforward | out of memory |" in compare.markdown(record)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_slope_is_that_of_a_power_law(power: float) -> None:
    assert growth.slope([(x, 3 * x**power) for x in (1, 2, 4, 8)]) == pytest.approx(power)


def test_growth_of_a_small_model(small_segmenter: Segmenter) -> None:
    before = small_segmenter.backbone.image_size
    records = [growth.measure_axis(axis, small_segmenter, (1, 2), 1) for axis in ("shots", "batch")]
    records.append(growth.measure_axis("size", small_segmenter, (64, 128), 1))
    assert small_segmenter.backbone.image_size == before
    assert records[1]["flop_slope"] == pytest.approx(1, abs=0.01)
    assert 0 < records[0]["flop_slope"] < 0.5 < records[2]["flop_slope"]
    assert "| slope |" in growth.table(records[0])
    picture = curves.draw_curves(records)
    assert picture.shape[1:] == (3 * curves.WIDTH, 3)
    assert all((picture == color).all(-1).any() for color in curves.COLORS.values())


def test_cold_start_runs_the_first_example(tmp_path: Path) -> None:
    command = cold_start.segment_command(tmp_path)
    assert all(Path(word).exists() for word in command if word.endswith((".jpg", ".png")))


def test_steps_of_the_gpu_run_are_commands(tmp_path: Path) -> None:
    """On a machine without CUDA every step fails with a reason, and the record says so."""
    if torch.cuda.is_available():
        pytest.skip("here they would run")
    gpu.main(["--only", "stages, batch 8", "--out", str(tmp_path)])
    step = json.loads((tmp_path / "gpu.json").read_text())["steps"]["stages, batch 8"]
    assert "The device 'cuda' is not there" in step["error"] and "--batch-size" in step["command"]
