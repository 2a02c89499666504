"""Fit and judge the presence score on cached episodes, half of them without the object."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg_cli.config import SegmentConfig
from diffseg_cli.datasets.episode import Episode, FewShotDataset, draw_episode
from diffseg_cli.evaluation.metrics import roc_auc
from diffseg_cli.evaluation.summary import class_groups
from diffseg_cli.loading import load_modules, trained_look
from diffseg_cli.presence import PresenceCalibration, presence_features
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.training.validation import fit_gamma
from diffseg_cli.weights.checkpoint import read_checkpoint, write_checkpoint

EPISODES = 400
BINS = 10
ENOUGH_CLASSES = 8  # with fewer, gamma and presence score of the start are the better guess


@dataclass(frozen=True)
class PresenceSample:
    """Features of some episodes.

    Attributes:
        features: (n 3).
        present: (n) 1 where the query holds the object.
        class_names: of the supports.
    """

    features: Tensor
    present: Tensor
    class_names: list[str]


def draw_presence_episode(
    dataset: FewShotDataset, index: int, *, shots: int, seed: int
) -> tuple[Episode, bool]:
    """Even episodes as `draw_episode` gives them; odd ones with a query that lacks the object.

    That it is absent is what the data set knows: neither the query's class nor a label of its `present`.

    Returns:
        The episode and whether its query holds the object. An odd episode of a source with no such image is
        given as an ordinary one.
    """
    episode = draw_episode(dataset, index // 2, shots=shots, seed=seed)
    if index % 2 == 0:
        return episode, True
    source, slash, _ = episode.class_name.rpartition("/")
    free = dataset.without(episode.class_name, source=source + slash)
    if not free:
        return episode, True
    generator = np.random.Generator(np.random.PCG64([seed, index, 1]))
    return Episode(episode.class_name, episode.support, free[int(generator.integers(len(free)))]), False


@torch.no_grad()  # not inference mode: the features are fitted on
def sample_presence(
    segmenter: Segmenter, cache: FeatureCache, *, episodes: int = EPISODES, seed: int = 0, shots: int = 1
) -> PresenceSample:
    """Run episodes with and without the object, in equal numbers."""
    dataset = cache.dataset.with_enough(shots)
    drawn = [draw_presence_episode(dataset, index, shots=shots, seed=seed) for index in range(episodes)]
    features = []
    for start in range(0, episodes, 8):
        chunk = [episode for episode, _ in drawn[start : start + 8]]
        query = cache.read([cache.row(episode.query) for episode in chunk])
        rows = np.array([[cache.support_row(i) for i in episode.support] for episode in chunk])
        support = cache.read_supports(rows)
        output = segmenter.predict(query.latents, query.edges, support, seed)
        features.append(presence_features(output, query.latents, support).cpu())
    present = torch.tensor([float(flag) for _, flag in drawn])
    return PresenceSample(torch.cat(features), present, [episode.class_name for episode, _ in drawn])


def fit_calibration(features: Tensor, present: Tensor) -> PresenceCalibration:
    """Logistic regression, lightly regularised.

    Args:
        features: (n 3).
        present: (n) in {0, 1}.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    scaled = (features - mean) / std
    weights = torch.zeros(features.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = F.binary_cross_entropy_with_logits(scaled @ weights + bias, present.float())
        error = error + 1e-3 * weights.square().sum()
        error.backward()
        return error

    optimizer.step(loss)
    unscaled = (weights / std).detach()
    return PresenceCalibration(tuple(unscaled.tolist()), float(bias.detach() - (unscaled * mean).sum()))


def calibrate(sample: PresenceSample) -> tuple[PresenceCalibration, Tensor]:
    """The calibration of a sample, and scores to judge it by.

    Returns:
        The calibration fitted on all of it, and (n) scores of each half of the classes by one fitted
        on the other half. With a single class these are its own.
    """
    names = sorted(set(sample.class_names))
    half = torch.tensor([names.index(name) % 2 == 0 for name in sample.class_names])
    whole = fit_calibration(sample.features, sample.present)
    scores = whole.score(sample.features)
    if len(names) > 1:
        for judged in (half, ~half):
            other = fit_calibration(sample.features[~judged], sample.present[~judged])
            scores[judged] = other.score(sample.features[judged])
    return whole, scores


def presence_report(
    scores: Tensor, sample: PresenceSample, groups: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """ROC AUC of each group of classes, and the expected calibration error over all.

    Args:
        scores: (n) in [0, 1].
        sample: what was scored.
        groups: name -> classes, e.g. of `class_groups`.
    """
    figures = {}
    for group, members in groups.items():
        chosen = torch.tensor([name in members for name in sample.class_names])
        held = sample.present > 0
        with_it, without = scores[chosen & held], scores[chosen & ~held]
        figures[f"auc {group}"] = roc_auc(with_it.numpy(), without.numpy())
    figures["calibration error"] = sum(
        abs(stated - true) * share for stated, true, share in reliability(scores, sample.present)
    )
    return figures


def reliability(scores: Tensor, present: Tensor) -> list[tuple[float, float, float]]:
    """(mean score, share that holds the object, share of all episodes) of each tenth of the scale in use."""
    rows = []
    for low in range(BINS):
        inside = (scores * BINS).long().clamp_max(BINS - 1) == low
        if inside.any():
            share = float(inside.float().mean())
            rows.append((float(scores[inside].mean()), float(present[inside].mean()), share))
    return rows


def calibrate_checkpoint(
    checkpoint: Path, cache: FeatureCache
) -> tuple[dict[str, float], list[tuple[float, float, float]]]:
    """Fit gamma and presence score of a checkpoint on held-out classes and write them into the file.

    Where no episode lacks the object (a single class), or the checkpoint started from one that has a score
    and there are too few classes for a better one, it is left as it is.

    Args:
        checkpoint: of a training run; rewritten in place.
        cache: of classes it was not trained on, where there are any.

    Returns:
        `presence_report` and `reliability`, each half of the classes scored by the other; both empty where
        nothing could be fitted.
    """
    backbone, classes = cache.backbone, len(cache.dataset.classes)
    tensors, info = read_checkpoint(checkpoint, backbone=backbone.name, fingerprint=backbone.fingerprint)
    if info.training.get("init") and info.config.get("presence") and classes < ENOUGH_CLASSES:
        return {}, []
    episodes = min(EPISODES, 4 * len(cache.dataset.samples))  # more would repeat the same few images
    dataset = cache.dataset.with_enough(1)
    drawn = (draw_presence_episode(dataset, index, shots=1, seed=0) for index in range(episodes))
    if all(is_present for _, is_present in drawn):  # before any look: there is nothing to tell apart
        return {}, []
    trained = load_modules(checkpoint, backbone)
    head = "pam" if "pam" in trained.modules else "attention"
    settings = SegmentConfig(**vars(trained_look(checkpoint)))
    segmenter = Segmenter(backbone=backbone, trained=trained, hed=cache.hed, head=head, settings=settings)
    if head == "pam" and classes >= ENOUGH_CLASSES:
        plain = segmenter.with_trained(replace(trained, mask_gamma=1.0))
        segmenter = segmenter.with_trained(replace(trained, mask_gamma=fit_gamma(plain, cache)))
    sample = sample_presence(segmenter, cache, episodes=episodes)
    calibration, scores = calibrate(sample)
    figures = presence_report(scores, sample, class_groups(cache.dataset.classes))
    config = {**info.config, "presence": asdict(calibration), "mask_gamma": segmenter.trained.mask_gamma}
    metrics = {**info.metrics, "presence": figures}
    write_checkpoint(checkpoint, tensors, replace(info, config=config, metrics=metrics))
    return figures, reliability(scores, sample.present)
