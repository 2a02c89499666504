"""Every verb over a frozen backbone in each number format, with modules in float32 and in its own."""

import json
from pathlib import Path

import pytest
import tiny_kandinsky
import torch
from test_training_runs import make_classes
from torch import nn
from typer.testing import CliRunner

from diffseg_cli import adaptation, assembly
from diffseg_cli.cli.main import app
from diffseg_cli.config import AdaptConfig
from diffseg_cli.losses import backward_scaled
from diffseg_cli.training import jobs
from diffseg_cli.training.run_state import MODULES
from diffseg_cli.weights.checkpoint import read_checkpoint_info

FORMATS = ["float32", "bfloat16"]  # a CPU emulates float16: minutes for what takes seconds


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classes(tmp_path_factory.mktemp("classes"), pictures=4)


@pytest.fixture(scope="module")
def kandinsky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_kandinsky.build(tmp_path_factory.mktemp("kandinsky"))


def run(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_verb_runs_in_every_format(
    classes: Path, kandinsky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Training keeps modules in float32, all other verbs have them in the backbone's format."""
    for module in (assembly, jobs):  # as given by --dtype, without the warning of a CPU that emulates it
        monkeypatch.setattr(module, "resolve_dtype", lambda *_, **__: getattr(torch, dtype))
    trained = tmp_path / "out" / MODULES
    words = ["--root", classes, "--model", kandinsky, "--device", "cpu"]
    run("train", *words, "--out", trained.parent, "--steps", "2", "--batch-size", "2", "--views", "1")
    config = read_checkpoint_info(trained).config
    assert config["presence"]["weights"] and config["pam"]["channel_dropout"] == 0

    image, query = classes / "ball" / "0.jpg", classes / "ball" / "1.jpg"
    common = ["-s", image, "-m", image.with_suffix(".png"), "-q", query, "--model", kandinsky]
    common += ["--checkpoint", trained, "--device", "cpu", "--json", "--out", tmp_path / "found"]
    (line,) = run("segment", *common).splitlines()
    assert 0 <= json.loads(line)["presence"] <= 1
    assert json.loads(run("attn", *common, "--layers"))["dtype"] == dtype
    figures = run("evaluate", *words, "--checkpoint", trained, "--episodes-per-class", "1", "--json")
    assert json.loads(figures)["episodes"] == 2

    segmenter = assembly.load_segmenter(str(kandinsky), trained, "cpu")
    assert {p.dtype for p in segmenter.trained.modules.parameters()} == {getattr(torch, dtype)}
    found = adaptation._found  # random modules find nothing better for one step, and are to move all the same
    monkeypatch.setattr(adaptation, "_found", lambda *given: 0 * found(*given))
    config = AdaptConfig(steps=1, batch_size=1, query_views=1, support_views=2)
    adapted = segmenter.adapt([(each, each.with_suffix(".png")) for each in (image, query)], config=config)
    assert adapted.digest != segmenter.digest


def test_gradients_through_float16_are_not_rounded_to_zero() -> None:
    parameter = nn.Parameter(torch.ones(4))
    loss = (parameter.half() * 1e-2).float().sum() * 1e-7
    backward_scaled(loss, [parameter], torch.float16)
    torch.testing.assert_close(parameter.grad, torch.full((4,), 1e-9), rtol=0.05, atol=0)
