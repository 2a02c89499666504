"""Which supports of a concept help and which hurt, by leaving each out.

Every support in turn is the query: how well do the others find it, and how much worse without each of them?
It knows nothing but the supports, so it needs three of them, and cannot tell a bad support from one that is
merely different from all others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from diffseg_cli.frames import from_frame
from diffseg_cli.metrics import count_pixels
from diffseg_cli.prediction import QueryFeatures, SupportFeatures
from diffseg_cli.segmenter import Segmenter

LEAST_SUPPORTS = 3
HURTS = -0.01  # mean IoU it costs the others, from which on a support is said to hurt
HELPS = 0.01
SMALL, LARGE = 0.01, 0.7  # share of the picture
UNLIKE = 0.08  # of cosine below the mean of the others

Pair = tuple[NDArray[np.uint8], NDArray[np.bool_]]


@dataclass(frozen=True)
class SupportAdvice:
    """What leaving out one support says about it.

    Attributes:
        found: IoU at which all others find its object, in [0, 1].
        gain: mean IoU the others win by it when each is looked for, in [-1, 1]; below 0 it hurts.
        verdict: "helps", "hurts" or "neutral".
        reasons: why that may be, as sentences without a full stop; may be empty.
    """

    found: float
    gain: float
    verdict: str
    reasons: tuple[str, ...]


def advise(segmenter: Segmenter, support: SupportFeatures, pairs: Sequence[Pair]) -> list[SupportAdvice]:
    """Leave-one-out over the supports of a concept.

    Args:
        segmenter: the model.
        support: encoded by it, (1 k ...).
        pairs: uint8 (h w 3) and bool (h w) of each support, to look for it in.

    Returns:
        One a support, in order.

    Raises:
        ValueError: fewer than three supports, or not one pair a support.
    """
    shots = support.latents.shape[1]
    if shots < LEAST_SUPPORTS or len(pairs) != shots:
        raise ValueError(f"{shots} supports with {len(pairs)} pictures cannot be left out in turn")
    queries = [segmenter.encode_queries([image]) for image, _ in pairs]
    found = np.zeros(shots)
    gains = np.full((shots, shots), np.nan)  # [looked for, left out]
    for query in range(shots):
        others = [index for index in range(shots) if index != query]
        found[query] = _iou(segmenter, queries[query], choose_supports(support, others), pairs[query][1])
        for left_out in others:
            rest = choose_supports(support, [index for index in others if index != left_out])
            gains[query, left_out] = found[query] - _iou(segmenter, queries[query], rest, pairs[query][1])
    mean_gains = np.nanmean(gains, axis=0)
    likeness = _likeness(support)
    return [
        SupportAdvice(
            float(found[index]),
            float(mean_gains[index]),
            "hurts" if mean_gains[index] < HURTS else "helps" if mean_gains[index] > HELPS else "neutral",
            _reasons(index, pairs[index][1], found, likeness),
        )
        for index in range(shots)
    ]


def choose_supports(support: SupportFeatures, indices: Sequence[int]) -> SupportFeatures:
    """Some of the supports (1 k ...), in the given order."""
    chosen = list(indices)
    return SupportFeatures(
        support.backbone,
        support.fingerprint,
        support.latents[:, chosen],
        support.masks[:, chosen],
        support.image_embeds[:, chosen],
    )


@torch.inference_mode()
def _iou(
    segmenter: Segmenter, query: QueryFeatures, support: SupportFeatures, truth: NDArray[np.bool_]
) -> float:
    """IoU of the plain answer: refining and resizing to full size would only cost time here."""
    noise = segmenter.make_noise(query.latents, 0)
    output = segmenter.forward(query.latents, query.edges, support, noise)
    probability = from_frame(output.picture[0, 0], (truth.shape[0], truth.shape[1]))
    hit, either = count_pixels(probability > segmenter.settings.threshold, truth)[:2]
    return float(hit / max(either, 1))


def _likeness(support: SupportFeatures) -> NDArray[np.float64]:
    """Mean cosine (k) of each support's object with those of the others, of their mean latents."""
    latents, masks = support.latents[0].float(), support.masks[0].float()
    objects = F.normalize((latents * masks).sum((2, 3)), dim=1)  # (k c)
    cosines = objects @ objects.T
    mean: NDArray[np.float64] = ((cosines.sum(1) - 1) / (len(objects) - 1)).double().cpu().numpy()
    return mean


def _reasons(
    index: int, mask: NDArray[np.bool_], found: NDArray[np.float64], likeness: NDArray[np.float64]
) -> tuple[str, ...]:
    others = np.arange(len(found)) != index
    reasons = []
    share = float(mask.mean())
    if share < SMALL:
        reasons.append(f"its object is small ({share:.1%} of the picture)")
    if share > LARGE:
        reasons.append(
            f"its object fills the picture ({share:.0%}) and leaves little background to learn from"
        )
    if likeness[index] < likeness[others].mean() - UNLIKE:
        reasons.append(
            f"its object looks unlike the others' (likeness {likeness[index]:.2f}, "
            f"theirs {likeness[others].mean():.2f})"
        )
    if found[index] < found[others].mean() / 2:
        reasons.append("the others hardly find it: another kind of thing, or a mask that does not fit")
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if edge.mean() > 0.25:
        reasons.append("its object is cut off by the picture's edge")
    return tuple(reasons)
