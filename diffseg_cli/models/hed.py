"""HED: where the borders in an image are (Xie and Tu, "Holistically-Nested Edge Detection", ICCV 2015).

VGG16 without its classifier; after each of its five blocks a 1x1 convolution votes for edges, the five votes
are brought to the size of the image and merged. Parameters are named as in the widespread
`ControlNetHED.pth`, so such a file loads as it is; the one thing it lacks, `fuse`, is a plain mean there.

Letters: b batch, h w size of the images.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (3, 64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)


class VGGStage(nn.Module):
    """The convolutions of VGG16 at one resolution, and their side output."""

    def __init__(self, width_in: int, width: int, convolutions: int) -> None:
        super().__init__()
        widths = [width_in] + [width] * convolutions
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths)
        )
        self.projection = nn.Conv2d(width, 1, 1)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (b width_in h w) -> (hidden (b width h w), logits of the side output (b 1 h w))."""
        for conv in self.convs:
            hidden = F.relu(conv(hidden), inplace=True)
        return hidden, self.projection(hidden)


class HED(nn.Module):
    """Edge detector, random until loaded. Holds the colour mean (`norm`, RGB, 0 to 255) with its weights."""

    norm: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norm", torch.zeros(1, 3, 1, 1))
        for index, convolutions in enumerate(CONVOLUTIONS):
            self.add_module(f"block{index + 1}", VGGStage(WIDTHS[index], WIDTHS[index + 1], convolutions))
        self.fuse = nn.Conv2d(5, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Edge map of images of any size; takes about 0.6 kB of memory a pixel in float32.

        Pooling keeps incomplete cells and side outputs grow by exact powers of two before they are cut, so
        the edge map lies exactly over the image also when 16 does not divide the size.

        Args:
            images: (b 3 h w) RGB in [0, 1].

        Returns:
            (b 1 h w) edge map in [0, 1], in the dtype of `images`.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (b 3 h w), not {tuple(images.shape)}")
        h, w = images.shape[-2:]
        hidden = (images * 255 - self.norm).to(self.fuse.weight.dtype)
        sides = []
        for index in range(5):
            if index:
                hidden = F.max_pool2d(hidden, 2, ceil_mode=True)
            hidden, logits = self.get_submodule(f"block{index + 1}")(hidden)
            grown = F.interpolate(logits, scale_factor=float(2**index), mode="bilinear", align_corners=False)
            sides.append(grown[..., :h, :w])
        return torch.sigmoid(self.fuse(torch.cat(sides, dim=1))).to(images.dtype)
