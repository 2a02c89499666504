"""How unsure a proposal is, so that a person looks at the least certain images first."""

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.labelling.review_log import Review, State

# What is worth a person's time, first to last; within proposals the doubt decides.
_ORDER = (State.PROPOSED, State.UNTOUCHED, State.FAILED, State.CORRECTED, State.ACCEPTED, State.NOTHING)


def doubt_of(mask: NDArray[np.bool_], probability: NDArray[np.float32], presence: float | None) -> float:
    """Expected loss of IoU if a proposal is taken as it is.

    If the object is in the image and its pixels are independent with probabilities p, the IoU of a mask M is
    about sum_M p / (|M| + sum_not-M p): low where many pixels lie near the threshold. If it is not, only an
    empty mask is right. So presence near its cut is doubtful whatever the mask.

    Args:
        mask: (H W) that is proposed.
        probability: (H W) in [0, 1].
        presence: that the object is in the image, in [0, 1]; None without calibration counts as 1.

    Returns:
        In [0, 1].
    """
    there = 1.0 if presence is None else presence
    if not mask.any():
        return there if presence is not None else float(probability.max(initial=0.0))
    inside = float(probability[mask].sum())
    outside = float(probability[~mask].sum())
    return 1.0 - there * inside / (int(mask.sum()) + outside)


def by_doubt(reviews: list[Review]) -> list[Review]:
    """Reviews in the order in which to look at them: open ones first, by falling doubt."""
    return sorted(reviews, key=lambda each: (_ORDER.index(each.state), -(each.doubt or 0.0), each.image))
