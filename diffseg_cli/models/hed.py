"""HED: where the borders in a picture are (Xie and Tu, "Holistically-Nested Edge Detection", ICCV 2015).

VGG16 without its classifier; after each of its five blocks a 1x1 convolution votes for edges, the five votes
are brought to the size of the picture and merged. Parameters are named as in the widespread
`ControlNetHED.pth`, so such a file loads as it is; the one thing it lacks, `fuse`, is a plain mean there.

Letters: b batch, h w size of the pictures.
"""

import pickle
import struct
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffseg_cli.errors import WeightsError

SHIPPED = "hed/hed_bsds500.safetensors"
WIDTHS = (3, 64, 128, 256, 512, 512)
CONVOLUTIONS = (2, 2, 3, 3, 3)
# What reading damaged bytes as a torch file ends in: torch checks little of it.
DAMAGED = (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AssertionError, struct.error)


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
        """Edge map of pictures of any size; takes about 0.6 kB of memory a pixel in float32.

        Pooling keeps incomplete cells and side outputs grow by exact powers of two before they are cut, so
        the edge map lies exactly over the picture also when 16 does not divide the size.

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


def load_hed(path: Path | None = None) -> HED:
    """HED with the shipped weights, or with those of a file the user has.

    Args:
        path: safetensors in this layout, or `ControlNetHED.pth` as controlnet_aux uses it (a dictionary of
            tensors; its edge map is the sigmoid of the mean side output). None takes the shipped file.

    Returns:
        HED in float32 on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: the file is missing, damaged, not of this network, or holds more than tensors.
    """
    from diffseg_cli.weights import find_weights, load_strict, read_safetensors

    path = find_weights(SHIPPED) if path is None else path
    state = _read_torch_file(path) if _is_torch_file(path) else read_safetensors(path)[0]
    state = {"fuse.weight": torch.full((1, 5, 1, 1), 0.2), "fuse.bias": torch.zeros(1), **state}
    hed = HED()
    load_strict(hed, {name: tensor.float() for name, tensor in state.items()}, path)
    # A sixth faster in float32 and, on a CPU that multiplies bfloat16, three times faster in that.
    hed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's own types
    return hed.eval().requires_grad_(False)


def _is_torch_file(path: Path) -> bool:
    """True for what `torch.save` or pickle wrote; safetensors has a "{" after its eight bytes of length."""
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError:
        return False  # read_safetensors says why
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[8:] != b"{")


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.pth` file, read without running the code a pickle may carry."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} needs unpickling of more than tensors, which could run code it carries: refused.",
            "Load it where you trust it and save its state_dict() again, best as safetensors.",
        ) from error
    except DAMAGED as error:
        raise WeightsError(
            f"{path} is damaged: torch cannot read it.", "Fetch or copy the file again."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise WeightsError(
            f"{path} is not a plain dictionary of tensors.",
            "Save the network's state_dict() alone, best as safetensors.",
        )
    return state
