"""The prototype line with a metric fitted to the supports: adaptation without the modules, as a peer.

It learns from the episodes that `adaptation.py` draws for SCM and PAM, so the difference between the two is
what the modules add.

Letters: c latent channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffseg_cli.adaptation import SupportViews
from diffseg_cli.config import AdaptConfig
from diffseg_cli.losses import mask_loss
from diffseg_cli.method import Method
from diffseg_cli.models.prototype import THRESHOLD, prototype_scores
from diffseg_cli.views import Pair

LEARNING_RATE = 0.03  # falls to zero in a straight line, as that of the modules
SHARPNESS = 4.0  # of scores around the threshold, for the loss


@dataclass(frozen=True)
class Metric:
    """What was fitted: channel weights (c) of `prototype_scores`, and the threshold of its scores."""

    channel_weights: Tensor
    threshold: float


def adapt_metric(
    segmenter: Method, pairs: Sequence[Pair], config: AdaptConfig | None = None, *, seed: int = 0
) -> Metric:
    """Fit channel weights and threshold of the prototype line to one concept.

    Args:
        segmenter: whose backbone encodes.
        pairs: the supports, images (h w 3) and masks (h w).
        config: of the views and episodes; default `AdaptConfig`.
        seed: of both.
    """
    config = config or AdaptConfig()
    views = SupportViews(segmenter, config, seed)
    for pair in pairs:
        views.add_support(pair)
    backbone = segmenter.backbone
    start = backbone.channel_weights
    if start is None:
        start = torch.ones(backbone.latent_channels, device=segmenter.device)
    logs = start.float().clamp_min(1e-3).log().requires_grad_(True)
    threshold = torch.tensor(THRESHOLD, device=segmenter.device, requires_grad=True)
    optimizer = torch.optim.Adam([logs, threshold], lr=LEARNING_RATE)
    generator = np.random.Generator(np.random.PCG64([seed, 2]))
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / config.steps)
        queries, support, _ = views.draw(generator)
        latents, masks = (
            torch.cat([getattr(view, name) for view in queries]).float() for name in ("latents", "mask")
        )
        scores = prototype_scores(latents, support.latents.float(), support.masks.float(), logs.exp())
        optimizer.zero_grad(set_to_none=True)
        mask_loss(0.5 + SHARPNESS * (scores - threshold), masks).backward()
        optimizer.step()
    return Metric(logs.detach().exp(), float(threshold.detach()))
