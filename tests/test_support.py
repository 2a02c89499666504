"""Encoded supports as one value."""

import pytest
import torch

from diffseg_cli.errors import WeightsError
from diffseg_cli.models.support import TENSORS, SupportFeatures
from diffseg_cli.segmenter import Segmenter

SHAPES = {"latents": (5, 3, 4), "masks": (1, 3, 4), "image_embeds": (2, 5)}


@pytest.fixture
def support() -> SupportFeatures:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.rand(1, 4, *SHAPES[name], generator=generator) for name in TENSORS]
    return SupportFeatures("compact", "abc", *tensors)


def test_supports_joined_from_parts_are_the_whole(support: SupportFeatures) -> None:
    assert support.shots == 4
    again = SupportFeatures.join([support.choose([0]), support.choose([1, 2]), support.choose([3])])
    assert again.digest == support.digest
    for name in TENSORS:
        torch.testing.assert_close(getattr(again, name), getattr(support, name), rtol=0, atol=0)


def test_supports_of_two_models_are_not_joined(support: SupportFeatures) -> None:
    other = SupportFeatures("compact", "def", support.latents, support.masks, support.image_embeds)
    for parts in ([], [support, other]):
        with pytest.raises(ValueError, match="one backbone"):
            SupportFeatures.join(parts)


@pytest.mark.parametrize("name", TENSORS)
def test_the_digest_feels_every_tensor_and_the_order(support: SupportFeatures, name: str) -> None:
    changed = support.to(copy=True)
    assert changed.digest == support.digest
    getattr(changed, name)[0, 2, ..., -1] += 1e-3
    assert changed.digest != support.digest
    assert support.choose([1, 0, 2, 3]).digest != support.digest
    assert support.to(dtype=torch.bfloat16).digest != support.digest


def test_a_copy_shares_no_memory_and_no_copy_does(support: SupportFeatures) -> None:
    assert support.to().latents.data_ptr() == support.latents.data_ptr()
    assert support.to(copy=True).latents.data_ptr() != support.latents.data_ptr()


def test_only_the_model_that_encoded_them_takes_them(small_segmenter: Segmenter) -> None:
    backbone = small_segmenter.backbone
    tensors = [torch.zeros(1, 1, *SHAPES[name]) for name in TENSORS]
    SupportFeatures.of(backbone, *tensors).check_made_by(backbone)
    for name, fingerprint in ((backbone.name, "other"), ("other", backbone.fingerprint)):
        with pytest.raises(WeightsError, match="were encoded by"):
            SupportFeatures(name, fingerprint, *tensors).check_made_by(backbone)
