"""The presence score: calibrated, ordered, and drawn from honest episodes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffseg_cli.datasets.episode import FewShotDataset, Sample, group_by_class
from diffseg_cli.errors import UsageError
from diffseg_cli.evaluation.metrics import roc_auc
from diffseg_cli.presence import PresenceCalibration, presence_features
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.training.plots import write_reliability
from diffseg_cli.training.presence_fit import (
    PresenceSample,
    calibrate,
    calibrate_checkpoint,
    draw_presence_episode,
    fit_calibration,
    presence_report,
    reliability,
)
from diffseg_cli.weights.checkpoint import CheckpointInfo, read_checkpoint_info, write_checkpoint


def dataset() -> FewShotDataset:
    samples = [
        Sample(Path(f"{name}{i}.jpg"), Path(f"{name}{i}.png"), f"{source}/{name}", present)
        for source in ("voc", "coco")
        for name, present in (("cat", ("dog",)), ("dog", ()), ("bus", ()))
        for i in range(3)
    ]
    return group_by_class(samples)


def test_absent_episodes_are_of_the_same_source_and_do_not_hold_the_object() -> None:
    data = dataset()
    for index in range(120):
        episode, present = draw_presence_episode(data, index, shots=1, seed=0)
        assert present == (index % 2 == 0)
        query = data.samples[episode.query]
        if not present:
            source, thing = episode.class_name.split("/")
            assert query.class_name.startswith(source) and query.class_name != episode.class_name
            assert thing not in query.present
            supports = draw_presence_episode(data, index - 1, shots=1, seed=0)[0].support
            assert episode.support == supports


def test_calibration_finds_the_odds_it_was_made_from() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 3, generator=generator) * torch.tensor([0.1, 2.0, 1.0]) + 0.5
    true = PresenceCalibration((8.0, 0.5, -1.0), -3.0)
    present = (torch.rand(4000, generator=generator) < true.score(features)).float()
    found = fit_calibration(features, present)
    assert (found.score(features) - true.score(features)).abs().mean() < 0.02
    sample = PresenceSample(features, present, ["a/x"] * 4000)
    report = presence_report(found.score(features), sample, {"all": ["a/x"]})
    assert report["auc all"] > 0.6 and report["calibration error"] < 0.03
    assert sum(share for _, _, share in reliability(found.score(features), present)) == pytest.approx(1)


def test_features_see_whether_the_region_is_like_the_object(small_segmenter: Segmenter) -> None:
    backbone = small_segmenter.backbone
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 128, 128, generator=generator)
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 32:96, 32:96] = 1
    support = small_segmenter.encode_frames(image, mask)
    latents = backbone.encode(image)
    output = small_segmenter.forward(latents, None, support)

    right = presence_features(dataclasses.replace(output, mask_image=mask), latents, support)[0]
    wrong = presence_features(dataclasses.replace(output, mask_image=1 - mask), latents, support)[0]
    assert right[0] == pytest.approx(1, abs=1e-3) and right[0] > wrong[0]
    assert right[2] == pytest.approx(1) and 0 <= right[1] <= 1
    empty = presence_features(dataclasses.replace(output, mask_image=0 * mask), latents, support)
    assert torch.isfinite(empty).all()


def test_the_prompts_share_is_that_of_the_best_sixty_fourth(small_segmenter: Segmenter) -> None:
    image, mask = torch.rand(1, 3, 128, 128), torch.zeros(1, 1, 128, 128)
    mask[..., 32:96, 32:96] = 1
    support, latents = small_segmenter.encode_frames(image, mask), small_segmenter.backbone.encode(image)
    output = small_segmenter.forward(latents, None, support)
    shares = torch.randperm(256).view(1, 1, 16, 16) / 256
    output = dataclasses.replace(output, scores=dataclasses.replace(output.scores, cross_map=shares))
    prompt = presence_features(output, latents, support)[0, 1]
    assert prompt.item() == pytest.approx((255 + 254 + 253 + 252) / 4 / 256)


def test_absent_thing_empties_the_mask(small_segmenter: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[10:40, 20:60] = True

    def with_bias(bias: float | None) -> Segmenter:
        calibration = None if bias is None else PresenceCalibration((0.0, 0.0, 0.0), bias)
        return small_segmenter.with_trained(
            dataclasses.replace(small_segmenter.trained, presence=calibration)
        )

    support = small_segmenter.encode_support([(image, mask)])
    sure, unsure = (
        with_bias(bias).segment(image, support, threshold=0.01, min_presence=0.5) for bias in (3, -3)
    )
    assert sure.presence == pytest.approx(0.953, abs=1e-3) and sure.mask.any()
    assert unsure.presence == pytest.approx(0.047, abs=1e-3) and not unsure.mask.any()
    assert np.array_equal(sure.probability, unsure.probability)
    assert with_bias(-3).segment(image, support, threshold=0.01).mask.any()
    presence = sure.presence
    assert presence is not None
    for least, found in ((presence, True), (np.nextafter(presence, 1), False)):  # as sure as asked is enough
        answer = with_bias(3).segment(image, support, threshold=0.01, min_presence=float(least))
        assert answer.mask.any() == found
    with pytest.raises(UsageError, match="presence"):
        with_bias(None).segment(image, support, min_presence=0.5)


def test_each_half_of_the_classes_is_judged_by_the_other() -> None:
    """A feature that means the opposite in the other half cannot be learnt from it."""
    names = ["a", "b"] * 200
    present = torch.randint(0, 2, (400,), generator=torch.Generator().manual_seed(0)).float()
    sign = torch.tensor([1.0, -1.0] * 200)
    features = torch.stack([(2 * present - 1) * sign, torch.zeros(400), torch.zeros(400)], dim=1)
    _, scores = calibrate(PresenceSample(features, present, names))
    assert roc_auc(scores[present > 0], scores[present <= 0]) < 0.1


def test_few_classes_keep_the_score_they_started_with(small_segmenter: Segmenter, tmp_path: Path) -> None:
    backbone = small_segmenter.backbone
    config = {"presence": {"weights": [1.0, 2.0, 3.0], "bias": -1.0}}
    info = CheckpointInfo(backbone.name, backbone.fingerprint, config, {"init": "shipped"})
    path = tmp_path / "modules.safetensors"
    write_checkpoint(path, {}, info)
    cache = FeatureCache.__new__(FeatureCache)
    cache.dataset, cache.backbone = dataset(), backbone
    assert calibrate_checkpoint(path, cache) == ({}, [])
    assert read_checkpoint_info(path).config == config


def test_reliability_is_drawn_over_the_whole_scale(tmp_path: Path) -> None:
    write_reliability([(0.3, 0.2, 0.5), (0.7, 0.9, 0.5)], tmp_path / "presence.png")
    with Image.open(tmp_path / "presence.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 80).nonzero()
    curve = blue[1][blue[0] > 60]  # below the legend
    width = pixels.shape[1]
    assert 0.3 * width < curve.min() < 0.42 * width and 0.66 * width < curve.max() < 0.78 * width
