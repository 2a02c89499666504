"""HED's student: the edge map of HED at the size SCM reads, for a sixty-fifth of the work.

A small U-shaped network trained to repeat what HED answers on photographs (`tools/distil_edges.py`). It is
made for images of 192 px and is no edge detector in its own right: `diffseg edges` runs HED.

Letters: b batch, h w size of the images, both even.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL_MEAN, PIXEL_STD = 0.45, 0.25


class HedStudent(nn.Module):
    """Four levels down from half the image's size, three back up; random until loaded.

    Args:
        widths: channels of the levels, finest first.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3 * 2 * 2, widths[0], 3, padding=1)
        self.shrink = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, 2, padding=1) for fine, coarse in pairwise(widths)
        )
        self.deepen = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, padding=1) for coarse in widths[1:])
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.settle = nn.ModuleList(nn.Conv2d(fine, fine, 3, padding=1) for fine in widths[:-1])
        self.leave = nn.Conv2d(widths[0], 2 * 2, 3, padding=1)

    def logits(self, images: Tensor) -> Tensor:
        """images (b 3 h w) in [0, 1] -> log odds of an edge (b 1 h w)."""
        pixels = (images.to(self.leave.weight.dtype) - PIXEL_MEAN) / PIXEL_STD
        hidden = F.relu(self.enter(F.pixel_unshuffle(pixels, 2)), inplace=True)
        levels = [hidden]
        for shrink, deepen in zip(self.shrink, self.deepen, strict=True):
            hidden = F.relu(deepen(F.relu(shrink(hidden), inplace=True)), inplace=True)
            levels.append(hidden)
        for narrow, settle in zip(reversed(self.narrow), reversed(self.settle), strict=True):
            level = levels[-2]
            grown = F.interpolate(narrow(levels.pop()), size=level.shape[-2:], mode="bilinear")
            hidden = F.relu(level + grown, inplace=True)
            levels[-1] = hidden + F.relu(settle(hidden), inplace=True)
        return F.pixel_shuffle(self.leave(levels[0]), 2)

    def forward(self, images: Tensor) -> Tensor:
        """Edge map as `HED.forward` gives it.

        Args:
            images: (b 3 h w) RGB in [0, 1].

        Returns:
            (b 1 h w) edge map in [0, 1], in the dtype of `images`.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 2 or images.shape[3] % 2:
            raise ValueError(f"images must be (b 3 h w) with even h and w, not {tuple(images.shape)}")
        return torch.sigmoid(self.logits(images)).to(images.dtype)
