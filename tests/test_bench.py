"""What stages cost: charged to the right one, complete, and the same work as an undivided run."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_kandinsky as tiny
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from diffseg_cli.bench.chart import draw_chart, form_flop, form_seconds
from diffseg_cli.bench.measure import QUERY_STAGES, SUPPORT_STAGES, measure, write_predictions
from diffseg_cli.bench.meters import (
    FlopCounter,
    count_flop,
    measure_ceiling,
    read_peak,
)
from diffseg_cli.bench.random_kandinsky import TINY, random_networks
from diffseg_cli.bench.subject import draw_images, prepare_segmenter, random_segmenter
from diffseg_cli.choices import ModelChoice
from diffseg_cli.cli import main
from diffseg_cli.compute import describe_device, read_time
from diffseg_cli.errors import ExitCode, UsageError
from diffseg_cli.models.kandinsky import KandinskyBackbone
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.timing import Stages
from diffseg_cli.trained import untrained
from diffseg_cli.weights.kandinsky import load_kandinsky
from tools import random_kandinsky

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small_kandinsky() -> Segmenter:
    return random_segmenter("kandinsky-2-2", device=CPU, dtype=torch.float32, configs=TINY)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and matrices for a test, not for a measurement."""
    monkeypatch.setattr("diffseg_cli.bench.subject.IMAGE_HW", (60, 80))
    monkeypatch.setattr("diffseg_cli.bench.meters.CEILING_SIZES", (64, 128))


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main.app, ["bench", *map(str, arguments)])


# --- meters


def test_flop_of_known_layers() -> None:
    images = torch.zeros(2, 3, 8, 10)
    assert count_flop(lambda: nn.Conv2d(3, 5, 3, padding=1)(images)) == 2 * 2 * (8 * 10) * 5 * (3 * 3 * 3)
    assert count_flop(lambda: nn.Linear(10, 7)(images)) == 2 * (2 * 3 * 8) * 10 * 7


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fused_attention_counts_on_every_device(device: str) -> None:
    attn_q, attn_k = torch.zeros(2, 3, 16, 8, device=device), torch.zeros(2, 3, 20, 8, device=device)
    counted = count_flop(lambda: F.scaled_dot_product_attention(attn_q, attn_k, attn_k))
    assert counted == 2 * (2 * 3) * 16 * 20 * 8 * 2


def test_a_stage_inside_another_is_charged_to_itself_alone() -> None:
    spent = iter([100.0, 1.0, 2.0, 4.0, 100.0, 8.0])
    stages = Stages(lambda: next(spent))
    with stages("outer"), stages("inner"):
        pass
    # 100 before, 1 outer, 2 inner, 4 outer
    with stages("inner"):
        pass
    assert stages.spent == {"outer": 5.0, "inner": 10.0}


def test_a_stage_that_fails_is_left() -> None:
    stages = Stages(lambda: 1.0)
    with pytest.raises(KeyError), stages("first"):
        raise KeyError
    with stages("second"):
        pass
    assert stages.spent == {"second": 1.0}


def test_time_and_operations_are_what_was_spent_since_the_last_reading() -> None:
    read = read_time(CPU)
    time.sleep(0.02)
    assert read() >= 0.02 and read() < 0.02
    with FlopCounter() as counter:
        torch.ones(4, 4) @ torch.ones(4, 4)
        assert (counter.read(), counter.read()) == (128, 0)


def test_peak_memory_is_that_of_the_stage() -> None:
    read = read_peak(CPU)
    if read is None:
        pytest.skip("this system resets no peak")
    before = read()
    np.ones(16 * 2**20)  # 128 MiB, gone at once
    assert read() > before + 100 * 2**20
    assert read() < before + 100 * 2**20


def test_the_ceiling_is_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(rate > 0 for rate in measure_ceiling(CPU, torch.float32).values())
    monkeypatch.setattr("diffseg_cli.bench.meters.CEILING_SECONDS", 0.0)
    assert list(measure_ceiling(CPU, torch.float32)) == [64]


# --- stages against the undivided run


@pytest.mark.parametrize(
    ("kind", "shots", "batch_size"),
    [("compact", 2, 2), ("kandinsky", 2, 2), ("kandinsky", 1, 1), ("attention head", 1, 1)],
)
def test_stages_hold_all_the_work(
    kind: str,
    shots: int,
    batch_size: int,
    small_segmenter: Segmenter,
    small_kandinsky: Segmenter,
    tmp_path: Path,
) -> None:
    """Every stage is entered, and between them nothing is computed."""
    segmenter = small_kandinsky if kind == "kandinsky" else small_segmenter
    if kind == "attention head":
        segmenter = Segmenter(
            backbone=small_segmenter.backbone, trained=untrained(), hed=None, head="attention"
        )
    pairs, queries = draw_images(tmp_path, shots=shots, batch_size=batch_size)
    with FlopCounter() as counter:
        flop = Stages(counter.read)
        metered = replace(segmenter, stage=flop)
        support = metered.encode_support(pairs)
        assert tuple(flop.spent) == SUPPORT_STAGES
        assert sum(flop.spent.values()) == count_flop(lambda: segmenter.encode_support(pairs)) > 0
    with FlopCounter() as counter:
        flop = Stages(counter.read)
        metered = replace(segmenter, stage=flop)
        found = metered.segment_encoded(metered.encode_queries(queries), support)
    assert sum(flop.spent.values()) == count_flop(
        lambda: segmenter.segment_encoded(segmenter.encode_queries(queries), support)
    )
    without = {"PAM", "SCM"} if kind == "attention head" else set()
    assert set(flop.spent) == set(QUERY_STAGES) - {"write"} - without
    images = segmenter.encode_queries(queries).images
    write_predictions(queries, images, found, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 3 * batch_size


# --- random weights


def test_random_networks_are_those_of_files(tmp_path: Path) -> None:
    """The same modules, parameters and buffers as a backbone loaded from files, and finite answers."""
    loaded = load_kandinsky(tiny.build(tmp_path), device=CPU, dtype=torch.float32)
    loaded.embed(torch.rand(1, 3, 128, 128), torch.ones(1, 1, 128, 128))  # CLIP is filled when it is needed
    drawn = KandinskyBackbone(random_networks(TINY, device=CPU), device=CPU)
    for part in ("unet", "movq", "image_encoder"):
        theirs, ours = getattr(loaded, part), getattr(drawn, part)
        assert str(ours) == str(theirs)
        shapes = {name: value.shape for name, value in theirs.state_dict().items()}
        assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
        buffers = dict(ours.named_buffers())
        assert all(torch.equal(buffers[name], value) for name, value in theirs.named_buffers())
    assert torch.equal(drawn.pixel_mean, loaded.pixel_mean)
    assert drawn.scheduler.config == loaded.scheduler.config
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    answers = [drawn.embed(images, images[:, :1]), drawn.decode(drawn.encode(images))]
    assert all(answer.isfinite().all() and answer.std() > 0.01 for answer in answers)


def test_random_weights_are_written_as_files_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random_kandinsky, "FULL_SIZE", TINY)
    monkeypatch.setattr("sys.argv", ["", str(tmp_path), "--dtype", "float16", "--device", "cpu"])
    random_kandinsky.main()
    loaded = load_kandinsky(tmp_path, device=CPU, dtype=torch.float16)
    drawn = KandinskyBackbone(random_networks(TINY, device=CPU, dtype=torch.float16), device=CPU)
    loaded.embed(torch.rand(1, 3, 128, 128), torch.ones(1, 1, 128, 128))
    for part in ("unet", "movq", "image_encoder"):
        written, expected = (getattr(each, part).state_dict() for each in (loaded, drawn))
        assert all(torch.equal(expected[name], value) for name, value in written.items())


def test_random_weights_are_seeded() -> None:
    first, again, other = (
        random_networks(TINY, device=CPU, seed=seed).unet.conv_in.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("model", ["compact", "kandinsky-2-2"])
def test_full_size_runs_on_meta_tensors(model: str) -> None:
    """The path of --random-weights at full size, without its memory: nothing in it depends on values."""
    segmenter = random_segmenter(model, device=torch.device("meta"), dtype=torch.bfloat16)
    backbone = segmenter.backbone
    images = torch.empty(1, 3, backbone.image_size, backbone.image_size, device="meta")
    latents = backbone.encode(images)
    assert backbone.decode(latents).shape == images.shape
    assert latents.dtype == torch.bfloat16


# --- the record and the command


NUMBERS = {"seconds", "low", "high", "flop", "ceiling_share"}


def check_record(record: dict[str, Any], shots: int, batch_size: int) -> None:
    assert record == json.loads(json.dumps(record))
    assert record["format"] == "diffseg-bench-1"
    assert (record["shots"], record["batch_size"]) == (shots, batch_size)
    assert {"device", "processor", "dtype", "image_size", "fingerprint", "random_weights"} <= set(record)
    assert {"diffseg", "python", "torch", "cuda", "diffusers", "transformers"} == set(record["versions"])
    assert record["ceiling"]["flop_per_second"] == max(record["ceiling"]["by_side"].values()) > 0
    assert record["peak_bytes"] > 0
    for half, names in (("support", SUPPORT_STAGES), ("query", QUERY_STAGES)):
        figures = record[half]
        assert tuple(row["stage"] for row in figures["stages"]) == names
        assert all(set(row) == {*NUMBERS, "stage", "peak_bytes"} for row in figures["stages"])
        assert set(figures["whole"]) == {*NUMBERS, "peak_bytes"} and set(figures["sum"]) == NUMBERS
        assert sum(row["flop"] for row in figures["stages"]) == pytest.approx(figures["whole"]["flop"])
        for row in [*figures["stages"], figures["sum"], figures["whole"]]:
            assert 0 < row["low"] <= row["seconds"] <= row["high"]
        difference = figures["sum"]["seconds"] - figures["whole"]["seconds"]
        assert figures["sum_minus_whole_seconds"] == pytest.approx(difference)
        assert figures["first_run_seconds"] > 0


def test_record_of_kandinsky(small_kandinsky: Segmenter) -> None:
    record = measure(small_kandinsky, shots=2, batch_size=2, repeats=2, random_weights=True)
    check_record(record, 2, 2)
    assert (record["model"], record["head"]) == ("kandinsky-2-2", "pam")
    work = {row["stage"]: row["flop"] for row in record["query"]["stages"]}
    assert all(work[stage] > 0 for stage in ("edges", "encode", "look", "SCM", "PAM", "decode"))
    picture = draw_chart(record)
    assert picture.shape[1:] == (1000, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_command_on_the_shipped_model(tmp_path: Path) -> None:
    arguments = ("--repeats", "1", "--image-size", "128", "--device", "cpu", "--out", tmp_path / "o")
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"compact (pam), 128 px, batch 1, 1-shot, {describe_device(CPU)}, float32"
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [
        *(name.split()[0] for half in (SUPPORT_STAGES, QUERY_STAGES) for name in (*half, "sum", "undivided"))
    ]
    assert "Using the compact model" in result.stderr
    check_record(json.loads((tmp_path / "o" / "bench.json").read_text()), 1, 1)
    assert Image.open(tmp_path / "o" / "bench.png").width == 1000


def test_command_gives_json() -> None:
    result = run("--random-weights", "--repeats", "1", "--image-size", "64", "--device", "cpu", "--json")
    record = json.loads(result.stdout)
    check_record(record, 1, 1)
    assert record["random_weights"] and record["fingerprint"] == "random-0"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--image-size", "200"], ExitCode.USAGE, "--image-size 200 is no multiple of 64."),
        (["--random-weights", "--model", "nothing"], ExitCode.USAGE, "Unknown model 'nothing'"),
        (["--random-weights", "--checkpoint", "a"], ExitCode.USAGE, "contradict each other"),
        (["--device", "cuda:77"], ExitCode.USAGE, "cuda:77"),
    ],
)
def test_command_refuses(arguments: list[str], code: int, text: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code and text in result.stderr and not result.stdout


def test_timesteps_reach_random_kandinsky() -> None:
    with pytest.raises(UsageError, match="Unknown model"):
        prepare_segmenter(ModelChoice("nothing"))
    segmenter = prepare_segmenter(ModelChoice(device="cpu", timesteps=(20, 50)), random_weights=True)
    assert segmenter.settings.timesteps == (20, 50)


def test_pictures_are_photographs_in_size(tmp_path: Path) -> None:
    pairs, queries = draw_images(tmp_path, shots=2, batch_size=1)
    assert [Image.open(path).size[::-1] for path in (*pairs[1], *queries)] == [(60, 80)] * 3
    assert 0.05 < np.mean(np.asarray(Image.open(pairs[0][1])) > 0) < 0.5


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (form_seconds(0.0123), "12.3 ms"),
        (form_seconds(2), "2.00 s"),
        (form_flop(3.5e12), "3.50 TFLOP"),
        (form_flop(2e9), "2.00 GFLOP"),
        (form_flop(0), "0.00 MFLOP"),
    ],
)
def test_figures_have_units(text: str, wanted: str) -> None:
    assert text == wanted
