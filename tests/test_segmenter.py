"""The whole method through its public doors: sizes, batches, fusion, reuse of supports, and real pictures."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.config import SegmentConfig
from diffseg_cli.errors import DiffsegError, InputError, UsageError, WeightsError
from diffseg_cli.frames import crop_to_object
from diffseg_cli.models.knowledge import KNOWLEDGE
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.specks import drop_specks
from diffseg_cli.trained import untrained
from diffseg_cli.weights.checkpoint import read_checkpoint_info, write_checkpoint
from diffseg_cli.weights.files import find_weights, read_safetensors

EXAMPLES = Path(__file__).parents[1] / "examples"


def picture(seed: int, size_hw: tuple[int, int] = (90, 120)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size_hw[::-1], Image.Resampling.BICUBIC))


def box_mask(size_hw: tuple[int, int] = (90, 120)) -> np.ndarray:
    mask = np.zeros(size_hw, dtype=bool)
    mask[20:60, 30:80] = True
    return mask


@pytest.fixture(scope="module")
def support(small_segmenter: Segmenter) -> SupportFeatures:
    return small_segmenter.encode_support([(picture(0), box_mask()), (picture(1), box_mask())])


@pytest.mark.parametrize("size_hw", [(90, 120), (311, 47), (1, 1), (700, 500)])
def test_everything_has_the_querys_own_size(
    small_segmenter: Segmenter, support: SupportFeatures, size_hw: tuple[int, int]
) -> None:
    prediction = small_segmenter.segment(picture(2, size_hw), support)
    assert prediction.mask.shape == prediction.probability.shape == prediction.score_map.shape == size_hw
    assert prediction.mask.dtype == bool and prediction.probability.dtype == np.float32
    for values in (prediction.probability, prediction.score_map):
        assert values.min() >= 0 and values.max() <= 1
    assert np.array_equal(prediction.mask, drop_specks(prediction.probability > 0.5, "1%"))
    assert set(prediction.seconds) >= {"edges", "encode"}


def test_batch_order_and_size_do_not_change_an_answer() -> None:
    """But for the last digits of float32, on any processor and number of threads.

    With the shipped model: random features hardly differ from place to place, so min-max of the score map
    would stretch their rounding some thousand times.
    """
    shipped, bird = load_segmenter(device="cpu"), EXAMPLES / "bird"
    support = shipped.encode_support([(bird / "support.jpg", bird / "support_mask.png")])
    query = read_image(bird / "query.jpg")
    queries = [query, query[:, ::-1].copy(), query[::-1].copy()]
    alone = [shipped.segment(each, support, refine=False) for each in queries]
    together = shipped.segment_encoded(shipped.encode_queries(queries[::-1]), support, refine=False)[::-1]
    rounding = 32 * float(np.finfo(np.float32).eps)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.probability, other.probability, rtol=0, atol=rounding)
        np.testing.assert_allclose(one.score_map, other.score_map, rtol=0, atol=rounding)
        assert one.presence == pytest.approx(other.presence, abs=rounding)


def test_threshold_moves_the_mask_only(small_segmenter: Segmenter, support: SupportFeatures) -> None:
    probability = small_segmenter.segment(picture(3), support).probability
    levels = np.unique(probability)
    for index in (len(levels) // 4, 3 * len(levels) // 4):
        threshold = float(levels[index])  # exactly one of the values: what ties with it is background
        cut = small_segmenter.segment(picture(3), support, threshold=threshold, min_area="0")
        assert np.array_equal(cut.probability, probability) and cut.threshold == threshold
        assert np.array_equal(cut.mask, probability >= levels[index + 1])


@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_one_support_given_twice_answers_as_once(small_segmenter: Segmenter, fusion: str) -> None:
    segmenter = Segmenter(
        backbone=small_segmenter.backbone,
        trained=small_segmenter.trained,
        hed=small_segmenter.hed,
        head="pam",
        settings=SegmentConfig(fusion=fusion),
    )
    once, twice = (
        segmenter.segment(picture(5), segmenter.encode_support([(picture(0), box_mask())] * n))
        for n in (1, 2)
    )
    # The null key weighs less against twice the keys; everything else is the same.
    np.testing.assert_allclose(once.probability, twice.probability, atol=0.05 if fusion == "concat" else 1e-4)


def test_fusion_by_mean_is_one_support(support: SupportFeatures) -> None:
    fused = support.fused("mean")
    assert fused.latents.shape[1] == fused.image_embeds.shape[1] == 1
    for what in ("latents", "masks", "image_embeds"):
        given = getattr(support, what)
        assert what == "masks" or not torch.allclose(given[:, 0], given[:, 1])
        torch.testing.assert_close(getattr(fused, what)[:, 0], (given[:, 0] + given[:, 1]) / 2)
    assert support.fused("concat") is support


def test_scm_acts_through_edges(small_segmenter: Segmenter, support: SupportFeatures) -> None:
    latents = small_segmenter.backbone.encode(torch.rand(1, 3, 128, 128))
    edges = torch.rand(1, 1, 64, 64)
    with_edges = small_segmenter.forward(latents, edges, support).scores.score_map
    assert not torch.equal(with_edges, small_segmenter.forward(latents, None, support).scores.score_map)


def test_cross_maps_and_crops_are_settings(small_segmenter: Segmenter) -> None:
    pair = (picture(0), box_mask())

    def scores(**settings: str) -> NDArray[np.float32]:
        chosen = replace(small_segmenter, settings=SegmentConfig(**settings))
        return chosen.segment(picture(2), chosen.encode_support([pair])).score_map

    paper = scores()
    np.testing.assert_allclose(scores(cross_map="balanced"), paper, atol=2e-3)  # compact is, by its bias
    assert np.abs(scores(cross_map="contrast") - paper).max() > 0.05
    assert np.abs(scores(support_crop="whole") - paper).max() > 0.05
    digests = {
        replace(small_segmenter, settings=SegmentConfig(cross_map=cross_map)).digest
        for cross_map in ("paper", "balanced", "contrast")
    }
    assert len(digests) == 3


def test_attention_head_is_the_score_map(small_segmenter: Segmenter, support: SupportFeatures) -> None:
    bare = Segmenter(backbone=small_segmenter.backbone, trained=untrained(), hed=None, head="attention")
    prediction = bare.segment(picture(2), support)
    # The two are enlarged in one and in two steps, so they agree but for that.
    assert np.abs(prediction.probability - prediction.score_map).mean() < 0.03
    assert "without trained modules" in bare.description


def test_look_gives_the_maps_behind_the_answer(small_segmenter: Segmenter, support: SupportFeatures) -> None:
    names: list[str] = []
    look = small_segmenter.look(picture(2), support, on_layer=lambda layer: names.append(layer.name))
    assert names == ["stride_16", "stride_32"]
    assert look.image_hw == (90, 120) and look.scores.score_map.shape == (1, 1, 16, 16)


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_look_shows_the_very_map_the_answer_used(
    small_segmenter: Segmenter, support: SupportFeatures, knowledge: str
) -> None:
    segmenter = small_segmenter.with_trained(replace(small_segmenter.trained, knowledge=knowledge))
    queries = segmenter.encode_queries([picture(2)])
    used = segmenter.forward(queries.latents, queries.edges, support).scores
    shown = segmenter.look(picture(2), support).scores
    assert torch.equal(shown.score_map, used.score_map) and torch.equal(shown.raw_map, used.raw_map)


@pytest.mark.parametrize("where", ["encoder", "scm", "pam", "decoder"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_an_error(
    small_segmenter: Segmenter, support: SupportFeatures, where: str, bad: float
) -> None:
    """One weight that is no number would otherwise read as "nothing found"."""
    networks = {**small_segmenter.trained.modules, **dict(small_segmenter.backbone.named_children())}
    weight = next(parameter for parameter in networks[where].parameters() if parameter.dim() > 1)
    kept = weight.clone()
    weight[(0,) * weight.dim()] = bad
    try:
        with pytest.raises(DiffsegError, match=r"not finite .* half precision") as caught:
            small_segmenter.segment(picture(2), support)
        assert caught.value.hint is not None and "--dtype float32" in caught.value.hint
        if where in ("encoder", "scm"):
            with pytest.raises(DiffsegError, match="not finite"):
                small_segmenter.look(picture(2), support)
    finally:
        weight.copy_(kept)


def test_finish_takes_a_probability_of_any_size(small_segmenter: Segmenter) -> None:
    image, half = picture(0), torch.zeros(1, 2)
    half[0, 1] = 1
    mask, probability = small_segmenter.finish(half, image, refine=False)
    assert mask.shape == probability.shape == (90, 120) and mask[:, 60:].all() and not mask[:, :60].any()
    large = torch.from_numpy(probability)
    again = small_segmenter.finish(large, image, refine=False)[1]
    assert np.array_equal(again, probability)  # at the image's own size it is taken as it is
    absent, kept = small_segmenter.finish(large, image, refine=False, presence=0.2, min_presence=0.3)
    assert not absent.any() and np.array_equal(kept, probability)


def test_foreign_supports_are_refused(small_segmenter: Segmenter, support: SupportFeatures) -> None:
    with pytest.raises(WeightsError, match="encoded by compact"):
        small_segmenter.segment(picture(0), replace(support, fingerprint="other"))


def test_bad_supports(small_segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match="no support"):
        small_segmenter.encode_support([])
    with pytest.raises(InputError, match="120"):
        small_segmenter.encode_support([(picture(0), box_mask((40, 50)))])


def test_pam_head_without_pam_is_a_programming_error(small_segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match="trained PAM"):
        Segmenter(backbone=small_segmenter.backbone, trained=untrained(), hed=None, head="pam")


def test_modules_are_used_with_the_look_they_were_trained_on(tmp_path: Path) -> None:
    shipped, own = find_weights("compact/modules.safetensors"), tmp_path / "own.safetensors"
    tensors, info = read_safetensors(shipped)[0], read_checkpoint_info(shipped)
    look = {"timesteps": [20, 100], "cross_map": "contrast", "support_crop": "whole"}
    write_checkpoint(own, tensors, replace(info, config={**info.config, "look": look}))
    settings = load_segmenter(checkpoint=own, device="cpu").settings
    assert (settings.timesteps, settings.cross_map, settings.support_crop) == ((20, 100), "contrast", "whole")
    asked = load_segmenter(checkpoint=own, device="cpu", cross_map="paper", timesteps=[7]).settings
    assert (asked.timesteps, asked.cross_map, asked.support_crop) == ((7,), "paper", "whole")
    assert load_segmenter(device="cpu").settings == SegmentConfig()
    write_checkpoint(own, tensors, replace(info, config={**info.config, "look": {"depth": 3}}))
    with pytest.raises(WeightsError, match="a look this diffseg does not know"):
        load_segmenter(checkpoint=own, device="cpu")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"model": "kandinski"}, UsageError, "Unknown model 'kandinski'"),
        ({"device": "cuda:99"}, UsageError, "cuda"),
        ({"head": "decoder"}, UsageError, "head"),
        ({"fusion": "max"}, UsageError, "fusion"),
        ({"timesteps": [50, 1000]}, UsageError, "between 0 and 999"),
        ({"checkpoint": "nowhere.safetensors"}, WeightsError, "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_named(options: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        load_segmenter(**options)


def test_import_and_public_names_are_lazy() -> None:
    code = (
        "import sys, diffseg_cli; assert 'torch' not in sys.modules; "
        "from diffseg_cli import load_segmenter, Segmenter, Prediction, SupportFeatures, DiffsegError; "
        "assert 'torch' in sys.modules; assert not {'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_supports_are_seen_from_near(small_segmenter: Segmenter) -> None:
    """What lies far from the object changes the whole view of a support alone; what lies near it, both."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    mask = np.zeros((90, 120), dtype=bool)
    mask[20:40, 30:60] = True
    cropped, cropped_mask = crop_to_object(image, mask, 0.3)
    assert cropped.shape == (38, 48, 3)  # 9 pixels around 20 x 30
    assert cropped_mask.sum() == mask.sum()
    far, near = image.copy(), image.copy()
    far[60:], near[41:43] = 0, 0
    size = small_segmenter.backbone.image_size // 8
    support, other, close = (small_segmenter.encode_support([(each, mask)]) for each in (image, far, near))
    assert support.latents.shape[-2:] == (2 * size, size)
    assert torch.equal(other.latents[..., :size, :], support.latents[..., :size, :])
    assert not torch.equal(other.latents[..., size:, :], support.latents[..., size:, :])
    assert torch.equal(other.image_embeds, support.image_embeds)
    assert not torch.equal(close.latents[..., :size, :], support.latents[..., :size, :])
    for seen, rows in (("object", slice(None, size)), ("whole", slice(size, None))):
        settings = SegmentConfig(support_crop=seen)
        alone = replace(small_segmenter, settings=settings).encode_support([(image, mask)])
        assert torch.equal(alone.latents, support.latents[..., rows, :])
        assert torch.equal(alone.masks, support.masks[..., rows, :])


def test_gamma_moves_the_cut_and_keeps_the_ends(small_segmenter: Segmenter) -> None:
    size = small_segmenter.backbone.image_size  # nothing is resized, so every pixel obeys the power exactly
    image = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), dtype=bool)
    mask[16:48, 16:48] = True
    support = small_segmenter.encode_support([(image, mask)])
    plain = small_segmenter.segment(image, support, refine=False).probability
    fainter = small_segmenter.with_trained(replace(small_segmenter.trained, mask_gamma=0.5))
    brighter = fainter.segment(image, support, refine=False).probability
    assert plain.max() - plain.min() > 0.01
    np.testing.assert_allclose(brighter, plain**0.5, atol=1e-6)
