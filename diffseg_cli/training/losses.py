"""The loss of eq. 10, and what the default recipe adds to it.

Letters: b episodes, c latent channels, H W = S/8.
"""

import torch.nn.functional as F
from torch import Tensor

from diffseg_cli.config import TrainConfig
from diffseg_cli.prediction import SegmenterOutput

MASK_SHARPNESS = 8.0  # the picture's [0, 1] as logits in [-4, 4] for the cross entropy


def losses_of(
    output: SegmenterOutput, masks: Tensor, targets: Tensor, config: TrainConfig, variance: Tensor
) -> dict[str, Tensor]:
    """The terms of the loss, weighted; their sum is minimised.

    Args:
        output: of `Segmenter.forward`.
        masks: (b 1 h w) true masks in [0, 1], at any size up to S.
        targets: (b c H W) latents of the true mask pictures.
        config: weights of eq. 10 and the recipe.
        variance: of the targets of the whole step; latents are scaled by it, so that beta means the same on
            every backbone.
    """
    score_map = output.scores.score_map
    wanted = F.interpolate(masks, size=score_map.shape[-2:], mode="area")
    terms = {"map": config.map_weight * F.mse_loss(score_map, wanted)}
    if output.latents is not None:
        error = F.mse_loss(output.latents.float(), targets) / variance.clamp_min(1e-6)
        terms["latent"] = config.latent_weight * error
        if config.recipe == "default":
            picture = F.interpolate(output.picture.float(), size=masks.shape[-2:], mode="area")
            logits = (picture - 0.5) * MASK_SHARPNESS
            probability = logits.sigmoid()
            overlap = (probability * masks).sum((1, 2, 3))
            dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
            entropy = F.binary_cross_entropy_with_logits(logits, masks)
            terms["mask"] = config.mask_weight * (entropy + dice.mean())
    return terms
