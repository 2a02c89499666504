"""Backbones answer for themselves: one that nothing else has heard of works by its row in the table alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffseg_cli import load_segmenter
from diffseg_cli.choices.training import FormChoice, TrainPlan
from diffseg_cli.errors import UsageError
from diffseg_cli.loading import BACKBONES, BackboneKind, BackboneRequest, build_compact, load_edge_detector
from diffseg_cli.models.backbone import Backbone
from diffseg_cli.models.compact import CompactBackbone
from diffseg_cli.models.hed import HED
from diffseg_cli.training.jobs import check_plan, modules_of, start_of
from tests.conftest import SMALL


class Third(CompactBackbone):
    """A backbone of another name with other habits."""

    name = "third"
    description = "a third model"
    resizable = False
    edge_detector = "hed"


def load_third(asked: BackboneRequest) -> Backbone:
    small = build_compact(SMALL)
    small.__class__ = Third
    small.fingerprint = "third-weights"
    return small.to(device=asked.device, dtype=asked.dtype)


@pytest.fixture(autouse=True)
def third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "third", BackboneKind(Third, load_third, modules=None))


def test_a_third_backbone_is_a_row_of_the_table() -> None:
    segmenter = load_segmenter("third", device="cpu")
    assert segmenter.description.startswith("a third model on cpu") and segmenter.head == "attention"
    image, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), bool)
    image[20:40, 30:60], mask[20:40, 30:60] = 255, True
    prediction = segmenter.segment(image, segmenter.encode_support([(image, mask)]))
    assert prediction.probability.shape == (60, 80)
    assert isinstance(load_edge_detector(segmenter.backbone), HED)


def test_training_asks_the_backbone_what_it_can(tmp_path: Path) -> None:
    plan = TrainPlan(tmp_path, tmp_path / "out", model="third")
    assert start_of(plan) is None  # nothing is shipped for it, so random weights are the default
    check_plan(plan, modules_of(plan))
    for what, wrong in (
        ("own size only", replace(plan, form=FormChoice(image_size=256))),
        ("No trained modules are shipped", replace(plan, init="shipped")),
        (
            "stands in for a diffusion model",
            replace(plan, model="kandinsky-2-2", form=FormChoice(knowledge="resnet")),
        ),
        ("Unknown model", replace(plan, model="fourth")),
    ):
        with pytest.raises(UsageError, match=what):
            check_plan(wrong, modules_of(wrong))


def test_blocks_are_the_latents() -> None:
    backbone = build_compact(SMALL)
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    blocks = backbone.encode_blocks(images)
    assert len(blocks) == len(backbone.latent_groups)
    torch.testing.assert_close(backbone.stack_blocks(blocks), backbone.encode(images), rtol=0, atol=0)
