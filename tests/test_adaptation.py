"""Adaptation of SCM and PAM to one concept: it learns, it judges itself, and it leaves its start alone."""

import time
from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_swift_segmenter

from diffseg_cli import adaptation
from diffseg_cli.adaptation import Negative, SupportViews, adapt_steps
from diffseg_cli.config import AdaptConfig
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.evaluation.adapted_prototype import adapt_metric
from diffseg_cli.frames import from_frame, mask_to_frame
from diffseg_cli.models.prototype import THRESHOLD, prototype_scores
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.views import Pair, _blurred, recoloured, zoomed_in, zoomed_out

# Random modules have all to gain, so nothing holds them back.
QUICK = AdaptConfig(steps=40, batch_size=2, lr=5e-3, query_views=3, support_views=2, reach=1.0)


def striped_patch(seed: int) -> Pair:
    """A patch of red stripes somewhere on grey noise: a texture no class of objects has."""
    generator = np.random.default_rng(seed)
    image = np.repeat(generator.integers(110, 146, (96, 128, 1)), 3, axis=2).astype(np.uint8)
    top, left = int(generator.integers(0, 40)), int(generator.integers(0, 56))
    mask = np.zeros((96, 128), dtype=bool)
    mask[top : top + 56, left : left + 72] = True
    stripes = np.where((np.arange(128) // 6 % 2)[:, None], [255, 0, 0], [0, 0, 0]).astype(np.uint8)
    image[mask] = np.broadcast_to(stripes[None], image.shape)[mask]
    return image, mask


def mean_iou(segmenter: Segmenter, pairs: list[Pair], queries: list[Pair]) -> float:
    support = segmenter.encode_support(pairs)
    ious = []
    for image, mask in queries:
        found = segmenter.segment(image, support, refine=False).mask
        ious.append((found & mask).sum() / (found | mask).sum())
    return float(np.mean(ious))


def adapted_by(segmenter: Segmenter, pairs: list[Pair], negatives: Sequence[Negative] = ()) -> Segmenter:
    steps = list(adapt_steps(segmenter, pairs, negatives=negatives, config=QUICK))
    encoded = len(pairs) + len(negatives)
    assert [step.step for step in steps] == [*[0] * encoded, *range(1, QUICK.steps + 1)]
    assert [step.adapted is None for step in steps[:-1]] == [True] * (len(steps) - 1)
    assert steps[-1].adapted is not None
    return segmenter.with_trained(steps[-1].adapted.trained)


def test_it_learns_a_texture_and_leaves_its_start_alone(small_segmenter: Segmenter) -> None:
    pairs, queries = [striped_patch(i) for i in range(4)], [striped_patch(i) for i in range(10, 16)]
    before, digest = mean_iou(small_segmenter, pairs, queries), small_segmenter.trained.digest
    adapted = adapted_by(small_segmenter, pairs)
    assert (
        mean_iou(adapted, pairs, queries) > before + 0.2
    )  # the decoder is random, so this is far from all there is
    assert small_segmenter.trained.digest == digest
    assert mean_iou(small_segmenter, pairs, queries) == before
    assert not any(p.requires_grad for p in adapted.trained.modules.parameters())


def test_a_useless_support_costs_little(small_segmenter: Segmenter) -> None:
    """One of three masks marks places at random; other images lose at most 0.1 against the plain answer."""
    queries = [striped_patch(i) for i in range(10, 16)]
    start = adapted_by(small_segmenter, [striped_patch(i) for i in range(4)])
    pairs = [striped_patch(i) for i in range(5, 8)]
    noise = np.random.default_rng(0).random((6, 8)) < 0.3
    pairs[1] = pairs[1][0], noise.repeat(16, axis=0).repeat(16, axis=1)
    adapted = start.adapt(pairs, config=replace(QUICK, lr=AdaptConfig.lr, reach=AdaptConfig.reach))
    assert mean_iou(adapted, pairs, queries) > mean_iou(start, pairs, queries) - 0.1


def test_the_same_seed_gives_the_same_modules(small_segmenter: Segmenter) -> None:
    config, pairs = replace(QUICK, steps=3), [striped_patch(i) for i in range(3)]

    def digest(seed: int) -> str:
        *_, last = adapt_steps(small_segmenter, pairs, config=config, seed=seed)
        assert last.adapted is not None
        moved = last.adapted.trained
        return moved.digest if last.adapted.reach else f"kept {last.loss}"

    assert digest(1) == digest(1) != digest(2)


def test_steps_that_find_the_supports_worse_are_not_followed(
    small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.4, 0.3])
    monkeypatch.setattr(adaptation, "_found", lambda *_: next(found))
    *_, last = adapt_steps(
        small_segmenter, [striped_patch(i) for i in range(3)], config=replace(QUICK, steps=1)
    )
    assert last.adapted is not None
    assert (last.adapted.reach, last.adapted.before, last.adapted.after) == (0, 0.4, 0.4)
    assert last.adapted.trained is small_segmenter.trained


@pytest.mark.parametrize(("count", "encodes"), [(1, False), (2, True)])
def test_what_is_found_already_takes_no_steps(
    small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch, count: int, encodes: bool
) -> None:
    """And with one support alone the model does not even look."""
    encoded = Mock(side_effect=small_segmenter.backbone.encode)
    monkeypatch.setattr(small_segmenter.backbone, "encode", encoded)
    config, pairs = replace(QUICK, found_enough=0.0), [striped_patch(i) for i in range(count)]
    *before, last = adapt_steps(small_segmenter, pairs, config=config)
    assert [step.step for step in before] == [0] * (count if encodes else 0)
    assert last.adapted is not None and encoded.called == encodes
    assert (last.step, last.adapted.reach, last.adapted.trained) == (QUICK.steps, 0, small_segmenter.trained)
    # What is not it was given to be learned from, however well the object is found.
    steps = adapt_steps(small_segmenter, pairs, config=config, negatives=[(striped_patch(20)[0], None)])
    assert [next(steps).step for _ in range(count + 2)][-1] == 1


def test_reach_lies_between_start_and_end(small_segmenter: Segmenter) -> None:
    def weight(reach: float) -> torch.Tensor:
        config = replace(QUICK, steps=2, found_enough=2.0, reach=reach)
        *_, last = adapt_steps(small_segmenter, [striped_patch(0), striped_patch(1)], config=config)
        assert last.adapted is not None
        pam: torch.nn.Module = last.adapted.trained.modules["pam"]
        return pam.state_dict()["query_in.weight"]

    start = small_segmenter.trained.modules["pam"].state_dict()["query_in.weight"]
    assert torch.allclose(weight(0.5), (start + weight(1.0)) / 2, rtol=1e-3, atol=1e-4)  # in float16
    assert not torch.allclose(weight(0.5), start, rtol=1e-3, atol=1e-4)


def test_negatives_lower_what_is_marked_on_them(small_segmenter: Segmenter) -> None:
    pairs = [striped_patch(i) for i in range(2)]
    image = striped_patch(20)[0]
    rotated = np.ascontiguousarray(image.transpose(1, 0, 2))  # stripes the other way are not the concept
    shares = []
    given: list[list[Negative]] = [[], [(rotated, None)]]
    for negatives in given:
        adapted = adapted_by(small_segmenter, pairs, negatives=negatives)
        support = adapted.encode_support(pairs)
        shares.append(adapted.segment(rotated, support).probability.mean())
    assert shares[1] < shares[0]


def test_of_a_negative_with_a_mask_only_the_marked_region_is_wrong(
    small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else is marked in that image costs nothing: it may be the concept."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    loss_of = adaptation.mask_loss
    monkeypatch.setattr(adaptation, "mask_loss", lambda *given: seen.append(given) or loss_of(*given))
    image, mask = striped_patch(20)
    config = replace(QUICK, steps=1, query_views=1, absent_share=1.0)
    list(adapt_steps(small_segmenter, [striped_patch(0)], negatives=[(image, mask)], config=config))
    ((decoded, true),) = seen
    size = small_segmenter.backbone.image_size
    wrong = F.interpolate(mask_to_frame(mask, size)[None], size=true.shape[-2:], mode="area")[0, 0] > 0
    assert not true.any()
    assert all(row[0][wrong].any() and not row[0][~wrong].any() for row in decoded)


def test_what_is_marked_on_negatives_decides_with_the_supports(
    small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supports that are found a little worse are worth it where far less is marked of what is not it."""
    pairs, config = [striped_patch(i) for i in range(3)], replace(QUICK, steps=1)
    for wrong_after, reach in ((0.1, config.reach), (0.45, 0.0)):
        found, wrong = iter([0.4, 0.3]), iter([wrong_after, 0.5])
        monkeypatch.setattr(adaptation, "_found", lambda *_, found=found: next(found))
        monkeypatch.setattr(adaptation, "_marked_wrongly", lambda *_, wrong=wrong: next(wrong))
        *_, last = adapt_steps(small_segmenter, pairs, negatives=[striped_patch(4)], config=config)
        assert last.adapted is not None
        assert last.adapted.reach == reach


def test_views_keep_image_and_mask_together() -> None:
    pair = striped_patch(0)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        for change in (zoomed_in, zoomed_out, recoloured):
            image, mask = change(pair, generator)
            assert image.shape[:2] == mask.shape
            assert image.dtype == np.uint8
            assert mask.any()
            inside, outside = image[mask].std(), image[~mask].std()
            assert inside > outside  # stripes vary more than noise, wherever they went


def test_views_of_a_large_image_are_made_of_a_smaller_one(
    small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def recorded(pair: Pair, generator: np.random.Generator) -> Pair:
        seen.append(pair[0].shape[:2])
        return recoloured(pair, generator)

    monkeypatch.setattr(adaptation, "recoloured", recorded)
    image, mask = np.zeros((1500, 2000, 3), np.uint8), np.zeros((1500, 2000), bool)
    mask[700:900, 900:1100] = True
    speck = np.zeros_like(mask)
    speck[700, 900] = True  # would be lost
    views = SupportViews(small_segmenter, AdaptConfig(), 0)
    views.add_support((image, mask))
    assert seen and max(max(shape) for shape in seen) <= 4 * small_segmenter.backbone.image_size
    views.add_support((image, speck))
    assert max(max(shape) for shape in seen) > 4 * small_segmenter.backbone.image_size


@pytest.mark.parametrize("size_hw", [(1, 1), (10, 40_000), (40_000, 10), (3000, 4000)])
def test_a_view_of_an_image_of_any_size_takes_a_moment(size_hw: tuple[int, int]) -> None:
    image, mask = np.zeros((*size_hw, 3), dtype=np.uint8), np.ones(size_hw, dtype=bool)
    began = time.process_time()
    seen, marked = zoomed_out((image, mask), np.random.default_rng(0))
    assert seen.shape[:2] == marked.shape and marked.any()
    assert time.process_time() - began < 20  # a blur at full size took minutes


def test_a_large_background_is_blurred_as_a_small_one() -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (1024, 768), interpolation=cv2.INTER_CUBIC)
    exact = cv2.GaussianBlur(image, (0, 0), 1024 / 20).astype(int)
    assert np.abs(_blurred(image) - exact).max() <= 4
    small = cv2.resize(image, (512, 384))
    np.testing.assert_array_equal(_blurred(small), cv2.GaussianBlur(small, (0, 0), 512 / 20))


def test_what_cannot_be_adapted_is_refused(small_segmenter: Segmenter) -> None:
    pair = striped_patch(0)
    with pytest.raises(UsageError, match="no trained modules"):
        next(adapt_steps(make_swift_segmenter(small_segmenter), [pair]))
    with pytest.raises(UsageError, match="up to 20 supports, and there are 21"):
        next(adapt_steps(small_segmenter, [pair] * 21))
    with pytest.raises(InputError, match="no support"):
        next(adapt_steps(small_segmenter, []))


def test_the_method_does_the_same(small_segmenter: Segmenter) -> None:
    pairs = [striped_patch(i) for i in range(2)]
    config = replace(QUICK, steps=2)
    *_, last = adapt_steps(small_segmenter, pairs, config=config, seed=3)
    assert last.adapted is not None
    adapted = small_segmenter.adapt(pairs, config=config, seed=3)
    assert adapted.trained.digest == last.adapted.trained.digest != small_segmenter.trained.digest


def test_the_prototype_line_learns_a_metric_from_the_same_episodes(small_segmenter: Segmenter) -> None:
    pairs, queries = [striped_patch(i) for i in range(3)], [striped_patch(i) for i in range(10, 16)]
    support = small_segmenter.encode_support(pairs)

    def iou(weights: torch.Tensor | None, threshold: float) -> float:
        ious = []
        for image, mask in queries:
            latents = small_segmenter.encode_queries([image]).latents
            score = prototype_scores(latents, support.latents, support.masks, weights)[0, 0]
            found = from_frame(score, (mask.shape[0], mask.shape[1])) > threshold
            ious.append((found & mask).sum() / (found | mask).sum())
        return float(np.mean(ious))

    metric = adapt_metric(small_segmenter, pairs)
    plain = iou(small_segmenter.backbone.channel_weights, THRESHOLD)
    assert iou(metric.channel_weights, metric.threshold) > plain + 0.3
