"""Peers as the real transformers classes at tiny size; no weights are needed and none are fetched."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SegGptConfig,
    SegGptForImageSegmentation,
)

from diffseg_cli.errors import WeightsError
from diffseg_cli.evaluation.peers import DEVIATION, MEAN, MatcherLite, SegGpt, load_peer

CPU = torch.device("cpu")


def tiny_seggpt() -> SegGptForImageSegmentation:
    torch.manual_seed(0)
    config = SegGptConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=[64, 32],
        patch_size=16,
        pretrain_image_size=32,
        decoder_hidden_size=8,
        merge_index=0,
        intermediate_hidden_state_indices=[0, 1, 2, 3],
    )
    return SegGptForImageSegmentation(config)


def tiny_dino() -> Dinov2Model:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8, mlp_ratio=2
    )
    return Dinov2Model(config)


def tiny_sam() -> SamModel:
    torch.manual_seed(0)
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=32,
            output_channels=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
            global_attn_indexes=[0],
            mlp_dim=64,
            window_size=2,
            num_pos_feats=16,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=32, mlp_dim=64, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )
    return SamModel(config)


def picture(size_hw: tuple[int, int], box: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).integers(90, 120, (*size_hw, 3), dtype=np.uint8)
    mask = np.zeros(size_hw, bool)
    mask[box] = True
    image[mask] = (230, 40, 30)
    return image, mask


SUPPORTS = [
    picture((40, 60), (slice(5, 30), slice(10, 40))),
    picture((50, 50), (slice(10, 40), slice(15, 45))),
]
QUERY, TRUTH = picture((48, 72), (slice(12, 36), slice(24, 60)))


def test_seggpt_reads_the_lower_half_of_what_it_paints(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = SegGpt(tiny_seggpt(), CPU)
    given = {}

    def paint(**inputs: object) -> object:
        given.update(inputs)
        white, black = ((value - np.array(MEAN)) / DEVIATION for value in (1.0, 0.0))
        painted = torch.zeros(2, 3, 64, 32)
        painted[:] = torch.tensor(black, dtype=torch.float32)[:, None, None]
        painted[:, :, 32:, :16] = torch.tensor(white, dtype=torch.float32)[:, None, None]
        return type("Output", (), {"pred_masks": painted})()

    monkeypatch.setattr(peer.model, "forward", paint)
    mask = peer.predict(QUERY, SUPPORTS)
    assert mask.shape == QUERY.shape[:2] and mask[:, :30].all() and not mask[:, 42:].any()
    assert given["feature_ensemble"] is True
    assert given["pixel_values"].shape == given["prompt_masks"].shape == (2, 3, 32, 32)
    values = given["prompt_masks"] * torch.tensor(DEVIATION)[:, None, None]
    values = values + torch.tensor(MEAN)[:, None, None]
    assert torch.allclose(values, values.round(), atol=1e-5)  # black and white


@pytest.mark.parametrize("shots", [1, 2])
def test_seggpt_runs_whole(shots: int) -> None:
    peer = SegGpt(tiny_seggpt(), CPU)
    mask = peer.predict(QUERY, SUPPORTS[:shots])
    assert mask.shape == QUERY.shape[:2] and mask.dtype == bool and peer.weights_mib > 0


@pytest.mark.parametrize("shots", [1, 2])
def test_matcher_lite_points_lie_on_the_object(shots: int) -> None:
    peer = MatcherLite(tiny_dino(), tiny_sam(), CPU, patches=8)
    score, points = peer._match(QUERY, SUPPORTS[:shots])
    assert score.shape == (8, 8) and 1 <= len(points) <= 8
    rows, columns = (points[:, 1] * 48).long(), (points[:, 0] * 72).long()
    assert TRUTH[rows.numpy(), columns.numpy()].mean() > 0.7
    mask = peer.predict(QUERY, SUPPORTS[:shots])
    assert mask.shape == QUERY.shape[:2] and mask.dtype == bool


def test_matcher_lite_keeps_the_mask_that_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = MatcherLite(tiny_dino(), tiny_sam(), CPU, patches=8)
    candidates = [np.zeros_like(TRUTH), TRUTH, np.ones_like(TRUTH)]
    monkeypatch.setattr(peer, "_draw", lambda *_: candidates)
    score = torch.from_numpy(np.where(TRUTH[3::6, 4::9], 1.0, -1.0)).float()
    monkeypatch.setattr(peer, "_match", lambda *_: (score, torch.tensor([[0.5, 0.5]])))
    assert np.array_equal(peer.predict(QUERY, SUPPORTS), TRUTH)
    monkeypatch.setattr(peer, "_match", lambda *_: (score, torch.zeros(0, 2)))
    assert not peer.predict(QUERY, SUPPORTS).any()


def test_matcher_lite_draws_in_the_size_of_the_query() -> None:
    peer = MatcherLite(tiny_dino(), tiny_sam(), CPU, patches=8)
    masks = peer._draw(QUERY, torch.tensor([[0.5, 0.5], [0.6, 0.4]]))
    assert len(masks) == 3 + 2 * 3 and {mask.shape for mask in masks} == {QUERY.shape[:2]}


def test_weights_come_from_a_folder_or_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_seggpt().save_pretrained(tmp_path / "seggpt")
    tiny_dino().save_pretrained(tmp_path / "dinov2")
    assert isinstance(load_peer("seggpt", tmp_path, CPU), SegGpt)
    with pytest.raises(WeightsError, match="sam was not found on disk") as caught:
        load_peer("matcher-lite", tmp_path, CPU)
    assert caught.value.hint and "hf download facebook/sam-vit-base" in caught.value.hint
    tiny_sam().save_pretrained(tmp_path / "sam")
    assert isinstance(load_peer("matcher-lite", tmp_path, CPU), MatcherLite)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match=r"BAAI/seggpt-vit-large was not found in the local"):
        load_peer("seggpt", None, CPU)
