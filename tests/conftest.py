"""Shared pieces: a segmenter of the real classes at small size, and tests that never reach a hub."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from diffseg_cli.config import CompactConfig, PamConfig, ScmConfig
from diffseg_cli.loading import build_compact, build_modules
from diffseg_cli.models.hed import HED
from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.trained import Trained

SMALL = CompactConfig(variant=0, taps=(4, 7, 10, 14, 15), image_size=128)


def make_small_segmenter() -> Segmenter:
    """Compact backbone, HED, SCM and PAM with seeded random weights at 128 px; SCM's outputs are not zero."""
    torch.manual_seed(0)
    backbone = build_compact(SMALL)
    backbone.fingerprint = "small"
    modules = build_modules(backbone, ScmConfig(width=16), PamConfig(width=16, head_width=8))
    for parameter in modules["scm"].outputs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    hed = HED().eval().requires_grad_(False)
    trained = Trained(modules.eval().requires_grad_(False))
    return Segmenter(backbone=backbone, trained=trained, hed=hed, head="pam")


def make_swift_segmenter(small: Segmenter) -> Segmenter:
    """Its backbone with the attention head and a presence score: for runs over many pictures."""
    trained = Trained(torch.nn.ModuleDict(), presence=PresenceCalibration((2.0, 1.0, 1.0), -1.0))
    return Segmenter(backbone=small.backbone, trained=trained, hed=None, head="attention")


@pytest.fixture(scope="session")
def small_segmenter() -> Segmenter:
    return make_small_segmenter()
