"""The two training runs from folder to weights, as generators of progress."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffseg_cli.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from diffseg_cli.compute import resolve_device
from diffseg_cli.config import PamConfig, ScmConfig, TrainConfig
from diffseg_cli.datasets.episode import read_folder
from diffseg_cli.errors import UsageError
from diffseg_cli.evaluation.summary import class_groups
from diffseg_cli.loading import COMPACT_ENCODER, build_compact, load_compact, load_encoder, load_modules
from diffseg_cli.models.hed import load_hed
from diffseg_cli.segmenter import COMPACT_MODULES, Segmenter
from diffseg_cli.training.compact_fit import fit_backbone
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.training.presence_fit import EPISODES, calibrate, presence_report, sample_presence
from diffseg_cli.training.trainer import MODULES, Trainer, new_segmenter
from diffseg_cli.weights import find_weights, load_strict


@dataclass(frozen=True)
class Progress:
    """One line of a run: what is being done, how far it is, and figures worth showing."""

    stage: str
    done: int
    total: int
    figures: dict[str, float]
    milestone: bool = False  # worth a line of its own where there is no bar


def backbone_job(
    root: Path, out: Path, *, split: str | None, steps: int, seed: int, device: str
) -> Iterator[Progress]:
    """Fit what the compact backbone needs beside its ImageNet encoder; writes `out/decoder.safetensors`."""
    backbone = build_compact().to(resolve_device(device))
    load_encoder(backbone, find_weights(COMPACT_ENCODER))
    dataset = read_folder(root, split=split)
    for step in fit_backbone(backbone, dataset, out, decoder_steps=steps, seed=seed):
        yield Progress(step.stage, step.step, step.steps, {"loss": step.loss}, step.step == step.steps)


def modules_job(
    root: Path,
    out: Path,
    *,
    config: TrainConfig,
    pam: PamConfig,
    init: str | None,
    split: str | None,
    val_split: str | None,
    val_sources: str | None,
    views: int,
    device: str,
) -> Iterator[Progress]:
    """Train SCM and PAM on the compact backbone; writes `out/modules.safetensors` when validation improves.

    Args:
        root: folder of classes, see `read_folder`.
        out: for caches, state, log and checkpoint; a run that was stopped goes on from it.
        config: numbers of the training.
        pam: numbers of the module.
        init: "shipped" or a checkpoint to start from; None for random weights.
        split: rows of `index.csv` to train on.
        val_split: rows of `index.csv` to validate on, or None for no validation.
        val_sources: validate on these sources only, comma separated.
        views: cached views a picture.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        UsageError: an unknown recipe.
        InputError: no pictures at `root`.
    """
    if config.recipe not in ("default", "paper"):
        raise UsageError(f"Unknown recipe '{config.recipe}'.", "Use default or paper.")
    backbone = load_compact(device=resolve_device(device))
    hed = load_hed().to(backbone.device)
    dataset = read_folder(root, split=split)
    cache = FeatureCache(out / "cache", dataset, backbone, hed, views=views, seed=config.seed)
    validation = None
    if val_split:
        held_out = read_folder(root, split=val_split, sources=val_sources.split(",") if val_sources else None)
        validation = FeatureCache(out / "cache", held_out, backbone, hed, views=1, seed=config.seed)
    for name, each in (("cache", cache), ("validation cache", validation)):
        for done, rows in each.build() if each else ():
            yield Progress(name, done, rows, {}, done == rows)
    segmenter, modules = new_segmenter(cache, ScmConfig(), pam, config.seed)
    if init is not None:
        start = find_weights(COMPACT_MODULES) if init == "shipped" else Path(init)
        tensors, _ = read_checkpoint(start, backbone=backbone.name, fingerprint=backbone.fingerprint)
        load_strict(segmenter.trained, {name: value.float() for name, value in tensors.items()}, start)
    record = {
        "data": root.name,
        "split": split,
        "pictures": len(dataset.samples),
        "classes": len(dataset.classes),
        "init": init,
    }
    info = CheckpointInfo(backbone.name, backbone.fingerprint, modules, record)
    for step in Trainer(segmenter, cache, validation, config, out, info).run():
        figures = {**step.losses, **(step.validation or {})}
        yield Progress(f"training {MODULES}", step.step, config.steps, figures, step.validation is not None)
    figures = calibrate_checkpoint(out / MODULES, validation or cache)
    yield Progress("presence", 1, 1, figures, True)


def calibrate_checkpoint(checkpoint: Path, cache: FeatureCache) -> dict[str, float]:
    """Fit the presence score of a checkpoint on held-out classes and write it into the file.

    Args:
        checkpoint: of `modules_job`; rewritten in place.
        cache: of classes it was not trained on, where there are any.

    Returns:
        `presence_report`, each half of the classes scored by the other.
    """
    backbone = cache.backbone
    tensors, info = read_checkpoint(checkpoint, backbone=backbone.name, fingerprint=backbone.fingerprint)
    modules = load_modules(checkpoint, backbone)[0].to(backbone.device)
    segmenter = Segmenter(backbone=backbone, trained=modules, hed=cache.hed, head="pam")
    episodes = min(EPISODES, 4 * len(cache.dataset.samples))  # more would repeat the same few pictures
    sample = sample_presence(segmenter, cache, episodes=episodes)
    calibration, scores = calibrate(sample)
    figures = presence_report(scores, sample, class_groups(cache.dataset.classes))
    config = {**info.config, "presence": asdict(calibration)}
    metrics = {**info.metrics, "presence": figures}
    write_checkpoint(checkpoint, tensors, replace(info, config=config, metrics=metrics))
    return figures
