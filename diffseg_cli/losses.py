"""What SCM and PAM learn from: the loss of eq. 10, and of the decoded mask.

Letters: b episodes, c latent channels, S image size in the model frame, H W = S/8.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg_cli.config import TrainConfig
from diffseg_cli.prediction import SegmenterOutput

FLOAT16_SCALE = 2.0**12  # a pixel's share of the loss is about 1e-6, and float16 has few bits below 6e-5
MASK_SHARPNESS = 8.0  # the decoded mask's [0, 1] as logits in [-4, 4] for the cross entropy


def map_loss(score_map: Tensor, masks: Tensor) -> Tensor:
    """First term of eq. 10: squared error of `M_a` (b 1 H W) against true masks (b 1 h w), all in [0, 1]."""
    return F.mse_loss(score_map.float(), F.interpolate(masks, size=score_map.shape[-2:], mode="area"))


def mask_loss(mask_image: Tensor, masks: Tensor) -> Tensor:
    """Cross entropy and Dice of decoded masks (b 1 S S) against true ones (b 1 h w), at the latters' size."""
    decoded = F.interpolate(mask_image.float(), size=masks.shape[-2:], mode="area")
    logits = (decoded - 0.5) * MASK_SHARPNESS
    probability = logits.sigmoid()
    overlap = (probability * masks).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
    return F.binary_cross_entropy_with_logits(logits, masks) + dice.mean()


def losses_of(
    output: SegmenterOutput, masks: Tensor, targets: Tensor, config: TrainConfig, variance: Tensor
) -> dict[str, Tensor]:
    """The terms of the loss, weighted; their sum is minimised.

    Args:
        output: of `Segmenter.forward`.
        masks: (b 1 h w) true masks in [0, 1], at any size up to S.
        targets: (b c H W) latents of the true masks as images.
        config: weights of eq. 10 and the recipe.
        variance: of the targets of the whole step; latents are scaled by it, so that beta means the same on
            every backbone.
    """
    terms = {"map": config.map_weight * map_loss(output.scores.score_map, masks)}
    if output.latents is not None:
        error = F.mse_loss(output.latents.float(), targets) / variance.clamp_min(1e-6)
        terms["latent"] = config.latent_weight * error
        if config.recipe == "default":
            terms["mask"] = config.mask_weight * mask_loss(output.mask_image, masks)
    return terms


def backward_scaled(loss: Tensor, parameters: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Gradients of a loss for parameters that have none yet, through a backbone that computes in dtype.

    What flows back through float16 is scaled up on the way, else most of it would be rounded to zero.
    """
    scale = FLOAT16_SCALE if dtype == torch.float16 else 1.0
    (loss * scale).backward()
    for parameter in parameters:
        if parameter.grad is not None and scale != 1:
            parameter.grad /= scale
