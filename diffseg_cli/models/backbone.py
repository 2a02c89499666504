"""The contract every backbone answers: everything after it is the same code.

What differs from one to the next is a member here, so that nothing else asks a backbone for its name or type.
A new one is a module beside this one and a row of `loading.BACKBONES`.

Letters: b queries, k supports, S model-frame size in pixels, c latent channels, H W = S/8, i latent group,
t prompt tokens per support, d their width.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from diffseg_cli.models.attention import AttentionMaps, OnLayer
from diffseg_cli.views import Pair

# SCM as a look sees it: hidden states entering or leaving the down path, finest scale first, each
# (b width_s h_s w_s) -> what to add to the hidden state that enters the attention of the same scale.
Control = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class Backbone(Protocol):
    """A frozen network that can be looked through.

    Attributes:
        name: "compact" or "kandinsky-2-2"; what a checkpoint is tied to.
        description: what it is, in a few words for people.
        fingerprint: short hash of the frozen weights; checkpoints and saved concepts are checked against it.
        image_size: S it works best at; a multiple of 64.
        latent_channels: c.
        latent_groups: widths of the groups the latent channels fall into, one a depth; they sum to c.
        scale_widths: widths of the hidden states SCM reads and writes, finest scale first.
        support_margin: seen from near, a support is the box of its object with this share of the box's longer
            side around it (`frames.crop_to_object`); None: it is always seen whole.
        masks_support: True when `encode` is to be given supports with their background blacked out (eq. 3);
            False when it sees the whole support image and the mask enters through prompt and PAM alone.
        adds_noise: whether `look` adds noise to the latents.
        resizable: whether it can be loaded for another S than the one it works best at.
        shares_cpu: whether a CPU is used best by several looks at once, one core each; else one look takes
            all cores.
        mixed_precision: whether training keeps it in float32 and encodes under autocast; else it computes in
            the number format it is loaded in.
        edge_detector: what finds the edges SCM reads, a key of `loading.EDGE_DETECTORS`.
        cuda_dtype: what it answers best in on CUDA; None: whatever suits the device.
        channel_weights: (c) how much each latent channel counts in a comparison, or None for all alike.
        latents_fingerprint: of all that latents and prompts depend on; what they are cached under.
        device: where its parameters are.
        dtype: what it computes in.
    """

    name: str
    description: str
    fingerprint: str
    image_size: int
    latent_channels: int
    latent_groups: tuple[int, ...]
    scale_widths: tuple[int, ...]
    support_margin: float | None
    masks_support: bool
    adds_noise: bool
    resizable: bool
    shares_cpu: bool
    mixed_precision: bool
    edge_detector: str
    cuda_dtype: torch.dtype | None

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def channel_weights(self) -> Tensor | None: ...

    @property
    def latents_fingerprint(self) -> str: ...

    def encode(self, images: Tensor) -> Tensor:
        """images (b 3 S S) in [0, 1] -> latents (b c H W)."""
        ...

    def encode_blocks(self, images: Tensor) -> list[Tensor]:
        """images (b 3 S S) in [0, 1] -> latents as they are cached: (b width_i h_i w_i) per latent group."""
        ...

    def stack_blocks(self, blocks: Sequence[Tensor]) -> Tensor:
        """What `encode_blocks` gave -> latents (b c H W)."""
        ...

    def embed(self, images: Tensor, masks: Tensor, latents: Tensor | None = None) -> Tensor:
        """images (k 3 S S) in [0, 1], masks (k 1 S S) in {0, 1} -> image_embeds (k t d).

        `latents` (k c H W) of the same images spare a backbone that prompts with them a second encoding.
        """
        ...

    def embed_pairs(self, pairs: Sequence[Pair], *, crop: bool = True) -> Tensor | None:
        """`embed` from supports at their own size and aspect, images (h w 3) and masks (h w).

        Args:
            pairs: the supports.
            crop: show the object from near, if the backbone does that; else the whole image.

        Returns:
            (k t d), or None where the model frame serves as well.
        """
        ...

    def embed_nothing(self) -> Tensor:
        """Prompt (1 t d) of an image that is zero after preprocessing; computed once."""
        ...

    def look(
        self,
        latents: Tensor,
        image_embeds: Tensor,
        *,
        timesteps: Sequence[int],
        noise: Tensor | None,
        control: Control | None = None,
        on_layer: OnLayer | None = None,
    ) -> AttentionMaps:
        """One look at the queries, prompted (eq. 6); nothing after the last attention layer is computed.

        Args:
            latents: (b c H W) of the queries.
            image_embeds: (b k t d) prompt of each query, supports apart (k = 1 after fusion by mean).
            timesteps: noise levels; the maps are summed over them.
            noise: (b c H W) unit normal, or None where the backbone adds none.
            control: SCM bound to the edges of the queries, or None.
            on_layer: called with each layer's probabilities; slows the look down.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """latents (b c H W) -> images (b 3 S S), about [0, 1], not clipped."""
        ...

    def decode_mask(self, latents: Tensor) -> Tensor:
        """latents (b c H W) of a mask image -> channel mean of `decode`, (b 1 S S); differentiable."""
        ...
