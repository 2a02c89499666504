"""Is the concept in the image at all? A calibrated score from what a look says before it is normalised.

Min-max makes some place bright in every image, so the score map alone cannot say "nothing here". Three
figures can: how like the supports' object the found region is, how much of the prompt its best places take,
and how sure PAM is of what it marked. A logistic function of them, fitted on episodes with and without the
object, is the presence score.

Letters: b queries, k supports, c latent channels, H W latent size.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.prediction import SegmenterOutput


def presence_features(output: SegmenterOutput, latents: Tensor, support: SupportFeatures) -> Tensor:
    """What the score is made of.

    Args:
        output: of `Segmenter.forward`.
        latents: (b c H W) of the queries.
        support: of the queries, with b or 1 rows.

    Returns:
        (b 3): cosine between the mean latents of the found region and of the supports' object, in [-1, 1];
        mean prompt share of the best places, in [0, 1]; mean of the predicted mask over the found region,
        in [0, 1].
    """
    found = F.interpolate(output.probability, size=latents.shape[-2:], mode="area")  # (b 1 H W)
    region = (latents.float() * found).sum((2, 3))  # (b c)
    wanted = (support.latents.float() * support.masks).sum((1, 3, 4))  # (1 or b c)
    similarity = F.cosine_similarity(region, wanted, dim=1)
    confidence = found.square().sum((1, 2, 3)) / found.sum((1, 2, 3)).clamp_min(1e-6)
    return torch.stack([similarity, output.prompt_share, confidence], dim=1)


@dataclass(frozen=True)
class PresenceCalibration:
    """Logistic function of `presence_features`: a weight for each, and the log odds when all are zero."""

    weights: tuple[float, ...]
    bias: float

    @classmethod
    def from_config(cls, config: dict[str, Any] | None) -> "PresenceCalibration | None":
        """What a checkpoint's config holds, or None where there is none."""
        return cls(tuple(config["weights"]), config["bias"]) if config else None

    def score(self, features: Tensor) -> Tensor:
        """features (b 3) -> probability (b) in [0, 1] that the object is in the image."""
        return torch.sigmoid(features @ features.new_tensor(self.weights) + self.bias)
