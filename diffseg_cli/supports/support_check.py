"""Which supports of a concept help and which hurt, by leaving each out.

Every support in turn is looked for: how well do the others find it, how much worse without each of them, and
how well does each of them alone? It knows nothing but the supports, so it needs three of them.

One sign alone says little: among five good supports, what leaving one out costs four others hardly foretells
what it costs on new images (docs/notebook.md, 2026-11-23). So a support is said to hurt only where three
signs agree: its object looks unlike the others', alone it finds them worse than the others do, and with the
rest it adds nothing. That is what an image of another class, or a wrong mask, looks like.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.prediction import QueryFeatures
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.views import Pair

LEAST_SUPPORTS = 3
UNLIKE = 0.2  # of cosine below the mean of the others
WEAK = 0.05  # of soft IoU below what the others reach alone
HELPS = 0.01  # of soft IoU
SMALL, LARGE = 0.01, 0.7  # share of the image


@dataclass(frozen=True)
class SupportCheck:
    """What leaving out one support says about it.

    Attributes:
        found: IoU at which all others find its object, in [0, 1].
        alone: soft IoU it reaches alone when each other is looked for, the mean, in [0, 1].
        gain: soft IoU the others win by it when each is looked for, the mean, in [-1, 1].
        likeness: mean cosine of its object with the others', in [-1, 1].
        verdict: "helps", "hurts" or "neutral".
        reasons: what speaks against it, as phrases; may be empty.
    """

    found: float
    alone: float
    gain: float
    likeness: float
    verdict: str
    reasons: tuple[str, ...]


def check_supports(
    segmenter: Segmenter, support: SupportFeatures, pairs: Sequence[Pair]
) -> list[SupportCheck]:
    """Leave-one-out over the supports of a concept: a check of each, in order.

    Args:
        segmenter: the model.
        support: encoded by it, (1 k ...).
        pairs: uint8 (h w 3) and bool (h w) of each support, to look for it in.

    Raises:
        ValueError: fewer than three supports, or not one pair per support.
    """
    shots = support.shots
    if shots < LEAST_SUPPORTS or len(pairs) != shots:
        raise ValueError(f"{shots} supports with {len(pairs)} images cannot be left out in turn")
    found = np.zeros(shots)
    alone, gains = np.full((shots, shots), np.nan), np.full((shots, shots), np.nan)  # [looked for, support]
    for looked_for, (image, truth) in enumerate(pairs):
        query = segmenter.encode_queries([image])
        others = [index for index in range(shots) if index != looked_for]
        found[looked_for], soft = _ious(segmenter, query, support.choose(others), truth)
        for index in others:
            rest = support.choose([other for other in others if other != index])
            gains[looked_for, index] = soft - _ious(segmenter, query, rest, truth)[1]
            alone[looked_for, index] = _ious(segmenter, query, support.choose([index]), truth)[1]
    mean_alone, mean_gains, likeness = np.nanmean(alone, 0), np.nanmean(gains, 0), _likeness(support)
    checks = []
    for index in range(shots):
        rest = np.arange(shots) != index
        unlike = likeness[index] < likeness[rest].mean() - UNLIKE
        weak = mean_alone[index] < mean_alone[rest].mean() - WEAK
        gain = float(mean_gains[index])
        verdict = "hurts" if unlike and weak and gain <= 0 else "helps" if gain > HELPS else "neutral"
        reasons = [
            *(["its object looks unlike the others'"] if unlike else []),
            *(["alone it finds them worse than they find each other"] if weak else []),
            *(["the others hardly find it"] if found[index] < found[rest].mean() / 2 else []),
            *_mask_reasons(pairs[index][1]),
        ]
        checks.append(
            SupportCheck(
                float(found[index]),
                float(mean_alone[index]),
                gain,
                float(likeness[index]),
                verdict,
                tuple(reasons),
            )
        )
    return checks


@torch.inference_mode()
def _ious(
    segmenter: Segmenter, query: QueryFeatures, support: SupportFeatures, truth: NDArray[np.bool_]
) -> tuple[float, float]:
    """IoU and soft IoU (sums of probabilities, not of pixels) of the answer, neither refined nor cleaned."""
    output = segmenter.predict(query.latents, query.edges, support)
    mask, probability = segmenter.finish(
        output.probability[0, 0], query.images[0], refine=False, min_area="0"
    )
    iou = float((mask & truth).sum() / max((mask | truth).sum(), 1))
    inside = float(probability[truth].sum())
    return iou, inside / (float(probability.sum()) + float(truth.sum()) - inside)


def _likeness(support: SupportFeatures) -> NDArray[np.float64]:
    """Mean cosine (k) of each support's object with those of the others, of their mean latents."""
    latents, masks = support.latents[0].float(), support.masks[0].float()
    objects = F.normalize((latents * masks).sum((2, 3)), dim=1)  # (k c)
    cosines = objects @ objects.T
    mean: NDArray[np.float64] = ((cosines.sum(1) - 1) / (len(objects) - 1)).double().cpu().numpy()
    return mean


def _mask_reasons(mask: NDArray[np.bool_]) -> list[str]:
    reasons, share = [], float(mask.mean())
    if share < SMALL:
        reasons.append(f"its object is small ({share:.1%} of the image)")
    if share > LARGE:
        reasons.append(f"its object leaves little background ({1 - share:.0%} of the image)")
    if np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean() > 0.25:
        reasons.append("its object is cut off by the image's edge")
    return reasons
