"""The compact backbone: frozen ImageNet features that answer the contract of a diffusion backbone.

It is not a diffusion model. It stands in for Kandinsky where 9 GB of weights cannot be had and gives the
same kinds of latents, prompts and attention maps, so that SCM, PAM and every verb run unchanged.

- `encode`: EfficientNet-Lite features of several depths, each standardised, normalised to unit length,
  projected on a fixed orthogonal basis, normalised again, brought to S/8 and stacked: the latents.
- `embed`: a few vectors of latents from the support's object (prompt) and from its background (negative
  prompt), by k-means.
- `look`: one joint-attention layer a scale (strides 16 and 32) over all depths; a third at stride 8 lowered
  the score map's IoU (docs/notebook.md).
- `decode`: a small trained convolutional decoder back to images, masks included.

Letters: b batch, k supports, S image size, c latent channels, H W = S/8, h w grid of a scale, n = h*w,
t prompt tokens a support (f of the object, the rest of the background), i tapped block.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffseg_cli.models.attention import AttentionMaps, LayerAttention, OnLayer, split_joint_attention
from diffseg_cli.models.backbone import Control
from diffseg_cli.models.efficientnet import EfficientNetLite
from diffseg_cli.views import Pair

PIXEL_MEAN, PIXEL_STD = 127 / 255, 128 / 255  # EfficientNet-Lite's own preprocessing
KMEANS_STEPS = 5


class LatentDecoder(nn.Module):
    """Latents (b c H W) -> images (b 3 8H 8W): three convolutions and a pixel shuffle.

    `grey` gives the mean of the three channels, (b 1 8H 8W), for a third of the last convolution's work: the
    mean is taken over its filters.
    """

    def __init__(self, *, latent_channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, 3 * 8 * 8, 3, padding=1)

    def forward(self, latents: Tensor, *, grey: bool = False) -> Tensor:
        x = F.relu(self.enter(latents))
        x = x + F.relu(self.middle(x))
        if not grey:
            return F.pixel_shuffle(self.leave(x), 8)
        weight, bias = (values.unflatten(0, (3, -1)).mean(0) for values in self.leave.parameters())
        return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), 8)


def cluster_centres(vectors: Tensor, weights: Tensor, count: int) -> Tensor:
    """Weighted mean and k-means centres of unit vectors, deterministic.

    Args:
        vectors: (n c).
        weights: (n) non-negative, not all zero.
        count: how many vectors to return; the first is the weighted mean, the others are cluster centres
            started from the farthest points.

    Returns:
        (count c).
    """
    mean = (vectors * weights[:, None]).sum(0) / weights.sum()
    if count == 1:
        return mean[None]
    chosen = vectors[weights > 0.5 * weights.max()]
    similarity = chosen @ mean
    seeds = [similarity.argmax()]
    for _ in range(count - 2):
        nearest = (chosen @ chosen[torch.stack(seeds)].T).amax(1)
        seeds.append(nearest.argmin())
    centres = chosen[torch.stack(seeds)]
    for _ in range(KMEANS_STEPS):
        nearest = (chosen @ F.normalize(centres, dim=1).T).argmax(1)
        member = F.one_hot(nearest, count - 1).to(chosen)  # (n count-1)
        size = member.sum(0)[:, None]
        centres = torch.where(size > 0, member.T @ chosen / size.clamp_min(1), centres)
    return torch.cat([mean[None], centres])


class CompactBackbone(nn.Module):
    """EfficientNet-Lite as a `Backbone`; see the module's text and `backbone.py` for the contract.

    Args:
        variant: EfficientNet-Lite 0, 1 or 2.
        taps: block indices that feed the latents.
        block_widths: latent channels of each tap, the groups of the contract; they sum to c.
        image_size: S.
        support_margin: see `Backbone`.
        object_tokens: f, prompt tokens from the support's object.
        background_tokens: negative prompt tokens from its background.
        decoder_width: channels inside the decoder.
        look_strides: pixels between the places of each attention layer of the look, finest first.
        depth_weights: how much each group of channels counts in the look.
        temperature: of its cosine similarities.
        prompt_bias: added to the logits of prompt tokens, beside the log of places a token.
        fingerprint: short hash of the weights, given by the loader.
    """

    name = "compact"
    description = "the compact model (a small stand-in, not a diffusion model)"
    masks_support = False
    adds_noise = False
    resizable = True
    shares_cpu = True
    mixed_precision = True
    edge_detector = "student"  # HED itself would be four fifths of this model's work
    cuda_dtype: torch.dtype | None = None

    def __init__(
        self,
        *,
        variant: int,
        taps: Sequence[int],
        block_widths: Sequence[int],
        image_size: int,
        support_margin: float | None,
        object_tokens: int,
        background_tokens: int,
        decoder_width: int,
        look_strides: Sequence[int],
        depth_weights: Sequence[float],
        temperature: float,
        prompt_bias: float,
        fingerprint: str = "",
    ) -> None:
        super().__init__()
        self.encoder = EfficientNetLite(variant=variant, taps=taps)
        self.latent_groups = tuple(block_widths)
        self.latent_channels = sum(block_widths)
        self.image_size, self.fingerprint = image_size, fingerprint
        self.support_margin = support_margin
        self.object_tokens, self.background_tokens = object_tokens, background_tokens
        for index, (width_in, width_out) in enumerate(
            zip(self.encoder.tap_widths, block_widths, strict=True)
        ):
            self.register_buffer(f"mean_{index}", torch.zeros(width_in))
            self.register_buffer(f"std_{index}", torch.ones(width_in))
            self.register_buffer(f"basis_{index}", torch.eye(width_in)[:, :width_out].contiguous())
        self.look_strides = tuple(look_strides)
        self.scale_widths = (self.latent_channels,) * len(look_strides)
        self.temperature, self.prompt_bias = temperature, prompt_bias
        weights = [torch.full((n,), w) for w, n in zip(depth_weights, block_widths, strict=True)]
        self.channel_weights: Tensor
        self.register_buffer("channel_weights", torch.cat(weights), persistent=False)
        self.decoder = LatentDecoder(latent_channels=self.latent_channels, width=decoder_width)
        self._nothing: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.decoder.leave.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.leave.weight.dtype

    @property
    def latents_fingerprint(self) -> str:
        """Of encoder, statistics, basis and prompt; not of the decoder, so that it can be refitted."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            if name.startswith(("encoder.", "mean_", "std_", "basis_")):
                digest.update(value.half().cpu().numpy().tobytes())
        return f"{digest.hexdigest()} {(self.object_tokens, self.background_tokens)}"

    def features(self, images: Tensor) -> list[Tensor]:
        """images (b 3 S S) in [0, 1] -> raw features of the tapped blocks, each (b width_i h w)."""
        pixels = (images.to(self.dtype) - PIXEL_MEAN) / PIXEL_STD
        # The features of one image just fit a CPU's cache; a batch of eight took twice as long per image.
        pieces = pixels.split(1) if pixels.device.type == "cpu" else (pixels,)
        encoded = [self.encoder(piece) for piece in pieces]
        return encoded[0] if len(encoded) == 1 else [torch.cat(rows) for rows in zip(*encoded, strict=True)]

    def encode_blocks(self, images: Tensor) -> list[Tensor]:
        """images (b 3 S S) in [0, 1] -> one block of latents a tap at its own stride, unit length a place.

        A fifth of the size of the latents they make (`stack_blocks`): the form in which they are cached.
        """
        blocks = []
        for index, features in enumerate(self.features(images)):
            mean, std = getattr(self, f"mean_{index}"), getattr(self, f"std_{index}")
            unit = F.normalize((features - mean[:, None, None]) / std[:, None, None], dim=1)
            blocks.append(
                F.normalize(torch.einsum("bihw,io->bohw", unit, getattr(self, f"basis_{index}")), dim=1)
            )
        return blocks

    def stack_blocks(self, blocks: Sequence[Tensor]) -> Tensor:
        """Blocks of `encode_blocks` -> latents (b c H W), coarse blocks brought up bilinearly."""
        stride = self.encoder.tap_strides[0]
        size_hw = (blocks[0].shape[2] * stride // 8, blocks[0].shape[3] * stride // 8)
        return torch.cat(
            [F.interpolate(block, size=size_hw, mode="bilinear", align_corners=False) for block in blocks],
            dim=1,
        )

    def encode(self, images: Tensor) -> Tensor:
        """images (b 3 S S) in [0, 1] -> latents (b c S/8 S/8), each group of channels about unit length."""
        return self.stack_blocks(self.encode_blocks(images))

    def embed(self, images: Tensor, masks: Tensor, latents: Tensor | None = None) -> Tensor:
        """Prompt of each support: vectors of its object, then of its background.

        Args:
            images: (k 3 S S) in [0, 1]; not read when `latents` is given.
            masks: (k 1 S S), or already at the size of the latents.
            latents: (k c H W) of the same images, to spare a second encoding.

        Returns:
            (k t c).
        """
        latents = self.encode(images) if latents is None else latents
        weights = F.interpolate(masks.to(latents), size=latents.shape[-2:], mode="area")
        prompts = []
        for vectors, weight in zip(latents.flatten(2).transpose(1, 2), weights.flatten(1), strict=True):
            floor = 1e-3 * weight.max().clamp_min(1e-3)  # a full or tiny mask still leaves something of each
            inside = cluster_centres(vectors, weight + (weight == weight.max()) * floor, self.object_tokens)
            outside = 1 - weight
            outside = cluster_centres(
                vectors, outside + (outside == outside.max()) * floor, self.background_tokens
            )
            prompts.append(torch.cat([inside, outside]))
        return torch.stack(prompts)

    def embed_pairs(self, pairs: Sequence[Pair], *, crop: bool = True) -> Tensor | None:  # noqa: ARG002
        """None: the prompt is made of latents."""
        return None

    def embed_nothing(self) -> Tensor:
        """Prompt (1 t c) of an even grey; computed once."""
        if self._nothing is None:
            with torch.inference_mode(False), torch.no_grad():
                grey = torch.full((1, 3, self.image_size, self.image_size), PIXEL_MEAN, device=self.device)
                with torch.autocast(grey.device.type, enabled=False):  # the same, whether training asks first
                    self._nothing = self.embed(grey, torch.ones_like(grey[:, :1]))
        return self._nothing.to(self.decoder.leave.weight)

    def look(
        self,
        latents: Tensor,
        image_embeds: Tensor,
        *,
        timesteps: Sequence[int] = (0,),  # noqa: ARG002 - a noise level means nothing here
        noise: Tensor | None = None,  # noqa: ARG002
        control: Control | None = None,
        on_layer: OnLayer | None = None,
    ) -> AttentionMaps:
        """One joint-attention layer a scale; see `Backbone.look`. `timesteps` and `noise` have no effect."""
        weighted = latents * self.channel_weights[:, None, None]
        hidden_states = [F.avg_pool2d(weighted, stride // 8) for stride in self.look_strides]
        if control is not None:
            residuals = control(hidden_states)
            hidden_states = [hidden + add for hidden, add in zip(hidden_states, residuals, strict=True)]
        prompts = image_embeds.expand(latents.shape[0], -1, -1, -1) * self.channel_weights
        maps = AttentionMaps()
        for index, hidden in enumerate(hidden_states):
            grid_hw = (hidden.shape[2], hidden.shape[3])
            probabilities, image_tokens, even_share = self._attend(hidden, prompts)
            if on_layer is not None:
                name = f"stride_{self.look_strides[index]}"
                on_layer(LayerAttention(name, 0, grid_hw, image_tokens, probabilities))
            maps.add(grid_hw, *split_joint_attention(probabilities, image_tokens), even_share)
        return maps

    def _attend(self, hidden: Tensor, prompts: Tensor) -> tuple[Tensor, int, float]:
        """One layer: hidden (b c h w), prompts (b k t c) -> probabilities (b 1 n k*f+n), k*f, even share.

        Background prompts take part in the softmax and are then dropped: what they take is what the
        negative prompt removes.
        """
        keys = F.normalize(hidden.flatten(2), dim=1)  # (b c n)
        queries = keys.transpose(1, 2) * self.temperature  # (b n c)
        tokens = F.normalize(prompts, dim=-1)
        # Object tokens of all supports come first, so that the kept columns are one slice at either end.
        inside = tokens[:, :, : self.object_tokens].flatten(1, 2)  # (b k*f c)
        outside = tokens[:, :, self.object_tokens :].flatten(1, 2)  # (b k*(t-f) c)
        prompt_keys = torch.cat([inside, outside], dim=1).transpose(1, 2).to(keys)  # (b c k*t)
        # A softmax over more columns leaves less for each. The log of the number of places per prompt token
        # makes up for it: neither more supports nor a finer grid shift the balance of prompt and places.
        balance = self.prompt_bias + math.log(keys.shape[-1] / prompt_keys.shape[-1])
        logits = torch.cat([queries @ prompt_keys + balance, queries @ keys], dim=-1)
        probabilities = logits.softmax(-1)  # (b n k*t+n)
        image_tokens = inside.shape[1]
        kept = torch.cat(
            [probabilities[..., :image_tokens], probabilities[..., prompt_keys.shape[-1] :]], dim=-1
        )
        weight = math.exp(balance)  # of a prompt token, in places
        even_share = image_tokens * weight / (prompt_keys.shape[-1] * weight + keys.shape[-1])
        return kept[:, None], image_tokens, even_share  # one head: (b 1 n k*f+n)

    def decode(self, latents: Tensor) -> Tensor:
        """latents (b c H W) -> images (b 3 S S)."""
        decoded: Tensor = self.decoder(latents.to(self.dtype))
        return decoded

    def decode_mask(self, latents: Tensor) -> Tensor:
        """latents (b c H W) -> mask images (b 1 S S)."""
        decoded: Tensor = self.decoder(latents.to(self.dtype), grey=True)
        return decoded
