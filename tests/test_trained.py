"""One value for all that was trained, and one digest of everything that decides an answer."""

import copy
import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import tiny_kandinsky as tiny
import torch

from diffseg_cli.config import SegmentConfig
from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.trained import untrained
from diffseg_cli.weights.kandinsky import load_kandinsky


@pytest.mark.parametrize(
    "change",
    [
        {"knowledge": "cross"},
        {"presence": PresenceCalibration((1.0, 2.0, 3.0), 0.0)},
        {"mask_gamma": 0.9},
        {"image_size": 256},
    ],
)
def test_every_value_is_in_the_digest(small_segmenter: Segmenter, change: dict[str, Any]) -> None:
    trained = small_segmenter.trained
    changed = replace(trained, **change)
    assert changed.digest != trained.digest
    assert small_segmenter.with_trained(changed).digest != small_segmenter.digest


def test_every_tensor_is_in_the_digest_and_its_source_is_not(small_segmenter: Segmenter) -> None:
    trained = small_segmenter.trained
    assert replace(trained, source="moved").digest == trained.digest
    modules = copy.deepcopy(trained.modules)
    assert replace(trained, modules=modules).digest == trained.digest
    modules["pam"].get_parameter(next(name for name, _ in modules["pam"].named_parameters())).add_(1e-6)
    assert replace(trained, modules=modules).digest != trained.digest
    modules.pop("pam")
    assert replace(trained, modules=modules).digest != trained.digest


def test_what_else_decides_an_answer_is_in_the_digest_of_the_segmenter(small_segmenter: Segmenter) -> None:
    edges = copy.deepcopy(small_segmenter.hed)
    assert edges is not None
    next(edges.parameters()).add_(1e-3)
    others = [
        replace(small_segmenter, head="attention"),
        replace(small_segmenter, hed=edges),
        replace(small_segmenter, settings=SegmentConfig(fusion="mean")),
    ]
    digests = [small_segmenter.digest, *(other.digest for other in others)]
    assert len(set(digests)) == len(digests)
    assert replace(small_segmenter, settings=SegmentConfig(timesteps=(9,))).digest == digests[0]  # no noise


def test_the_record_is_json_and_names_the_timesteps_of_a_look_with_noise(
    small_segmenter: Segmenter, tmp_path: Any
) -> None:
    record = small_segmenter.record()
    assert json.loads(json.dumps(record)) == record
    assert record["timesteps"] == [] and record["trained"]["modules"] == ["pam", "scm"]
    backbone = load_kandinsky(tiny.build(tmp_path), device=torch.device("cpu"), dtype=torch.float32)
    settings = SegmentConfig(timesteps=(10, 50))
    noisy = Segmenter(backbone=backbone, trained=untrained(), hed=None, head="attention", settings=settings)
    assert noisy.record()["timesteps"] == [10, 50]


def test_a_segmenter_cannot_be_changed(small_segmenter: Segmenter) -> None:
    with pytest.raises(FrozenInstanceError):
        small_segmenter.trained = untrained()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        small_segmenter.trained.mask_gamma = 2.0  # type: ignore[misc]
