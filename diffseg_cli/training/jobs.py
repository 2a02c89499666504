"""The two training runs from folder to weights, as generators of progress."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from diffseg_cli.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from diffseg_cli.compute import resolve_device
from diffseg_cli.config import ModulesConfig, PamConfig, ScmConfig, TrainConfig
from diffseg_cli.datasets.episode import read_folder
from diffseg_cli.errors import UsageError
from diffseg_cli.evaluation.summary import class_groups
from diffseg_cli.loading import COMPACT_ENCODER, build_compact, load_compact, load_encoder, load_modules
from diffseg_cli.models.hed import load_hed
from diffseg_cli.models.perceptual_attention import MODES
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


def choose_modules(
    which: str,
    knowledge: str,
    pam_attentions: str,
    scm_scales: str,
    scm_separate: bool,
    *,
    pam: PamConfig,
    image_size: int | None = None,
) -> ModulesConfig:
    """What is trained, from the switches of the paper's ablations.

    Args:
        which: "scm+pam", "pam", "scm" or "none" (table 3). "pam" compares latents alone: the paper leaves the
            attention maps out with SCM, and so attention 2.
        knowledge: of `models.knowledge.KNOWLEDGE` (table 4).
        pam_attentions: three of "attention", "conv", "none", with commas (table 5).
        scm_scales: "all", "none" or numbers of scales, the finest 0, with commas (table 6).
        scm_separate: a trunk for each scale (table 6).
        pam: its other numbers.
        image_size: S, or None for the backbone's own.

    Raises:
        UsageError: a switch that says none of these.
    """
    modes = tuple(pam_attentions.split(","))
    if len(modes) != 3 or not set(modes) <= set(MODES):
        raise UsageError(
            f"'{pam_attentions}' does not say what PAM's three attentions are.",
            "Give three of attention, conv and none, like attention,conv,none.",
        )
    if scm_scales not in ("all", "none") and not all(part.isdecimal() for part in scm_scales.split(",")):
        raise UsageError(f"'{scm_scales}' names no scales.", "Give all, none, or numbers like 0 or 0,1.")
    scm = None
    if which in ("scm+pam", "scm") and scm_scales != "none":
        scales = None if scm_scales == "all" else tuple(int(part) for part in scm_scales.split(","))
        scm = ScmConfig(shared=not scm_separate, scales=scales)
    if which == "pam":
        modes = (modes[0], "none", modes[2])
    chosen = replace(pam, modes=(modes[0], modes[1], modes[2])) if which in ("scm+pam", "pam") else None
    return ModulesConfig(scm, chosen, knowledge, image_size)


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
    modules: ModulesConfig,
    init: str | None,
    split: str | None,
    val_split: str | None,
    val_sources: str | None,
    views: int,
    device: str,
    cache_folder: Path | None = None,
) -> Iterator[Progress]:
    """Train SCM and PAM on the compact backbone; writes `out/modules.safetensors` when validation improves.

    Args:
        root: folder of classes, see `read_folder`.
        out: for caches, state, log and checkpoint; a run that was stopped goes on from it.
        config: numbers of the training.
        modules: which of the two are trained, and on what.
        init: "shipped" or a checkpoint to start from; None for random weights.
        split: rows of `index.csv` to train on.
        val_split: rows of `index.csv` to validate on, or None for no validation.
        val_sources: validate on these sources only, comma separated.
        views: cached views a picture.
        device: "auto", "cpu", "cuda" or "mps".
        cache_folder: of frozen results, may be shared by runs; default `out/cache`.

    Raises:
        UsageError: an unknown recipe, or nothing to train.
        InputError: no pictures at `root`.
    """
    if config.recipe not in ("default", "paper"):
        raise UsageError(f"Unknown recipe '{config.recipe}'.", "Use default or paper.")
    if modules.scm is None and modules.pam is None:
        raise UsageError(
            "Without SCM and PAM there is nothing to train.", "Measure it: diffseg evaluate --head attention."
        )
    backbone = load_compact(device=resolve_device(device), image_size=modules.image_size)
    there = len(backbone.scale_widths)
    if modules.scm and max(modules.scm.scales or (0,)) >= there:
        raise UsageError(f"{backbone.name} has no such scale.", f"Its scales are 0 to {there - 1}.")
    hed = load_hed().to(backbone.device)
    dataset = read_folder(root, split=split)
    cache_folder = cache_folder or out / "cache"
    cache = FeatureCache(cache_folder, dataset, backbone, hed, views=views, seed=config.seed)
    validation = None
    if val_split:
        held_out = read_folder(root, split=val_split, sources=val_sources.split(",") if val_sources else None)
        validation = FeatureCache(cache_folder, held_out, backbone, hed, views=1, seed=config.seed)
    for name, each in (("cache", cache), ("validation cache", validation)):
        for done, rows in each.build() if each else ():
            yield Progress(name, done, rows, {}, done == rows)
    segmenter, settings = new_segmenter(cache, modules.scm, modules.pam, config.seed, modules.knowledge)
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
    info = CheckpointInfo(backbone.name, backbone.fingerprint, settings, record)
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
    segmenter = Segmenter(
        backbone=backbone,
        trained=modules,
        hed=cache.hed,
        head="pam" if "pam" in modules else "attention",
        knowledge=info.config.get("knowledge", "self+cross"),
    )
    episodes = min(EPISODES, 4 * len(cache.dataset.samples))  # more would repeat the same few pictures
    sample = sample_presence(segmenter, cache, episodes=episodes)
    calibration, scores = calibrate(sample)
    figures = presence_report(scores, sample, class_groups(cache.dataset.classes))
    config = {**info.config, "presence": asdict(calibration)}
    metrics = {**info.metrics, "presence": figures}
    write_checkpoint(checkpoint, tensors, replace(info, config=config, metrics=metrics))
    return figures
