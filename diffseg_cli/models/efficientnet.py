"""EfficientNet-Lite, the frozen ImageNet encoder of the compact backbone.

Lite is EfficientNet without squeeze-and-excitation and with ReLU6 (Tan and Le 2019; TensorFlow's
`efficientnet/lite`). Batch normalisation is folded into the convolutions when the weights are converted,
so a block is three convolutions. Padding follows TensorFlow's SAME, which the weights were trained with.

Letters: b batch, S image size (a multiple of 32).
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

# kernel, stride, expansion, width, repeats of each stage, before width and depth scaling
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
SCALING = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}  # variant -> width, depth


def _round_width(width: float) -> int:
    """Nearest multiple of 8 that loses no more than a tenth (EfficientNet's own rule)."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _convolve_strided(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of stride 2 with TensorFlow's SAME padding; x (b c h w) with even h and w.

    SAME puts the odd pixel of padding to the right and the bottom. Zeros above and left of the kernel do the
    same under symmetric padding, which needs no padded copy of x.
    """
    kernel = F.pad(conv.weight, (1, 0, 1, 0))
    return F.conv2d(x, kernel, conv.bias, 2, conv.weight.shape[-1] // 2, groups=conv.groups)


class InvertedBottleneck(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise, project 1x1, residual where shapes allow."""

    def __init__(self, *, width_in: int, width_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = nn.Conv2d(width_in, inner, 1) if expansion != 1 else None
        self.depthwise = nn.Conv2d(inner, inner, kernel, stride, padding=kernel // 2, groups=inner)
        self.project = nn.Conv2d(inner, width_out, 1)
        self.stride = stride
        self.residual = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        # In place throughout: the time goes into memory, not into arithmetic.
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.depthwise(y) if self.stride == 1 else _convolve_strided(self.depthwise, y)
        y = F.relu6(y, inplace=True)
        out: Tensor = self.project(y)
        return out.add_(x) if self.residual else out


class EfficientNetLite(nn.Module):
    """The convolutional part of EfficientNet-Lite, giving the outputs of chosen blocks.

    Args:
        variant: 0, 1 or 2.
        taps: indices of the blocks whose outputs are returned, ascending; nothing after the last is built.
    """

    def __init__(self, *, variant: int = 0, taps: Sequence[int]) -> None:
        super().__init__()
        width_factor, depth_factor = SCALING[variant]
        self.taps = tuple(taps)
        self.stem = nn.Conv2d(3, 32, 3, 2)
        blocks: list[InvertedBottleneck] = []
        self.tap_widths: list[int] = []
        self.tap_strides: list[int] = []
        width_in, total_stride = 32, 2
        for index, (kernel, stride, expansion, width, repeats) in enumerate(STAGES):
            first_or_last = index in (0, len(STAGES) - 1)
            for repeat in range(repeats if first_or_last else math.ceil(depth_factor * repeats)):
                if len(blocks) > self.taps[-1]:
                    break
                step = stride if repeat == 0 else 1
                total_stride *= step
                width_out = _round_width(width * width_factor)
                blocks.append(
                    InvertedBottleneck(
                        width_in=width_in,
                        width_out=width_out,
                        kernel=kernel,
                        stride=step,
                        expansion=expansion,
                    )
                )
                if len(blocks) - 1 in self.taps:
                    self.tap_widths.append(width_out)
                    self.tap_strides.append(total_stride)
                width_in = width_out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (b 3 S S), normalised -> the tapped blocks' outputs, each (b width S/stride S/stride)."""
        x = F.relu6(_convolve_strided(self.stem, images), inplace=True)
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                tapped.append(x)
        return tapped
