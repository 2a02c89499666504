"""What the frozen network is asked for: its attention maps (the method), or less (the paper's table 4).

`M_a`, the map that SCM is trained on and PAM's attention 2 reads, is made from one of these:

- `self+cross`: prompt share smoothed by affinity (eq. 11), the method.
- `cross`: prompt share alone, normalised.
- `self`: affinity alone. It knows no prompt: how much attention each place gets from all others.
- `resnet`: no attention; features of the convolutions before each attention layer, compared with the mean of
  the support's object less that of its background.
- `transformer`: the same comparison of features after self-attention (affinity times features).

The last two read the hidden states SCM reads and writes. In the compact backbone those are pooled features of
its ImageNet encoder, so they stand in for the UNet's resnet and transformer blocks of the paper.

Letters: b queries, k supports, c latent channels, H W latent size, s scale, h w its grid, n = h*w,
t prompt tokens, d their width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffseg_cli.models.attention import (
    AttentionMaps,
    ScoreMaps,
    affinity_of,
    cross_map,
    normalise,
    score_maps,
)
from diffseg_cli.models.backbone import Backbone, Control
from diffseg_cli.models.prototype import prototype_scores
from diffseg_cli.models.support import SupportFeatures

FEATURE_KNOWLEDGE = ("resnet", "transformer")
KNOWLEDGE = ("self+cross", "cross", "self", *FEATURE_KNOWLEDGE)


class StateRecorder:
    """A `Control` that keeps the hidden states of a look as they enter its attention.

    Attributes:
        states: (b width_s h w) each, finest scale first, with the residuals of `control` added.
    """

    def __init__(self, control: Control | None) -> None:
        self._control = control
        self.states: list[Tensor] = []

    def __call__(self, hidden_states: Sequence[Tensor]) -> Sequence[Tensor]:
        residuals = (
            self._control(hidden_states)
            if self._control
            else [torch.zeros_like(hidden) for hidden in hidden_states]
        )
        self.states = [hidden + add for hidden, add in zip(hidden_states, residuals, strict=True)]
        return residuals


def _states(
    backbone: Backbone, latents: Tensor, image_embeds: Tensor, control: Control | None, knowledge: str
) -> list[Tensor]:
    """Features of every scale (b width_s h w); arguments as in `Backbone.look`."""
    recorder = StateRecorder(control)
    maps = backbone.look(latents, image_embeds, timesteps=(0,), noise=None, control=recorder)
    if knowledge == "resnet":
        return recorder.states
    attended = []
    for hidden in recorder.states:
        affinity = maps.affinity[hidden.shape[2], hidden.shape[3]].to(hidden)  # (b n n)
        tokens = affinity @ hidden.flatten(2).transpose(1, 2)  # (b n width_s)
        attended.append(tokens.transpose(1, 2).reshape(hidden.shape))
    return attended


def _feature_scores(
    knowledge: str, backbone: Backbone, latents: Tensor, support: SupportFeatures, control: Control | None
) -> Tensor:
    """How like the supports' object each place is (b H W), mean over the scales, not normalised."""
    support_latents, masks, image_embeds = (
        values.expand(latents.shape[0], -1, *values.shape[2:])
        for values in (support.latents, support.masks, support.image_embeds)
    )
    b, k = support_latents.shape[:2]
    query_states = _states(backbone, latents, image_embeds, control, knowledge)
    prompts = image_embeds.flatten(0, 1)[:, None]  # (b*k 1 t d): each support looks at itself
    support_states = _states(backbone, support_latents.flatten(0, 1), prompts, None, knowledge)
    total = latents.new_zeros(b, 1, *latents.shape[-2:])
    for states, wanted in zip(query_states, support_states, strict=True):
        grid = F.interpolate(masks.flatten(0, 1), size=wanted.shape[-2:], mode="area").to(wanted)
        score = prototype_scores(states, wanted.unflatten(0, (b, k)), grid.unflatten(0, (b, k)))
        total = total + F.interpolate(score, size=latents.shape[-2:], mode="bilinear", align_corners=False)
    return total[:, 0] / len(query_states)


def knowledge_scores(
    knowledge: str,
    backbone: Backbone,
    maps: AttentionMaps,
    latents: Tensor,
    support: SupportFeatures,
    control: Control | None,
) -> ScoreMaps:
    """`M_a` from what the frozen network is asked for.

    Args:
        knowledge: of `KNOWLEDGE`; those of `FEATURE_KNOWLEDGE` need a backbone whose look has one attention
            layer a scale and adds no noise.
        backbone: that gave the maps.
        maps: the sums of the look at the queries.
        latents: (b c H W) of the queries.
        support: of the queries, with b or 1 rows, fused.
        control: SCM as the look had it, or None.
    """
    output_hw = (latents.shape[2], latents.shape[3])
    if knowledge == "self+cross":
        return score_maps(maps, output_hw)
    cross = cross_map(maps, output_hw)
    if knowledge == "cross":
        raw = cross
    elif knowledge == "self":
        raw = affinity_of(maps, torch.ones_like(cross))
    else:
        raw = _feature_scores(knowledge, backbone, latents, support, control)
    return ScoreMaps(score_map=normalise(raw)[:, None], cross_map=cross[:, None], raw_map=raw[:, None])
