"""Train SCM and PAM on a frozen backbone (paper eq. 10 and section 5.2).

Frozen results come from `FeatureCache`; only the two modules get gradients. A step is a pure function of
(seed, step), and the state on disk holds everything else, so a run that was killed ends like any other.

Letters: b episodes a step, k supports, c latent channels, H W = S/8.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffseg_cli.compute import autocast_for
from diffseg_cli.config import ModulesConfig, SegmentConfig, TrainConfig
from diffseg_cli.loading import build_modules
from diffseg_cli.losses import backward_scaled, losses_of
from diffseg_cli.models.perceptual_attention import PerceptualAttention
from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.trained import Trained
from diffseg_cli.training.draws import draw_step, step_generator
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.training.process_group import ProcessGroup
from diffseg_cli.training.run_state import (
    MODULES,
    SavedRun,
    append_log,
    cut_log,
    optimizer_slots,
    read_state,
    restore,
    save_state,
)
from diffseg_cli.training.validation import validate
from diffseg_cli.weights.checkpoint import CheckpointInfo, read_checkpoint, write_checkpoint
from diffseg_cli.weights.files import load_strict

LEAST_DROPPED_FROM = 16  # latent channels: dropping one of Kandinsky's four takes a quarter of what PAM sees
EARLY = (8, 4, 2)  # validation comes after these parts of the first interval too: memorising shows early


@dataclass(frozen=True)
class TrainStep:
    """One optimisation step, or with `validation` the figures on held-out classes after it."""

    step: int
    losses: dict[str, float]
    lr: float
    validation: dict[str, float] | None = None


class Trainer:
    """Optimise the trained modules of a segmenter over a feature cache.

    Args:
        segmenter: its trained modules are optimised in place. Training leaves its `mask_gamma` out, and
            validation does not.
        cache: built, of the training classes.
        validation: built, of held-out pictures, or None.
        config: recipe and numbers.
        folder: where state, log and the best checkpoint go.
        info: what the checkpoint's metadata says beside the metrics.
        group: the processes that train together.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        cache: FeatureCache,
        validation: FeatureCache | None,
        config: TrainConfig,
        folder: Path,
        info: CheckpointInfo,
        group: ProcessGroup | None = None,
    ) -> None:
        self.segmenter = segmenter.with_trained(replace(segmenter.trained, mask_gamma=1.0))
        self.cache, self.validation = cache, validation
        self.config, self.folder, self.info = config, folder, info
        self.group = group or ProcessGroup()
        self.modules = segmenter.trained.modules.requires_grad_(True).train()
        average = copy.deepcopy(self.modules).requires_grad_(False).eval()
        self.averaged = segmenter.with_trained(replace(segmenter.trained, modules=average))
        parameters = list(self.modules.parameters())
        self.optimizer: torch.optim.Optimizer
        if config.recipe == "paper":
            self.optimizer = torch.optim.SGD(parameters, lr=0.01)
        else:
            self.optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.step, self.best = 0, -1.0
        self._recent: dict[str, list[float]] = defaultdict(list)

    @property
    def key(self) -> dict[str, Any]:
        """All that decides what the run does."""
        frozen = [cache.folder.name for cache in (self.cache, self.validation) if cache]
        start = self.info.training.get("init_sha256")
        return {**asdict(self.config), "pictures": frozen, "modules": self.info.config, "init": start}

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 0."""
        config = self.config
        if config.recipe == "paper":
            return 0.01 * 0.9 ** (10 * step // config.steps)
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def run(self) -> Iterator[TrainStep]:
        """Steps from where the folder's state left off to the end.

        A run that starts from given weights is validated before its first step, so that it never ends worse.

        Raises:
            InputError: the folder holds another run, or cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        if self.step == 0 and self.info.training.get("init"):
            yield self._save(TrainStep(0, {}, 0.0, self._validate()))
        while self.step < self.config.steps:
            lr = self.learning_rate(self.step)
            losses = self._optimise()
            self.step += 1
            for name, value in losses.items():
                self._recent[name].append(value)
            done = TrainStep(self.step, losses, lr)
            last = self.step == self.config.steps
            if last or self._validates(self.step):
                done = self._save(replace(done, validation=self._validate()))
            elif self.step % self.config.save_every == 0:
                self._save(done)
            yield done

    def _validates(self, step: int) -> bool:
        every = self.config.validate_every
        return step % every == 0 or step in [every // part for part in EARLY]

    def _optimise(self) -> dict[str, float]:
        config, backbone = self.config, self.cache.backbone
        whole, share = draw_step(self.cache, config, self.step), self.group.share(config.batch_size)
        rows = whole.part(share)
        query = self.cache.read(rows.query.tolist())
        support = self.cache.read_supports(rows.support)
        targets = query.targets
        if self.group.size > 1:  # one scale for all shares of a step
            targets = self.cache.read_targets(whole.query.tolist())
        generator, drops, noise = step_generator(config, self.step), None, None
        pam = self.modules["pam"] if "pam" in self.modules else None  # noqa: SIM401 - a ModuleDict has no get
        if isinstance(pam, PerceptualAttention):
            channels, kept = pam.draw_drops(config.batch_size, generator)
            drops = (channels[share], kept[share])
        if backbone.adds_noise:
            shape = (config.batch_size, *query.latents.shape[1:])
            noise = torch.randn(shape, generator=generator)[share].to(query.latents)
        with autocast_for(query.latents.device, self.cache.precision):
            output = self.segmenter.forward(
                query.latents, query.edges, support, noise, drops=drops, decode=config.recipe == "default"
            )
            terms = losses_of(output, query.masks, query.targets, config, targets.var())
        total = torch.stack(list(terms.values())).sum()
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        backward_scaled(total, self.modules.parameters(), backbone.dtype)
        self.group.average_gradients(self.modules.parameters())
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        decay = min(config.average_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            average = self.averaged.trained.modules.state_dict()  # shares its tensors
            for name, value in self.modules.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        values = self.group.mean(torch.stack([term.detach().float() for term in terms.values()])).tolist()
        return dict(zip(terms, values, strict=True))

    def _validate(self) -> dict[str, float]:
        """Mean IoU of the averaged weights on held-out pictures, 1 shot, per source and over all classes."""
        if self.validation is None or not self.group.leads:
            return {}
        return validate(self.averaged, self.validation)

    def _save(self, done: TrainStep) -> TrainStep:
        """Log, best checkpoint and state, in the order `run_state` explains; gives back what it saved."""
        if self.group.leads:
            losses = {name: sum(values) / len(values) for name, values in self._recent.items()}
            append_log(self.folder, asdict(replace(done, losses=losses)))
            # Without validation the latest weights are the best.
            score = (done.validation or {}).get("all", None if self.validation else float(done.step))
            if score is not None and score > self.best:
                self.best = score
                self._write_checkpoint(done)
            run = SavedRun(
                done.step,
                self.best,
                self.modules.state_dict(),
                self.averaged.trained.modules.state_dict(),
                optimizer_slots(self.optimizer),
            )
            save_state(self.folder, run, self.key)
        self._recent.clear()
        self.group.wait()
        return done

    def _write_checkpoint(self, done: TrainStep) -> None:
        training = {**self.info.training, "step": done.step, **asdict(self.config)}
        info = replace(self.info, training=training, metrics=done.validation or {})
        halves = {name: value.half() for name, value in self.averaged.trained.modules.state_dict().items()}
        write_checkpoint(self.folder / MODULES, halves, info)

    def _resume(self) -> None:
        run = read_state(self.folder, self.key)
        self.group.wait()
        if self.group.leads:
            cut_log(self.folder, run.step if run else -1)
        if run is not None:
            self.step, self.best = run.step, run.best
            restore(run, self.modules, self.optimizer)
            self.averaged.trained.modules.load_state_dict(run.average)


def new_segmenter(
    cache: FeatureCache, config: ModulesConfig, seed: int, start: Path | None = None
) -> tuple[Segmenter, dict[str, Any]]:
    """A segmenter to train, for a cache's backbone.

    Args:
        cache: its backbone and edge detector are the segmenter's.
        config: which modules, and what they read.
        seed: of random weights.
        start: checkpoint whose weights, gamma and presence score to begin with.

    Returns:
        The segmenter, and the config its checkpoints carry.

    Raises:
        WeightsError: the checkpoint is damaged, or of other modules.
    """
    backbone = cache.backbone
    if config.pam is not None and backbone.latent_channels < LEAST_DROPPED_FROM:
        config = replace(config, pam=replace(config.pam, channel_dropout=0.0))
    torch.manual_seed(seed)
    modules = build_modules(backbone, config.scm, config.pam).to(backbone.device)
    carried = asdict(replace(config, image_size=backbone.image_size))
    if start is not None:
        tensors, info = read_checkpoint(start, backbone=backbone.name, fingerprint=backbone.fingerprint)
        load_strict(modules, {name: value.float() for name, value in tensors.items()}, start)
        carried |= {name: info.config[name] for name in ("presence", "mask_gamma") if name in info.config}
    trained = Trained(
        modules=modules,
        knowledge=config.knowledge,
        presence=PresenceCalibration.from_config(carried.get("presence")),
        mask_gamma=carried.get("mask_gamma", Trained.mask_gamma),
        image_size=backbone.image_size,
        source="" if start is None else str(start),
    )
    head, settings = "pam" if config.pam else "attention", SegmentConfig(**vars(config.look))
    segmenter = Segmenter(backbone=backbone, trained=trained, hed=cache.hed, head=head, settings=settings)
    return segmenter, carried
