"""Kandinsky 2.2 as a backbone: the method's own frozen diffusion network.

MoVQ encodes and decodes, CLIP's image encoder turns a masked support into the prompt, and one forward pass of
the noised query through the UNet gives the attention maps. No denoising chain runs, and of that one pass
nothing after the last attention layer.

Letters: b queries, k supports, S image size, c latent channels, H W = S/8, d width of CLIP's embedding,
t tokens of the whole prompt, m width of a prompt token, s scale, h w its grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffseg_cli.models.attention import AttentionMaps, OnLayer
from diffseg_cli.models.backbone import Control
from diffseg_cli.models.kandinsky_attention import Recorder, recording
from diffseg_cli.models.kandinsky_decoder import lighten_decoder
from diffseg_cli.views import Pair

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vq_model import VQModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from transformers import CLIPVisionModelWithProjection

SUPPORT_CROP = 0.25  # of the object's longer side, left around it in the image CLIP sees


@dataclass(frozen=True)
class KandinskyNetworks:
    """The networks, and what else their files say.

    Attributes:
        unet, movq, image_encoder: frozen by the backbone, not here.
        scheduler: for its noise levels.
        pixel_mean, pixel_std: CLIP's preprocessing, a number per channel.
        fill_image_encoder: gives CLIP its weights; CLIP then comes on meta tensors. None: it has them.
        fingerprint: of the weights: names and shapes of all tensors and the first values of each, rounded to
            float16. Any training moves values in nearly every tensor, and a float32 file and its float16 copy
            agree; reading gigabytes to hash them would take longer than to load them.
    """

    unet: "UNet2DConditionModel"
    movq: "VQModel"
    image_encoder: "CLIPVisionModelWithProjection"
    scheduler: "DDPMScheduler"
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    fingerprint: str
    fill_image_encoder: "Callable[[CLIPVisionModelWithProjection], None] | None" = None


@dataclass(frozen=True)
class Prompt:
    """Supports as the UNet takes them; r is b, or 1 when all queries share them.

    Attributes:
        tokens: (r t m) image tokens, those of all supports side by side.
        pooled: (r d) mean embedding, for the time side.
        bias: of the image columns' logits, see `Recorder`.
    """

    tokens: Tensor
    pooled: Tensor
    bias: float


class KandinskyBackbone:
    """Kandinsky 2.2 as a `Backbone`; see `backbone.py` for the contract.

    CLIP is the larger half, and only supports need it. Read from files, it is filled when the first support
    is embedded and emptied by the first look, so that a saved concept or training never holds it. Who embeds
    again after that goes on doing so (an evaluation, a server), and the second time it stays.

    Args:
        networks: from `read_networks`, all of one dtype, which it computes in.
        device: where it computes.
        support_crop: margin around the object in the image CLIP sees, as a share of the object's longer
            side; None shows CLIP the whole image, as in the paper (of an oblong one the square in its middle,
            as CLIP's preprocessing has it). The background is black in either.
        offload: of CLIP and UNet keep only the one in use on the device, the other one in main memory. MoVQ,
            a fiftieth of their size, stays, because it runs before and after each look, but takes images
            one by one.
    """

    name = description = "kandinsky-2-2"
    support_margin: float | None = None  # eq. 3; CLIP has a crop of its own
    masks_support = True
    adds_noise = True
    resizable = False  # the UNet was trained at one size
    shares_cpu = False  # on a CPU nobody waits for several images at once: one takes all cores
    mixed_precision = False
    edge_detector = "hed"
    # Three more bits than bfloat16. Numbers that overflow in it are an error (`prediction.check_finite`);
    # training, whose gradients are small, does without.
    cuda_dtype: torch.dtype | None = torch.float16
    channel_weights: Tensor | None = None

    def __init__(
        self,
        networks: KandinskyNetworks,
        *,
        device: torch.device,
        support_crop: float | None = SUPPORT_CROP,
        offload: bool = False,
    ) -> None:
        large_device = torch.device("cpu") if offload else device
        lighten_decoder(networks.movq)
        self.movq: Any = networks.movq.to(device)
        self.unet: Any = networks.unet.to(large_device)
        self._fill_image_encoder = networks.fill_image_encoder
        self._fills = 0
        self._clip_is_empty = self._fill_image_encoder is not None
        self._nothing: Tensor | None = None
        self.image_encoder: Any = networks.image_encoder
        if not self._clip_is_empty:
            self.image_encoder.to(large_device)
        for network in (self.movq, self.unet, self.image_encoder):
            network.eval().requires_grad_(False)
        self.scheduler: Any = networks.scheduler
        self.pixel_mean = torch.tensor(networks.pixel_mean, device=device)[:, None, None]
        self.pixel_std = torch.tensor(networks.pixel_std, device=device)[:, None, None]
        self.device, self.fingerprint = device, networks.fingerprint
        self.dtype: torch.dtype = self.unet.dtype
        self.support_crop, self.offload = support_crop, offload
        latents_per_side = self.unet.config.sample_size or 64  # optional in a config
        self.image_size: int = latents_per_side * 2 ** (len(self.movq.config.block_out_channels) - 1)
        self.latent_channels: int = self.movq.config.latent_channels
        self.latent_groups: tuple[int, ...] = (self.latent_channels,)
        # A scale is a down block with attention; it is read where its last layer leaves it, before the
        # downsampler.
        down_blocks, up_blocks = self.unet.down_blocks, self.unet.up_blocks
        self.scale_widths: tuple[int, ...] = tuple(
            block.resnets[-1].out_channels for block in down_blocks if _has_attention(block)
        )
        self._last_up = max(index for index, block in enumerate(up_blocks) if _has_attention(block))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images (b 3 S S) in [0, 1] -> MoVQ latents (b c H W), unscaled as in Kandinsky's img2img."""
        pixels = images.to(self.dtype) * 2 - 1
        return torch.cat([self.movq.encode(piece).latents for piece in self._pieces(pixels)])

    def encode_blocks(self, images: Tensor) -> list[Tensor]:
        """`encode` as one block: MoVQ's latents are of one depth."""
        return [self.encode(images)]

    def stack_blocks(self, blocks: Sequence[Tensor]) -> Tensor:
        """The one block of `encode_blocks`."""
        (latents,) = blocks
        return latents

    @property
    def latents_fingerprint(self) -> str:
        """Of all weights and the number format, in which MoVQ and CLIP compute."""
        return f"{self.fingerprint} {self.dtype}"

    def decode(self, latents: Tensor) -> Tensor:
        """latents (b c H W) -> images (b 3 S S), about [0, 1]; differentiable in the latents."""
        pieces = self._pieces(latents.to(self.dtype))
        decoded = torch.cat([self.movq.decode(piece, force_not_quantize=True).sample for piece in pieces])
        return (decoded + 1) / 2

    def decode_mask(self, latents: Tensor) -> Tensor:
        """latents (b c H W) -> mask images (b 1 S S); differentiable in the latents."""
        return self.decode(latents).mean(1, keepdim=True)

    def embed(self, images: Tensor, masks: Tensor, latents: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """CLIP embeddings of the supports on black (eq. 4), squeezed to a square as they are.

        Args:
            images: (k 3 S S) in [0, 1].
            masks: (k 1 S S) in [0, 1].
            latents: of no use here.

        Returns:
            (k 1 d).
        """
        return self._embed(list(zip(images, masks, strict=True)), self.support_crop)

    def embed_pairs(self, pairs: Sequence[Pair], *, crop: bool = True) -> Tensor:
        """`embed` with the objects' own shape and resolution, as CLIP was trained to see them."""
        return self._embed(
            [
                (torch.tensor(image).permute(2, 0, 1).float() / 255, torch.tensor(mask)[None].float())
                for image, mask in pairs
            ],
            self.support_crop if crop else None,
        )

    def embed_nothing(self) -> Tensor:
        """Embedding (1 1 d) of zeros, the negative prompt of Kandinsky's pipeline; computed once."""
        if self._nothing is None:
            size: int = self.image_encoder.config.image_size
            with torch.inference_mode(False):
                self._nothing = self._run_clip(torch.zeros(1, 3, size, size, device=self.device))
        return self._nothing

    def _embed(self, pairs: Sequence[tuple[Tensor, Tensor]], margin: float | None) -> Tensor:
        """Images (3 h w) and masks (1 h w) in [0, 1], any sizes -> (k 1 d)."""
        size: int = self.image_encoder.config.image_size
        crops = [
            crop_supports(image[None].float(), mask[None].float(), margin=margin, size=size)
            for image, mask in pairs
        ]
        return self._run_clip((torch.cat(crops).to(self.device) - self.pixel_mean) / self.pixel_std)

    @torch.no_grad()
    def _run_clip(self, pixels: Tensor) -> Tensor:
        """Preprocessed images (k 3 h w) -> (k 1 d)."""
        if self._clip_is_empty and self._fill_image_encoder is not None:
            with torch.inference_mode(False):  # weights outlive the mode they are read in
                self._fill_image_encoder(self.image_encoder)
            self._fills, self._clip_is_empty = self._fills + 1, False
        self._bring(self.image_encoder)
        embeds: Tensor = self.image_encoder(pixels.to(self.dtype)).image_embeds
        return embeds[:, None]

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
        """One forward pass a timestep, as far as the last attention layer; see `Backbone.look`.

        Gradients flow from the maps to what `control` returned. A prompt expanded from one row is computed
        once. With k supports apart, their tokens stand side by side under the softmax, lowered by log k, so
        that a support given twice changes nothing.

        Raises:
            ValueError: no noise, or latents of a size the UNet cannot halve.
        """
        if noise is None:
            raise ValueError("Kandinsky looks at noised latents: noise is needed")
        if any(size % 2**self.unet.num_upsamplers for size in latents.shape[-2:]):
            raise ValueError(
                f"latents must be multiples of {2**self.unet.num_upsamplers}, not {latents.shape}"
            )
        if self._fills == 1 and not self._clip_is_empty:
            with torch.inference_mode(False):
                self.image_encoder.to("meta")
            self._clip_is_empty = True
        self._bring(self.unet)
        prompt = self._make_prompt(image_embeds.to(self.device))
        maps = AttentionMaps()
        for timestep in timesteps:
            level = torch.tensor([timestep], device=self.device)
            # In float32: half precision would round a small t away.
            noised = self.scheduler.add_noise(
                latents.to(self.device).float(), noise.to(self.device).float(), level
            )
            recorder = Recorder(maps, on_layer, int(timestep), prompt.tokens.shape[1], prompt.bias)
            with recording(self.unet, recorder):
                self._run(noised.to(self.dtype), level, prompt, control, recorder)
        return maps

    def _pieces(self, batch: Tensor) -> Sequence[Tensor]:
        """A batch as MoVQ takes it, 0.4 GB an image in half precision: one by one where memory is short."""
        return batch.split(1) if self.offload else (batch,)

    def _bring(self, part: nn.Module) -> None:
        """Put CLIP or UNet on the device, the other one off it first."""
        if not self.offload:
            return
        other = self.unet if part is self.image_encoder else self.image_encoder
        if not (other is self.image_encoder and self._clip_is_empty):
            other.to("cpu")
        part.to(self.device)

    @torch.no_grad()
    def _make_prompt(self, image_embeds: Tensor) -> Prompt:
        """image_embeds (b k 1 d) -> what the UNet takes."""
        if image_embeds.shape[0] > 1 and image_embeds.stride(0) == 0:  # expanded: every row is the same
            image_embeds = image_embeds[:1]
        embeds = image_embeds.to(self.dtype).flatten(1, 2)  # (r k d)
        rows, shots = embeds.shape[:2]
        tokens = self.unet.encoder_hid_proj(embeds.flatten(0, 1))  # (r*k 32 m)
        return Prompt(tokens.view(rows, -1, tokens.shape[-1]), embeds.mean(1), -log(shots))

    def _run(
        self, noised: Tensor, level: Tensor, prompt: Prompt, control: Control | None, recorder: Recorder
    ) -> None:
        """diffusers' UNet forward pass on noised (b c H W), step for step, up to the last attention layer.

        The control's residuals are added to the skip connections they were computed from: the part of what
        enters the up block of the same scale whose width is that of the hidden state (the other part comes
        from the coarser scale and is wider).
        """
        unet = self.unet
        with torch.no_grad():  # nothing before the control has anything to learn
            embedded = unet.time_embedding(unet.get_time_embed(noised[: len(prompt.pooled)], level))
            embedded = embedded + unet.add_embedding(prompt.pooled)
            hidden = unet.conv_in(noised)
            residuals, taps = [hidden], []
            for block in unet.down_blocks:
                hidden, outputs = _call(block, hidden, embedded, prompt.tokens)
                residuals += outputs
                if _has_attention(block):
                    taps.append(len(residuals) - (1 if block.downsamplers is None else 2))
            hidden = unet.mid_block(hidden, embedded, encoder_hidden_states=prompt.tokens)
        if control is not None:
            added = control([residuals[tap] for tap in taps])
            for tap, residual in zip(taps, added, strict=True):
                residuals[tap] = residuals[tap] + residual.to(residuals[tap])
        for index, block in enumerate(unet.up_blocks[: self._last_up + 1]):
            skips = residuals[-len(block.resnets) :]
            del residuals[-len(block.resnets) :]
            if index < self._last_up:
                hidden = _call(block, hidden, embedded, prompt.tokens, res_hidden_states_tuple=tuple(skips))
                continue
            for position, (resnet, attn) in enumerate(zip(block.resnets, block.attentions, strict=True)):
                hidden = resnet(torch.cat([hidden, skips.pop()], dim=1), embedded)
                if skips:
                    hidden = attn(hidden, encoder_hidden_states=prompt.tokens)
                    continue
                recorder.read(
                    f"up_blocks.{index}.attentions.{position}", attn, hidden, prompt.tokens, last=True
                )


def crop_supports(images: Tensor, masks: Tensor, *, margin: float | None, size: int) -> Tensor:
    """Supports on black, as CLIP is to see them.

    Args:
        images: (k 3 h w) in [0, 1].
        masks: (k 1 h w) in [0, 1].
        margin: left around the object's box, as a share of its longer side; the crop is square and goes on in
            black beyond the image's edge. None takes the square in the middle of the image, as CLIP's own
            preprocessing does.
        size: of the result, bicubic with antialiasing.

    Returns:
        (k 3 size size) in [0, 1].
    """
    crops = []
    for seen, mask in zip(images * masks, masks[:, 0], strict=True):
        if margin is not None and mask.any():
            object_yx = (mask > 0.5 * mask.amax()).nonzero()
            low, high = object_yx.amin(0).tolist(), (object_yx.amax(0) + 1).tolist()
            side = max(1, round(max(high[0] - low[0], high[1] - low[1]) * (1 + 2 * margin)))
            top, left = ((a + b - side) // 2 for a, b in zip(low, high, strict=True))
            # A negative pad crops.
            seen = F.pad(seen, (-left, left + side - seen.shape[2], -top, top + side - seen.shape[1]))
        elif margin is None:
            side = min(seen.shape[1:])
            top, left = ((whole - side) // 2 for whole in seen.shape[1:])
            seen = seen[:, top : top + side, left : left + side]
        crop = F.interpolate(seen[None], size=(size, size), mode="bicubic", antialias=True)
        crops.append(crop.clamp(0, 1))
    return torch.cat(crops)


def _has_attention(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _call(block: Any, hidden: Tensor, embedded: Tensor, prompt: Tensor, **more: Any) -> Any:
    """Run a down or up block, with the prompt if it has attention."""
    if _has_attention(block):
        more["encoder_hidden_states"] = prompt
    return block(hidden_states=hidden, temb=embedded, **more)
