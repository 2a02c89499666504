"""The two training runs from images to weights, as generators of progress."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diffseg_cli.choices.training import FormChoice, TrainPlan
from diffseg_cli.compute import resolve_device, resolve_dtype
from diffseg_cli.config import FineTuneConfig, ModulesConfig, TrainConfig
from diffseg_cli.datasets import PROTOCOLS, load_dataset
from diffseg_cli.datasets.episode import FewShotDataset, read_folder
from diffseg_cli.errors import UsageError
from diffseg_cli.loading import (
    COMPACT_ENCODER,
    backbone_kind,
    build_compact,
    load_backbone,
    load_edge_detector,
    load_encoder,
    trained_look,
)
from diffseg_cli.models.backbone import Backbone
from diffseg_cli.models.knowledge import FEATURE_KNOWLEDGE
from diffseg_cli.training.compact_fit import fit_backbone
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.training.own_classes import check_folder, hold_out
from diffseg_cli.training.plots import RELIABILITY, Board, write_curves, write_reliability
from diffseg_cli.training.presence_fit import calibrate_checkpoint
from diffseg_cli.training.process_group import ProcessGroup, find_group, local_device
from diffseg_cli.training.run_state import MODULES
from diffseg_cli.training.switches import choose_modules
from diffseg_cli.training.trainer import Trainer, new_segmenter
from diffseg_cli.weights.checkpoint import CheckpointInfo
from diffseg_cli.weights.files import file_sha256, find_weights

# Switches under which weights do not fit modules of another setting.
SHAPE = ("modules", "knowledge", "pam_attentions", "scm_scales", "scm_separate", "image_size")
RECIPES, PRECISIONS = ("default", "paper"), ("bf16", "fp32")


@dataclass(frozen=True)
class Progress:
    """One line of a run: what is being done, how far it is, and figures worth showing."""

    stage: str
    done: int
    total: int
    figures: dict[str, float]
    milestone: bool = False  # worth a line of its own where there is no bar


def start_of(plan: TrainPlan) -> str | None:
    """What the weights start from: a checkpoint, "shipped", or None for random ones."""
    as_shipped = all(getattr(plan.form, switch) == getattr(FormChoice, switch) for switch in SHAPE)
    if plan.init is None and plan.own_classes and as_shipped and backbone_kind(plan.model).modules:
        return "shipped"
    return None if plan.init in (None, "none") else plan.init


def modules_of(plan: TrainPlan) -> ModulesConfig:
    """What is trained; it looks as the checkpoint did that it starts from, unless the plan says otherwise.

    Raises:
        UsageError: a switch that means nothing.
        WeightsError: the checkpoint cannot be read.
    """
    given = plan.init not in (None, "none", "shipped")
    return choose_modules(plan.form, trained_look(Path(str(plan.init))) if given else None)


def train_config(plan: TrainPlan) -> TrainConfig:
    """The numbers of the training."""
    usual = FineTuneConfig() if start_of(plan) else TrainConfig()
    return TrainConfig(
        recipe=plan.recipe,
        steps=plan.steps or usual.steps,
        batch_size=plan.batch_size,
        lr=plan.lr or usual.lr,
        warmup_steps=usual.warmup_steps,
        validate_every=plan.validate_every or usual.validate_every,
        save_every=plan.save_every,
        precision=plan.precision,
        seed=plan.seed,
    )


def check_plan(plan: TrainPlan, modules: ModulesConfig) -> None:
    """Refuse what cannot work before anything slow starts.

    Raises:
        UsageError: words that mean nothing, or that contradict each other.
    """
    for what, value, known in (("recipe", plan.recipe, RECIPES), ("precision", plan.precision, PRECISIONS)):
        if value not in known:
            raise UsageError(f"Unknown {what} '{value}'.", f"Use {' or '.join(known)}.")
    if modules.scm is None and modules.pam is None:
        raise UsageError(
            "Without SCM and PAM there is nothing to train.", "Measure it: diffseg evaluate --head attention."
        )
    if plan.own_classes and (plan.val_split or plan.val_sources):
        raise UsageError(
            f"{plan.root} has no index.csv, so it has no splits and sources.",
            "Leave --val-split and --val-sources out: a quarter of each class is held out.",
        )
    if plan.val_sources and not (plan.val_split or "val" in PROTOCOLS[plan.dataset].splits):
        raise UsageError(
            "--val-sources chooses among the images of --val-split, which is missing.",
            "Add it, for instance --val-split val.",
        )
    folds = PROTOCOLS[plan.dataset].folds
    if folds and plan.fold is None:
        raise UsageError(f"{plan.dataset} is trained one fold at a time.", f"Give --fold 0 to {folds - 1}.")
    if plan.fold is not None and not 0 <= plan.fold < max(folds, 1):
        raise UsageError(f"{plan.dataset} has no fold {plan.fold}.", "Leave --fold out, or give 0 to 3.")
    _check_model(plan, modules)


def _check_model(plan: TrainPlan, modules: ModulesConfig) -> None:
    """Refuse what this backbone cannot give, before it is loaded."""
    kind = backbone_kind(plan.model)
    if kind.network.adds_noise and modules.knowledge in FEATURE_KNOWLEDGE:
        raise UsageError(
            f"Knowledge '{modules.knowledge}' stands in for a diffusion model, and {plan.model} is one.",
            "Use self+cross, cross or self.",
        )
    if modules.image_size and not kind.network.resizable:
        raise UsageError(f"{plan.model} sees images at its own size only.", "Leave --image-size out.")
    if start_of(plan) == "shipped" and kind.modules is None:
        raise UsageError(f"No trained modules are shipped for {plan.model}.", "Give --init none or a file.")


def read_datasets(plan: TrainPlan) -> tuple[FewShotDataset, FewShotDataset | None]:
    """Images to train on, and images to validate on or None.

    Raises:
        InputError: they are not there, or cannot be used.
        UsageError: a split the data set does not have.
    """
    if plan.own_classes:
        dataset = load_dataset("folder", plan.root, split=plan.split)
        check_folder(plan.root, dataset)
        return hold_out(dataset, plan.seed)
    splits = PROTOCOLS[plan.dataset].splits
    split = plan.split or ("train" if splits else None)
    dataset = load_dataset(plan.dataset, plan.root, fold=plan.fold, split=split)
    val_split = plan.val_split or ("val" if "val" in splits else None)
    if val_split is None:
        return dataset, None
    sources = tuple(plan.val_sources.split(",")) if plan.val_sources else ()
    return dataset, load_dataset(plan.dataset, plan.root, fold=plan.fold, split=val_split, sources=sources)


def backbone_job(plan: TrainPlan) -> Iterator[Progress]:
    """Fit what the compact backbone needs beside its ImageNet encoder; writes `out/decoder.safetensors`."""
    backbone = build_compact().to(resolve_device(plan.device))
    load_encoder(backbone, find_weights(COMPACT_ENCODER))
    dataset = read_folder(plan.root, split=plan.split)
    steps = plan.steps or TrainConfig.steps
    for step in fit_backbone(backbone, dataset, plan.out, decoder_steps=steps, seed=plan.seed):
        yield Progress(step.stage, step.step, step.steps, {"loss": step.loss}, step.step == step.steps)


def modules_job(plan: TrainPlan) -> Iterator[Progress]:
    """Train SCM and PAM; writes `out/modules.safetensors` whenever validation improves.

    Of several processes the first one alone tells of its progress.

    Raises:
        UsageError: the plan contradicts itself.
        InputError: images that cannot be used, or a folder that holds another run.
        WeightsError: weights that are missing or do not fit.
        MissingDependency: accelerate or tensorboard is needed and not installed.
    """
    modules = modules_of(plan)
    check_plan(plan, modules)
    config, group = train_config(plan), find_group()
    group.share(config.batch_size)
    board = Board(plan.out) if plan.tensorboard and group.leads else None
    dataset, held_out = read_datasets(plan)
    device = resolve_device(local_device(plan.device))
    mixed = backbone_kind(plan.model).network.mixed_precision
    dtype = resolve_dtype("float32" if mixed else plan.dtype, device)
    backbone = load_backbone(plan.model, device, dtype, False, modules.image_size)
    _check_scales(modules, backbone)
    hed, folder = load_edge_detector(backbone), plan.cache or plan.out / "cache"
    frozen = partial(
        FeatureCache,
        folder,
        seed=plan.seed,
        precision=plan.precision,
        support_crop=modules.look.support_crop,
    )
    cache, validation = frozen(dataset, backbone, hed, views=plan.views), None
    if held_out is not None:
        validation = frozen(held_out, backbone, hed, views=1)
    for name, each in (("cache", cache), ("validation cache", validation)):
        for done, rows in each.build() if each and group.leads else ():
            yield Progress(name, done, rows, {}, done == rows)
    group.wait()
    trainer = _make_trainer(plan, modules, config, cache, validation, group)
    for step in trainer.run():
        if board:
            board.add(step)
        if group.leads:
            figures = {**step.losses, **(step.validation or {})}
            yield Progress(f"training {MODULES}", step.step, config.steps, figures, bool(step.validation))
    if board:
        board.close()
    if group.leads:
        write_curves(plan.out)
        report, rows_of = calibrate_checkpoint(plan.out / MODULES, validation or cache)
        if rows_of:
            write_reliability(rows_of, plan.out / RELIABILITY)
            yield Progress("presence", 1, 1, report, True)
    group.wait()


def _make_trainer(
    plan: TrainPlan,
    modules: ModulesConfig,
    config: TrainConfig,
    cache: FeatureCache,
    validation: FeatureCache | None,
    group: ProcessGroup,
) -> Trainer:
    """Modules with their first weights, and all the checkpoint will say about them."""
    backbone, start, file = cache.backbone, start_of(plan), None
    if start is not None:
        shipped = backbone_kind(plan.model).modules
        file = find_weights(shipped) if shipped and start == "shipped" else Path(start)
    segmenter, settings = new_segmenter(cache, modules, plan.seed, file)
    record = {
        "data": plan.root.name,
        "dataset": plan.dataset,
        "fold": plan.fold,
        "split": plan.split,
        "pictures": len(cache.dataset.samples),
        "classes": len(cache.dataset.classes),
        "held_out_images": len(validation.dataset.samples) if validation else 0,
        "views": plan.views,
        "processes": group.size,
        "init": Path(start).name if start else None,
        "init_sha256": file_sha256(file) if file else None,
    }
    info = CheckpointInfo(backbone.name, backbone.fingerprint, settings, record)
    return Trainer(segmenter, cache, validation, config, plan.out, info, group)


def _check_scales(modules: ModulesConfig, backbone: Backbone) -> None:
    there = len(backbone.scale_widths)
    if modules.scm and max(modules.scm.scales or (0,)) >= there:
        raise UsageError(f"{backbone.name} has no such scale.", f"Its scales are 0 to {there - 1}.")
