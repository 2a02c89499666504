"""Edge maps of images of any size (`diffseg edges`)."""

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from diffseg_cli.models.hed import HED
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.results.render import shrunk, write_image


@torch.inference_mode()
def find_edges(image: NDArray[np.uint8], hed: HED, size: int) -> NDArray[np.float32]:
    """Run HED on an image shrunk to `size`, never enlarged, and bring its edges back.

    Args:
        image: uint8 (h w 3).
        hed: on any device.
        size: longest side HED sees; its receptive field fits images of about 500 pixels.

    Returns:
        float32 (h w) edge map in [0, 1] at the image's own size.
    """
    seen = np.ascontiguousarray(shrunk(image, size))
    images = torch.from_numpy(seen).permute(2, 0, 1)[None].float() / 255  # (1 3 h w)
    edge_map = hed(images.to(hed.norm.device))[0, 0].float().cpu().numpy()
    resized: NDArray[np.float32] = cv2.resize(edge_map, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def write_edges(image: Path, output: Path, hed: HED, size: int) -> None:
    """Read an image, find its edges, write them as grey PNG, 255 the surest."""
    edge_map = find_edges(read_image(image), hed, size)
    write_image(output, np.rint(edge_map.clip(0, 1) * 255).astype(np.uint8))
