"""Read the attention of Kandinsky's UNet while it runs, and give the UNet back unchanged.

Its layers are diffusers' `Attention` with added keys: `[t image tokens | n spatial tokens]` under one
softmax. There is no separate cross-attention, so the usual hooks on `attn2` find nothing; sizes are taken
from the tensors.

Letters: b queries, a heads, g of them at a time, h w grid of a layer, n = h*w, t image tokens, e width of a
head, c = a*e.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp
from typing import Any

import torch
from torch import Tensor

from diffseg_cli.models.attention import (
    AttentionMaps,
    LayerAttention,
    OnLayer,
    split_head_mean,
)

# Probabilities held at once, over all images of a batch: 16 MB in half precision, which caches hold. All
# heads of a layer at once took a third to a half more time on a CPU (docs/notebook.md), and memory that
# grows with the batch.
GROUP_SIZE = 2**23


@dataclass(frozen=True)
class Recorder:
    """Where the attention of one look goes.

    Attributes:
        maps: running sums, added to layer by layer; no layer's probabilities are kept.
        on_layer: called with each layer, or None.
        timestep: of this look.
        image_tokens: t.
        prompt_bias: added to the logits of the image columns; minus log k keeps the weight of a prompt of k
            supports what it is for one.
        group_size: how many probabilities may be held at once; one head's always are.
    """

    maps: AttentionMaps
    on_layer: OnLayer | None
    timestep: int
    image_tokens: int
    prompt_bias: float = 0.0
    group_size: int = GROUP_SIZE

    def read(
        self, name: str, attn: Any, hidden_states: Tensor, prompt: Tensor, *, last: bool = False
    ) -> list[Tensor]:
        """Take in what a layer attends to, a few heads at a time.

        Args:
            name: of the layer inside the UNet.
            attn: a diffusers `Attention` with added keys.
            hidden_states: (b c h w) that enter it.
            prompt: (b t d) image tokens, or (1 t d) when all images share them.
            last: no values, because nothing reads what this layer passes on.

        Returns:
            Probabilities times values, (b g n e) a group of heads; none for the last layer.
        """
        grid_hw = (hidden_states.shape[2], hidden_states.shape[3])
        tokens = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)  # (b n c)
        # diffusers scales the product, we the queries: the same, and float16 cannot overflow.
        queries = _split_heads(attn.to_q(tokens) * attn.scale, attn.heads)
        keys = _join(attn, attn.add_k_proj(prompt), attn.to_k(tokens))
        values = None if last else _join(attn, attn.add_v_proj(prompt), attn.to_v(tokens))
        size = (queries.shape[0], queries.shape[2], keys.shape[2])  # (b n t+n)
        mean = queries.new_zeros(size, dtype=torch.float32)
        group = attn.heads if self.on_layer is not None else max(1, self.group_size // mean.numel())
        attended = []
        for start in range(0, attn.heads, group):
            heads = slice(start, start + group)
            logits = queries[:, heads] @ keys[:, heads].transpose(-1, -2)
            if self.prompt_bias:
                logits[..., : self.image_tokens] += self.prompt_bias
            probabilities = logits.softmax(-1)  # (b g n t+n), in the format the values are in
            del logits
            if self.on_layer is not None:
                self.on_layer(
                    LayerAttention(name, self.timestep, grid_hw, self.image_tokens, probabilities.float())
                )
            mean += probabilities.sum(1, dtype=torch.float32)
            if values is not None:
                attended.append(probabilities @ values[:, heads])
        weight = self.image_tokens * exp(self.prompt_bias)  # of the prompt, in places
        even_share = weight / (weight + queries.shape[2])
        self.maps.add(grid_hw, *split_head_mean(mean / attn.heads, self.image_tokens), even_share)
        return attended


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
        groups = self.recorder.read(self.name, attn, hidden_states, encoder_hidden_states)
        attended = torch.cat(groups, dim=1).transpose(1, 2).flatten(2)  # (b n c)
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
