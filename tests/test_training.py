"""Training end to end at small size: cache, steps, resume, checkpoint, evaluation."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.cli.main import app
from diffseg_cli.config import ModulesConfig, PamConfig, ScmConfig, TrainConfig
from diffseg_cli.datasets.episode import FewShotDataset, read_folder
from diffseg_cli.errors import WeightsError
from diffseg_cli.evaluation.evaluate import Evaluation
from diffseg_cli.evaluation.summary import summarise
from diffseg_cli.loading import load_modules
from diffseg_cli.models.prototype import THRESHOLD, prototype_scores
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.training import trainer as trainer_module
from diffseg_cli.training.compact_fit import fit_basis, spread_samples, train_decoder
from diffseg_cli.training.draws import draw_step
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.training.presence_fit import calibrate_checkpoint
from diffseg_cli.training.run_state import LOG, MODULES, read_log
from diffseg_cli.training.trainer import Trainer, new_segmenter
from diffseg_cli.training.validation import CUTS, LEVEL, fit_gamma, validate
from diffseg_cli.views import recoloured, zoomed_in
from diffseg_cli.weights.checkpoint import CheckpointInfo, read_checkpoint, read_checkpoint_info

CONFIG = TrainConfig(
    steps=6, batch_size=2, validate_every=3, warmup_steps=2, shots=(1, 2), shots_shares=(0.7, 0.3)
)
PAM = PamConfig(width=16, head_width=8)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> FewShotDataset:
    """Two classes of coloured shapes on noise, four pictures each."""
    root = tmp_path_factory.mktemp("shapes")
    generator = np.random.default_rng(0)
    for name, colour in (("ball", (230, 60, 40)), ("brick", (40, 90, 220))):
        (root / name).mkdir()
        for index in range(4):
            noise = generator.integers(60, 160, (96, 128, 3), dtype=np.uint8)
            image, mask = Image.fromarray(noise), Image.new("L", (128, 96), 0)
            left, top = (int(v) for v in generator.integers(5, 50, 2))
            box = (left, top, left + 45, top + 40)
            for canvas, fill in ((image, colour), (mask, 255)):
                drawing = ImageDraw.Draw(canvas)
                (drawing.ellipse if name == "ball" else drawing.rectangle)(box, fill=fill)
            image.save(root / name / f"{index}.jpg", quality=95)
            mask.save(root / name / f"{index}.png")
    return read_folder(root)


@pytest.fixture(scope="module")
def cache(
    shapes: FewShotDataset, small_segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory
) -> FeatureCache:
    folder = tmp_path_factory.mktemp("cache")
    built = FeatureCache(folder, shapes, small_segmenter.backbone, small_segmenter.hed, views=2, edge_size=64)
    assert [done for done, _ in built.build()] == [8, 16, 24]
    return built


def make_trainer(cache: FeatureCache, folder: Path, config: TrainConfig = CONFIG) -> Trainer:
    segmenter, modules = new_segmenter(cache, ModulesConfig(ScmConfig(width=8), PAM), seed=0)
    return Trainer(segmenter, cache, cache, config, folder, CheckpointInfo("compact", "small", modules))


def test_cached_rows_are_what_the_backbone_says(cache: FeatureCache, small_segmenter: Segmenter) -> None:
    row = cache.row(3)
    image, mask = cache.load_view(row)
    batch = cache.read([row, row])
    latents = small_segmenter.backbone.encode(image[None])
    # bfloat16 encoder, half precision on disk
    assert (batch.latents[:1] - latents).abs().mean() < 0.01
    assert float(batch.masks[0].mean()) == pytest.approx(float(mask.mean()), abs=0.01)
    assert batch.edges.shape == (2, 1, 64, 64) and 0 <= batch.edges.min() < batch.edges.max() <= 1


def test_supports_are_cached_as_the_segmenter_sees_them(
    cache: FeatureCache, small_segmenter: Segmenter
) -> None:
    sample = cache.dataset.samples[5]
    seen = small_segmenter.encode_support([(sample.image, sample.mask)])
    support = cache.read_supports(np.array([[cache.support_row(5)]]))
    assert support.latents.shape == seen.latents.shape
    assert (support.latents - seen.latents).abs().mean() < 0.01
    assert (support.masks - seen.masks).abs().max() < 0.01
    batch = cache.read([cache.support_row(5)])
    whole = cache.read([cache.row(5)])
    assert float(batch.masks.mean()) > 1.5 * float(whole.masks.mean())  # seen from near


def test_interrupted_cache_goes_on(
    shapes: FewShotDataset, small_segmenter: Segmenter, tmp_path: Path
) -> None:
    def fresh() -> FeatureCache:
        return FeatureCache(tmp_path, shapes, small_segmenter.backbone, None, views=1)

    assert len(list(fresh().build())) == 2
    assert list(fresh().build()) == []  # nothing is left to do
    whole = FeatureCache(tmp_path, shapes, small_segmenter.backbone, None, views=1, support_crop="whole")
    assert whole.folder != fresh().folder and whole.support_row(5) == whole.row(5)
    other = dataclasses.replace(shapes, samples=shapes.samples[::-1])
    assert FeatureCache(tmp_path, other, small_segmenter.backbone, None, views=1).folder != fresh().folder


def test_augmented_views_keep_the_object_and_repeat() -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    mask = np.zeros((80, 100), bool)
    mask[30:50, 40:70] = True
    for seed in range(20):
        generators = np.random.default_rng(seed), np.random.default_rng(seed)
        once, again = (recoloured(zoomed_in((image, mask), each), each) for each in generators)
        assert np.array_equal(once[0], again[0]) and np.array_equal(once[1], again[1])
        assert once[0].shape[:2] == once[1].shape and once[1].sum() >= 0.4 * mask.sum()


def test_steps_are_pure_and_supports_differ_from_the_query(cache: FeatureCache) -> None:
    for step in range(30):
        rows, again = draw_step(cache, CONFIG, step), draw_step(cache, CONFIG, step)
        assert np.array_equal(rows.query, again.query) and np.array_equal(rows.support, again.support)
        for query, supports in zip(rows.query, rows.support, strict=True):
            samples = [row // cache.stride for row in (query, *supports)]
            assert len(set(samples)) == len(samples)
            assert len({cache.dataset.samples[s].class_name for s in samples}) == 1


def test_training_lowers_the_loss(cache: FeatureCache, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, steps=40, validate_every=100, lr=5e-3)
    losses = [sum(step.losses.values()) for step in make_trainer(cache, tmp_path, config).run()]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_the_learning_rate_follows_its_recipe(cache: FeatureCache, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, lr=1e-3, warmup_steps=2, steps=6, validate_every=100)
    trainer = make_trainer(cache, tmp_path, config)
    used = [(step.lr, trainer.optimizer.param_groups[0]["lr"]) for step in trainer.run()]
    cosine = [0.02 + 0.49 * (1 + math.cos(math.pi * done)) for done in (0, 0.25, 0.5, 0.75)]
    expected = [5e-4, 1e-3, *(1e-3 * share for share in cosine)]
    assert [lr for lr, _ in used] == pytest.approx(expected) == [lr for _, lr in used]
    paper = make_trainer(cache, tmp_path / "paper", dataclasses.replace(CONFIG, recipe="paper", steps=30))
    rates = [paper.learning_rate(step) for step in (0, 2, 3, 6, 29)]  # 10 stages
    assert rates == pytest.approx([0.01, 0.01, 0.009, 0.0081, 0.01 * 0.9**9])


def weights_of(trainer: Trainer, *, averaged: bool = False) -> torch.Tensor:
    modules = trainer.averaged.trained.modules if averaged else trainer.modules
    return torch.cat([p.detach().flatten().clone() for p in modules.parameters()])


def test_the_papers_recipe_is_plain_descent_along_a_gradient_of_at_most_one(
    cache: FeatureCache, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        CONFIG, recipe="paper", steps=1, map_weight=1e6, precision="fp32", validate_every=100
    )
    trainer = make_trainer(cache, tmp_path, config)
    before = weights_of(trainer)
    list(trainer.run())
    assert float((weights_of(trainer) - before).norm()) == pytest.approx(0.01, rel=1e-3)  # its learning rate


def test_the_default_recipe_decays_weights_apart_from_their_gradient(
    cache: FeatureCache, tmp_path: Path
) -> None:
    """As AdamW does: without any loss, weights shrink by learning rate times decay."""
    config = dataclasses.replace(CONFIG, lr=0.1, warmup_steps=0, steps=1, validate_every=100)
    config = dataclasses.replace(config, map_weight=0, latent_weight=0, mask_weight=0)
    trainer = make_trainer(cache, tmp_path, config)
    before = weights_of(trainer)
    list(trainer.run())
    torch.testing.assert_close(weights_of(trainer), before * (1 - 0.1 * config.weight_decay))


def test_the_average_follows_quickly_at_first(cache: FeatureCache, tmp_path: Path) -> None:
    trainer = make_trainer(cache, tmp_path, dataclasses.replace(CONFIG, steps=2, validate_every=100))
    average = weights_of(trainer)
    for step in trainer.run():
        decay = step.step / (step.step + 9)
        average = decay * average + (1 - decay) * weights_of(trainer)
    torch.testing.assert_close(weights_of(trainer, averaged=True), average)
    trainer = make_trainer(cache, tmp_path / "late", dataclasses.replace(CONFIG, steps=1, average_decay=0.05))
    average = 0.05 * weights_of(trainer)
    list(trainer.run())
    torch.testing.assert_close(weights_of(trainer, averaged=True), average + 0.95 * weights_of(trainer))


def test_the_average_is_judged_and_kept_and_training_goes_on_without_it(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, steps=3, validate_every=1)
    judged, seen = make_trainer(cache, tmp_path / "judged", config), []

    def noted(segmenter: Segmenter, held_out: FeatureCache) -> dict[str, float]:
        seen.append(torch.cat([p.flatten().clone() for p in segmenter.trained.modules.parameters()]))
        return validate(segmenter, held_out)

    monkeypatch.setattr(trainer_module, "validate", noted)
    list(judged.run())
    assert all(module.training for module in judged.modules.modules())
    segmenter, modules = new_segmenter(cache, ModulesConfig(ScmConfig(width=8), PAM), seed=0)
    info = CheckpointInfo("compact", "small", modules)
    alone = Trainer(segmenter, cache, None, config, tmp_path / "alone", info)
    list(alone.run())
    assert torch.equal(weights_of(alone), weights_of(judged))
    average = weights_of(alone, averaged=True)
    assert torch.equal(average, weights_of(judged, averaged=True))
    assert not torch.equal(average, weights_of(alone))
    kept, _ = read_checkpoint(tmp_path / "alone" / MODULES, backbone="compact", fingerprint="small")
    held = alone.averaged.trained.modules.state_dict()
    assert all(torch.equal(value, held[name].half()) for name, value in kept.items())
    assert torch.equal(seen[-1], average) and len(seen) == 3


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_a_stopped_run_ends_like_an_undisturbed_one(cache: FeatureCache, tmp_path: Path, recipe: str) -> None:
    config = dataclasses.replace(CONFIG, recipe=recipe)
    whole = list(make_trainer(cache, tmp_path / "whole", config).run())
    for step in make_trainer(cache, tmp_path / "cut", config).run():
        if step.step == 5:  # two steps after the last state was saved
            break
    rest = list(make_trainer(cache, tmp_path / "cut", config).run())
    assert [step.step for step in rest] == [4, 5, 6]
    assert rest[-1].losses == pytest.approx(whole[-1].losses, rel=1e-4)
    assert rest[-1].validation == pytest.approx(whole[-1].validation, abs=1e-3)


def test_only_the_modules_are_trained(cache: FeatureCache, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in cache.backbone.state_dict().items()}
    trainer = make_trainer(cache, tmp_path)
    start = {name: value.clone() for name, value in trainer.modules.state_dict().items()}
    list(trainer.run())
    assert all(torch.equal(value, before[name]) for name, value in cache.backbone.state_dict().items())
    changed = {
        name.split(".")[0]
        for name, value in trainer.modules.state_dict().items()
        if not torch.equal(value, start[name])
    }
    assert changed == {"scm", "pam"}


def test_checkpoint_says_what_it_is_and_loads(cache: FeatureCache, tmp_path: Path) -> None:
    list(make_trainer(cache, tmp_path).run())
    info = read_checkpoint_info(tmp_path / MODULES)
    assert info.backbone == "compact" and info.training["recipe"] == "default" and "all" in info.metrics
    trained = load_modules(tmp_path / MODULES, cache.backbone)
    modules = trained.modules
    assert info.config["scm"]["width"] == 8 and trained.source == str(tmp_path / MODULES)
    assert set(modules) == {"scm", "pam"} and not any(p.requires_grad for p in modules.parameters())
    assert len((tmp_path / LOG).read_text().splitlines()) == 3
    cache.backbone.fingerprint, kept = "other", cache.backbone.fingerprint
    with pytest.raises(WeightsError, match="other weights"):
        load_modules(tmp_path / MODULES, cache.backbone)
    cache.backbone.fingerprint = kept


def test_evaluation_is_repeatable(shapes: FewShotDataset, small_segmenter: Segmenter) -> None:
    records = []
    for _ in range(2):
        run = Evaluation(
            small_segmenter, shapes, shots=2, seed=3, methods=("model", "attention", "prototype")
        )
        results = list(run.run(6))
        records.append(summarise(results))
    assert records[0] == records[1]
    assert len(results) == 6 and set(records[0]) == {"model", "attention", "prototype"}
    assert all(0 <= result.iou["prototype"] <= 1 for result in results)


def test_prototype_line_finds_a_copied_object() -> None:
    support, masks = 0.3 * torch.randn(1, 2, 12, 8, 8) - 1, torch.zeros(1, 2, 1, 8, 8)
    support[..., 2:6, 2:6] += 2
    masks[..., 2:6, 2:6] = 1
    found = prototype_scores(support[:, 0], support, masks) > THRESHOLD
    assert torch.equal(found[0, 0], masks[0, 0, 0] > 0)


def test_fitting_the_backbone(shapes: FewShotDataset, cache: FeatureCache) -> None:
    from diffseg_cli.loading import build_compact
    from tests.conftest import SMALL

    torch.manual_seed(1)
    backbone = build_compact(SMALL)
    list(fit_basis(backbone, shapes))
    basis = backbone.get_buffer("basis_4")
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-3, rtol=0)
    assert (
        spread_samples(shapes, 5, 0) == spread_samples(shapes, 5, 0)
        and len(spread_samples(shapes, 5, 0)) == 5
    )
    losses = [step.loss for step in train_decoder(cache.backbone, cache, steps=30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_checkpoint_gets_a_presence_score(cache: FeatureCache, tmp_path: Path) -> None:
    list(make_trainer(cache, tmp_path).run())
    figures, rows = calibrate_checkpoint(tmp_path / MODULES, cache)
    assert sum(share for _, _, share in rows) == pytest.approx(1)
    assert 0 <= figures["auc all"] <= 1 and 0 <= figures["calibration error"] <= 1
    calibration = load_modules(tmp_path / MODULES, cache.backbone).presence
    assert calibration is not None and len(calibration.weights) == 3
    assert read_checkpoint_info(tmp_path / MODULES).metrics["presence"] == figures


def test_gamma_brings_the_best_cut_to_a_half(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(cache, tmp_path)
    segmenter = trainer.averaged

    def at_half(gamma: float) -> float:
        brightened = segmenter.with_trained(dataclasses.replace(segmenter.trained, mask_gamma=gamma))
        return validate(brightened, cache, episodes=4)["all"]

    gamma = fit_gamma(segmenter, cache, episodes=4)
    best = at_half(gamma)
    for cut in CUTS:
        assert at_half(math.log(0.5) / math.log(cut)) <= best + LEVEL + 1e-3, (
            f"{cut} is better than what {gamma} stands for"
        )
    monkeypatch.setattr("diffseg_cli.training.presence_fit.ENOUGH_CLASSES", 2)
    list(trainer.run())
    calibrate_checkpoint(tmp_path / MODULES, cache)
    gamma = load_modules(tmp_path / MODULES, cache.backbone).mask_gamma
    assert 0.5 ** (1 / gamma) in [pytest.approx(cut) for cut in CUTS]


def test_train_command_improves_the_shipped_modules(shapes: FewShotDataset, tmp_path: Path) -> None:
    """The whole verb on a person's own folder, and its checkpoint in use."""
    root = shapes.samples[0].image.parents[1]
    options = ["--root", str(root), "--out", str(tmp_path), "--init", "shipped", "--steps", "2"]
    result = CliRunner().invoke(
        app, ["train", *options, "--batch-size", "2", "--views", "1", "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    assert "training modules.safetensors 2/2" in result.stderr
    segmenter = load_segmenter(checkpoint=tmp_path / MODULES, device="cpu")
    sample = shapes.samples[0]
    support = segmenter.encode_support([(sample.image, sample.mask)])
    prediction = segmenter.segment(shapes.samples[1].image, support)
    assert prediction.presence is not None and prediction.mask.shape == (96, 128)
    start, *later = [record["validation"]["all"] for record in read_log(tmp_path) if record["validation"]]
    assert read_checkpoint_info(tmp_path / MODULES).metrics["all"] == max(start, *later)
