"""Read the attention of Kandinsky's UNet while it runs, and give the UNet back unchanged.

Its layers are diffusers' `Attention` with added keys: `[t image tokens | n spatial tokens]` under one
softmax. There is no separate cross-attention, so the usual hooks on `attn2` find nothing; sizes are taken
from the tensors.

Letters: b queries, a heads, h w grid of a layer, n = h*w, t image tokens, e width of a head, c = a*e.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffseg_cli.models.attention import (
    AttentionMaps,
    GridHW,
    LayerAttention,
    OnLayer,
    split_joint_attention,
)


@dataclass(frozen=True)
class Recorder:
    """Where the probabilities of one look go.

    Attributes:
        maps: running sums, added to layer by layer; no layer's probabilities are kept.
        on_layer: called with each layer, or None.
        timestep: of this look.
        image_tokens: t.
        prompt_bias: added to the logits of the image columns; minus log k keeps the weight of a prompt of k
            supports what it is for one.
    """

    maps: AttentionMaps
    on_layer: OnLayer | None
    timestep: int
    image_tokens: int
    prompt_bias: float = 0.0

    def record(self, name: str, grid_hw: GridHW, probabilities: Tensor) -> None:
        """Take in one layer's probabilities (b a n t+n)."""
        if self.on_layer is not None:
            self.on_layer(LayerAttention(name, self.timestep, grid_hw, self.image_tokens, probabilities))
        self.maps.add(grid_hw, *split_joint_attention(probabilities, self.image_tokens))


def to_tokens(attn: Any, hidden_states: Tensor) -> Tensor:
    """hidden_states (b c h w) -> normalised tokens (b n c), as the layer's projections read them."""
    tokens: Tensor = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)
    return tokens


def joint_probabilities(attn: Any, tokens: Tensor, prompt: Tensor, prompt_bias: float = 0.0) -> Tensor:
    """What a layer attends to.

    Args:
        attn: a diffusers `Attention` with added keys.
        tokens: (b n c) from `to_tokens`.
        prompt: (b t d) image tokens, or (1 t d) when all pictures share them.
        prompt_bias: see `Recorder`.

    Returns:
        (b a n t+n) float32, rows sum to 1.
    """
    # diffusers scales the product, we the queries: the same, and float16 cannot overflow.
    queries = _split_heads(attn.to_q(tokens) * attn.scale, attn.heads)
    keys = _join(attn, attn.add_k_proj(prompt), attn.to_k(tokens))
    logits = queries @ keys.transpose(-1, -2)
    if prompt_bias:
        bias = torch.zeros(logits.shape[-1], device=logits.device)
        bias[: prompt.shape[1]] = prompt_bias
        logits = logits.float() + bias
    return logits.softmax(-1, dtype=torch.float32)


class RecordingProcessor:
    """Stands in for diffusers' `AttnAddedKVProcessor` in one layer: the same result, and a record of it.

    Args:
        name: of the layer inside the UNet.
        recorder: of this look.
    """

    def __init__(self, name: str, recorder: Recorder) -> None:
        self.name, self.recorder = name, recorder

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002 - part of diffusers' interface, None here
    ) -> Tensor:
        tokens = to_tokens(attn, hidden_states)
        prompt = encoder_hidden_states
        probabilities = joint_probabilities(attn, tokens, prompt, self.recorder.prompt_bias)
        grid_hw = (hidden_states.shape[2], hidden_states.shape[3])
        self.recorder.record(self.name, grid_hw, probabilities)
        values = _join(attn, attn.add_v_proj(prompt), attn.to_v(tokens))
        attended = (probabilities.to(values.dtype) @ values).transpose(1, 2).flatten(2)  # (b n c)
        attended = attn.to_out[1](attn.to_out[0](attended))
        result: Tensor = attended.transpose(1, 2).reshape(hidden_states.shape) + hidden_states
        return result


@contextmanager
def recording(unet: Any, recorder: Recorder) -> Iterator[None]:
    """Let every attention layer of a UNet report to a recorder; its own processors come back in any case.

    The processors belong to the UNet: two looks through one UNet at the same time, from two threads, would
    mix their maps.
    """
    previous = unet.attn_processors
    try:
        unet.set_attn_processor(
            {name: RecordingProcessor(name.removesuffix(".processor"), recorder) for name in previous}
        )
        yield
    finally:
        unet.set_attn_processor(dict(previous))  # it empties the dictionary it is given


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    """(b n c) -> (b a n e)."""
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _join(attn: Any, image: Tensor, spatial: Tensor) -> Tensor:
    """Keys or values of both kinds: image (b|1 t c), spatial (b n c) -> (b a t+n e), image first."""
    image = image.expand(spatial.shape[0], -1, -1)
    return _split_heads(torch.cat([image, spatial], dim=1), attn.heads)
