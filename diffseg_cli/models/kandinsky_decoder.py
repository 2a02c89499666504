"""MoVQ's decoder with two of its layers put another way: the same images for less work.

- Upsampling by two and then convolving 3x3 sees every pixel four times. Each of the four outputs of a pixel
  depends on 2x2 neighbours only, with kernel rows and columns added up beforehand: 4/9 of the work.
- Spatial norm projects the latents to two maps as large as the hidden state. Constant over 8x8 pixels at the
  end, they are made at the latents' size and spread while they are applied.

Letters: b batch, c channels, h w size of a hidden state, H W of the latents, s how often h divides by H.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpsampledConv(nn.Module):
    """Nearest upsampling by two and a 3x3 convolution in one, at the small size.

    Args:
        conv: the convolution, 3x3 with padding 1.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach().float()
        rows = _phases(weight, dim=2)
        phases = [phase for row in rows for phase in _phases(row, dim=3)]  # each (c_out c_in 2 2)
        self.weight = nn.Parameter(torch.cat(phases).to(conv.weight.dtype))
        self.bias = nn.Parameter(torch.zeros(len(weight)) if conv.bias is None else conv.bias.detach())

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (b c_in h w) -> (b c_out 2h 2w)."""
        b, _, h, w = hidden.shape
        phases = F.conv2d(hidden, self.weight, self.bias.repeat(4), padding=1)  # (b 4*c_out h+1 w+1)
        upsampled = phases.new_empty((b, len(self.bias), 2 * h, 2 * w))
        for index, phase in enumerate(phases.chunk(4, dim=1)):
            top, left = divmod(index, 2)
            upsampled[:, :, top::2, left::2] = phase[:, :, top : top + h, left : left + w]
        return upsampled


class SpreadSpatialNorm(nn.Module):
    """diffusers' `SpatialNorm` with its projections at the size of the latents.

    Args:
        norm: the original, whose layers are taken over.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm_layer, self.conv_y, self.conv_b = norm.norm_layer, norm.conv_y, norm.conv_b

    def forward(self, f: Tensor, zq: Tensor) -> Tensor:
        """f (b c h w), zq latents (b 4 H W) -> normalised f, scaled and shifted by what the latents say."""
        b, c, h, w = f.shape
        spread = h // zq.shape[2]
        # Spread along the rows; whole rows repeat by broadcasting.
        maps = (conv(zq).repeat_interleave(w // zq.shape[3], 3) for conv in (self.conv_y, self.conv_b))
        scale, shift = (values[:, :, :, None] for values in maps)  # (b c H 1 w)
        normed = self.norm_layer(f).view(b, c, h // spread, spread, w)
        return torch.addcmul(shift, normed, scale).view(b, c, h, w)


def lighten_decoder(movq: Any) -> None:
    """Put the layers above into a MoVQ's decoder, in place of diffusers' own."""
    from diffusers.models.attention_processor import SpatialNorm
    from diffusers.models.upsampling import Upsample2D

    decoder = movq.decoder
    for name, module in list(decoder.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, SpatialNorm):
            decoder.get_submodule(parent).register_module(child, SpreadSpatialNorm(module))
        elif isinstance(module, Upsample2D):
            decoder.get_submodule(parent).register_module(child, UpsampledConv(module.conv))


def _phases(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A kernel of three along an axis -> the two kernels of two that even and odd outputs see."""
    first, middle, last = weight.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)
