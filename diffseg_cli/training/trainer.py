"""Train SCM and PAM on a frozen backbone (paper eq. 10 and section 5.2).

Frozen results come from `FeatureCache`; only the two modules get gradients. A step is a pure function of
(seed, step), and the state on disk holds everything else, so a run that was stopped goes on where it was.

Letters: b episodes a step, k supports, c latent channels, H W = S/8.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from diffseg_cli.checkpoint import CheckpointInfo, write_checkpoint
from diffseg_cli.config import ModulesConfig, PamConfig, ScmConfig, TrainConfig
from diffseg_cli.datasets.episode import draw_episode
from diffseg_cli.evaluation.metrics import IouCounts, count_pixels
from diffseg_cli.evaluation.summary import class_groups
from diffseg_cli.loading import build_modules
from diffseg_cli.prediction import SegmenterOutput, SupportFeatures
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.weights import read_header, read_safetensors, write_safetensors

STATE, MODULES, LOG = "state.safetensors", "modules.safetensors", "log.jsonl"
MASK_SHARPNESS = 8.0  # the picture's [0, 1] as logits in [-4, 4] for the cross entropy
VALIDATION_EPISODES = 10  # a class
VALIDATION_SEED = 1234


@dataclass(frozen=True)
class TrainStep:
    """One optimisation step, or with `validation` the figures on held-out classes after it."""

    step: int
    losses: dict[str, float]
    lr: float
    validation: dict[str, float] | None = None


@dataclass(frozen=True)
class StepRows:
    """Cache rows of one step: queries (b), supports (b k), and which are mirrored."""

    query: NDArray[np.int64]
    support: NDArray[np.int64]
    query_mirrored: NDArray[np.bool_]
    support_mirrored: NDArray[np.bool_]


def draw_step(cache: FeatureCache, config: TrainConfig, step: int) -> StepRows:
    """Episodes of one step: a class by the square root of its size, then pictures, views and mirroring."""
    generator = np.random.Generator(np.random.PCG64([config.seed, step]))
    shots = 1 if generator.random() < 0.7 else config.max_shots
    dataset = cache.dataset.with_enough(shots)
    names = dataset.classes
    synthetic = np.array([name.startswith(config.synthetic_source) for name in names])
    weights = np.sqrt([len(dataset.by_class[name]) for name in names])
    if synthetic.any() and not synthetic.all():
        weights[synthetic] *= config.synthetic_share / weights[synthetic].sum()
        weights[~synthetic] *= (1 - config.synthetic_share) / weights[~synthetic].sum()
    chosen = generator.choice(len(names), size=config.batch_size, p=weights / weights.sum())
    members = [generator.permutation(dataset.by_class[names[index]])[: shots + 1] for index in chosen]
    views = generator.integers(cache.views, size=(config.batch_size, shots + 1))
    mirrored = generator.random((config.batch_size, shots + 1)) < 0.5
    # Half the supports as a user's are seen, half as any picture is: the object's size then tells nothing.
    near = generator.random((config.batch_size, shots)) < 0.5
    query = [cache.row(picked[0], view[0]) for picked, view in zip(members, views, strict=True)]
    support = [
        [
            cache.support_row(sample) if close else cache.row(sample, view)
            for sample, view, close in zip(picked[1:], seen[1:], nearby, strict=True)
        ]
        for picked, seen, nearby in zip(members, views, near, strict=True)
    ]
    return StepRows(np.array(query), np.array(support), mirrored[:, 0], mirrored[:, 1:])


def read_supports(
    cache: FeatureCache, rows: NDArray[np.int64], mirrored: NDArray[np.bool_]
) -> SupportFeatures:
    """Supports of b episodes, rows (b k), as the segmenter reads them."""
    batch = cache.read(rows.ravel().tolist(), mirrored.ravel().tolist())
    grid = F.interpolate(batch.masks, size=batch.latents.shape[-2:], mode="area")
    backbone = cache.backbone
    latents, masks, embeds = (v.unflatten(0, rows.shape) for v in (batch.latents, grid, batch.image_embeds))
    return SupportFeatures(backbone.name, backbone.fingerprint, latents, masks, embeds)


def losses_of(
    output: SegmenterOutput, masks: Tensor, targets: Tensor, config: TrainConfig
) -> dict[str, Tensor]:
    """The terms of the loss, weighted; their sum is minimised.

    Args:
        output: of `Segmenter.forward`.
        masks: (b 1 h w) true masks in [0, 1], at any size up to S.
        targets: (b c H W) latents of the true mask pictures.
        config: weights of eq. 10 and the recipe.
    """
    score_map = output.scores.score_map
    wanted = F.interpolate(masks, size=score_map.shape[-2:], mode="area")
    terms = {"map": config.map_weight * F.mse_loss(score_map, wanted)}
    if output.latents is not None:
        terms["latent"] = config.latent_weight * _latent_error(output.latents.float(), targets)
        if config.recipe == "default":
            picture = F.interpolate(output.picture.float(), size=masks.shape[-2:], mode="area")
            logits = (picture - 0.5) * MASK_SHARPNESS
            probability = logits.sigmoid()
            overlap = (probability * masks).sum((1, 2, 3))
            dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
            entropy = F.binary_cross_entropy_with_logits(logits, masks)
            terms["mask"] = config.mask_weight * (entropy + dice.mean())
    return terms


def _latent_error(predicted: Tensor, target: Tensor) -> Tensor:
    """MSE over latents scaled to unit variance, so that beta means the same on every backbone."""
    return F.mse_loss(predicted, target) / target.var().clamp_min(1e-6)


class Trainer:
    """Optimise the trained modules of a segmenter over a feature cache.

    Args:
        segmenter: its `trained` modules are optimised in place.
        cache: built, of the training classes.
        validation: built, of held-out classes, or None.
        config: recipe and numbers.
        folder: where state, log and the best checkpoint go.
        info: what the checkpoint's metadata says beside the metrics.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        cache: FeatureCache,
        validation: FeatureCache | None,
        config: TrainConfig,
        folder: Path,
        info: CheckpointInfo,
    ) -> None:
        self.segmenter, self.cache, self.validation = segmenter, cache, validation
        self.config, self.folder, self.info = config, folder, info
        self.trained = segmenter.trained.requires_grad_(True).train()
        self.average = {name: value.detach().clone() for name, value in self.trained.state_dict().items()}
        parameters = list(self.trained.parameters())
        self.optimizer: torch.optim.Optimizer
        if config.recipe == "paper":
            self.optimizer = torch.optim.SGD(parameters, lr=0.01)
        else:
            self.optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
        self.step, self.best = 0, -1.0

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
        """Steps from where the folder's state left off to the end; state is saved at every validation."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()
        while self.step < self.config.steps:
            losses = self._optimise(draw_step(self.cache, self.config, self.step))
            lr = self.learning_rate(self.step)
            self.step += 1
            done = TrainStep(self.step, losses, lr)
            if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
                done = replace(done, validation=self._validate())
                self._save(done)
            yield done

    def _optimise(self, rows: StepRows) -> dict[str, float]:
        query = self.cache.read(rows.query.tolist(), rows.query_mirrored.tolist())
        support = read_supports(self.cache, rows.support, rows.support_mirrored)
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # dropout, the same after a restart
        with torch.autocast(query.latents.device.type, torch.bfloat16):
            output = self.segmenter.forward(query.latents, query.edges, support)
            terms = losses_of(output, query.masks, query.targets, self.config)
        total = torch.stack(list(terms.values())).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        decay = min(self.config.average_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, value in self.trained.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        return {name: term.item() for name, term in terms.items()}

    def _validate(self) -> dict[str, float]:
        """Mean IoU of the averaged weights on held-out classes, 1 shot, per source and over all classes."""
        if self.validation is None:
            return {}
        current = {name: value.clone() for name, value in self.trained.state_dict().items()}
        self.trained.load_state_dict(self.average)
        self.trained.eval()
        figures = validate(self.segmenter, self.validation)
        self.trained.load_state_dict(current)
        self.trained.train()
        return figures

    def _save(self, done: TrainStep) -> None:
        """State first, then the best checkpoint and the log: a kill in between costs nothing."""
        tensors = {f"model.{name}": value for name, value in self.trained.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
        score = (done.validation or {}).get("all", float(done.step))
        better = score > self.best
        self.best = max(score, self.best)
        record = {"step": done.step, "best": self.best, "config": asdict(self.config)}
        write_safetensors(self.folder / STATE, tensors, {"training": json.dumps(record)})
        if better:
            info = replace(
                self.info,
                training={**self.info.training, "step": done.step, **asdict(self.config)},
                metrics=done.validation or {},
            )
            write_checkpoint(self.folder / MODULES, {k: v.half() for k, v in self.average.items()}, info)
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(done)) + "\n")

    def _resume(self) -> None:
        path = self.folder / STATE
        if not path.is_file():
            return
        record = json.loads(read_header(path)[1]["training"])
        tensors = read_safetensors(path)[0]
        self.step, self.best = record["step"], record["best"]
        self.trained.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        self.average = {k[8:]: v for k, v in tensors.items() if k.startswith("average.")}
        slots: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                slots[int(index)][name] = value
        state: dict[str, Any] = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**state, "state": dict(slots)})


@torch.inference_mode()
def validation_episodes(
    segmenter: Segmenter, cache: FeatureCache, *, shots: int, episodes: int
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Class and `metrics.count_pixels` of `episodes` episodes a class at half size, always the same."""
    dataset = cache.dataset.with_enough(shots)
    count = episodes * len(dataset.classes)
    drawn = [draw_episode(dataset, index, shots=shots, seed=VALIDATION_SEED) for index in range(count)]
    for start in range(0, count, 8):
        chunk = drawn[start : start + 8]
        queries = [cache.row(episode.query) for episode in chunk]
        query = cache.read(queries, [False] * len(chunk))
        rows = np.array([[cache.support_row(i) for i in episode.support] for episode in chunk])
        support = read_supports(cache, rows, np.zeros_like(rows, dtype=bool))
        with torch.autocast(query.latents.device.type, torch.bfloat16):
            output = segmenter.forward(query.latents, query.edges, support)
        picture = F.interpolate(output.picture.float(), size=query.masks.shape[-2:], mode="area")
        predicted, truth = (picture > 0.5).cpu().numpy(), (query.masks > 0.5).cpu().numpy()
        for episode, mine, theirs in zip(chunk, predicted, truth, strict=True):
            yield episode.class_name, count_pixels(mine[0], theirs[0])


def validate(
    segmenter: Segmenter, cache: FeatureCache, *, shots: int = 1, episodes: int = VALIDATION_EPISODES
) -> dict[str, float]:
    """Quick mean IoU over cached pictures at half size; the figures to publish come from `evaluation`.

    Returns:
        Source (the part of the class name before "/") -> mean IoU over its classes, and "all".
    """
    counts = IouCounts()
    for name, pixels in validation_episodes(segmenter, cache, shots=shots, episodes=episodes):
        counts.add_counts(name, pixels)
    groups = class_groups(list(counts.counts))
    return {group: counts.mean_iou(names) for group, names in groups.items()}


def new_segmenter(
    cache: FeatureCache,
    scm: ScmConfig | None,
    pam: PamConfig | None,
    seed: int,
    knowledge: str = "self+cross",
) -> tuple[Segmenter, dict[str, Any]]:
    """A segmenter with fresh modules for a cache's backbone, and the config its checkpoints carry."""
    torch.manual_seed(seed)
    modules: nn.ModuleDict = build_modules(cache.backbone, scm, pam).to(cache.backbone.device)
    segmenter = Segmenter(
        backbone=cache.backbone,
        trained=modules,
        hed=cache.hed,
        head="pam" if pam else "attention",
        knowledge=knowledge,
    )
    return segmenter, asdict(ModulesConfig(scm, pam, knowledge, cache.backbone.image_size))
