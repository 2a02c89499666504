"""Images and masks in the model frame: square, float, batched.

The whole image is resized to S x S without keeping its aspect: every pixel is seen at a known place, and
the way back is one resize. All (W, H) against (H, W) knowledge of the model side sits here.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.results.render import resized


def to_frame(image: NDArray[np.uint8], size: int) -> Tensor:
    """uint8 (h w 3) -> float32 (3 S S) in [0, 1]; area averaging when shrinking, linear when growing."""
    frame = resized(image, (size, size))
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float() / 255


def mask_to_frame(mask: NDArray[np.bool_], size: int) -> Tensor:
    """bool (h w) -> float32 (1 S S), the share of each pixel that is covered, in [0, 1]."""
    return torch.from_numpy(resized(mask.astype(np.float32), (size, size)))[None]


def stack_frames(images: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
    """(b 3 S S)."""
    return torch.stack([to_frame(image, size) for image in images])


def crop_to_object(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], margin: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A support seen from near: so much around its object that the background still shows.

    Args:
        image: (h w 3).
        mask: (h w), not empty.
        margin: around the object's box, as a share of its longer side; less where the image ends.

    Returns:
        Views of both.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    around = int(margin * max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
    window = tuple(slice(max(0, int(at[0]) - around), int(at[-1]) + 1 + around) for at in (rows, columns))
    return image[window], mask[window]


def from_frame(values: Tensor, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """float (S S) -> float32 (h w) at the image's own size; linear, so the range is kept."""
    array = values.detach().float().cpu().numpy()
    back: NDArray[np.float32] = cv2.resize(array, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_LINEAR)
    return back
