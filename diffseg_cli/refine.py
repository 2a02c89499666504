"""Borders at the image's full resolution: a guided filter pulls a soft mask to the image's own edges.

He, Sun and Tang, "Guided Image Filtering" (ECCV 2010): around every pixel the mask is fitted as a linear
function of the colours there, so it bends where the image does. A pixel depends on no other further away
than twice the radius; tiles with that much margin give the same result as the whole image, and memory
stays bounded however large it is.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

RADIUS_SHARE = 1 / 48  # of the image's longer side; both numbers measured (docs/notebook.md, 2026-11-23)
SMOOTHNESS = 1e-4  # epsilon of the paper, for colours in [0, 1]: variance below it counts as flat
# Grey, red against blue, green against both: lengths and so the result are those of RGB, but grey images
# do not make three equal channels, which float32 cannot tell from a singular matrix. Values stay in 0 to 255:
# for smaller ones OpenCV takes small determinants for zero, and fits nothing.
AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float32) / np.sqrt([[3], [2], [6]], dtype=np.float32)
TILE = 1024  # side of a tile without its margins, in pixels
FLAT = 1 / 512  # a tile whose probabilities differ by less has no border in it


def refine_borders(
    probability: NDArray[np.float32],
    image: NDArray[np.uint8],
    *,
    radius_share: float = RADIUS_SHARE,
    smoothness: float = SMOOTHNESS,
    tile: int = TILE,
) -> NDArray[np.float32]:
    """Pull the borders of a soft mask to those of its image.

    Beside its input and result it needs up to 200 bytes for every pixel of one tile with margins: under
    350 MB for a photograph of 24 megapixels.

    Args:
        probability: (H W) in [0, 1].
        image: (H W 3).
        radius_share: radius of the filter over the longer side.
        smoothness: colour variance below which the mask is smoothed instead.
        tile: side of the pieces that are worked on one after the other.

    Returns:
        float32 (H W) in [0, 1].

    Raises:
        ValueError: the sizes differ.
    """
    h, w = probability.shape
    if image.shape != (h, w, 3):
        raise ValueError(f"image {image.shape} and probability {probability.shape} differ in size")
    radius = max(1, min(round(max(h, w) * radius_share), h, w))  # more of a strip would be its mirror images
    margin = 2 * radius
    refined = probability.astype(np.float32)
    for top in range(0, h, tile):
        for left in range(0, w, tile):
            rows = slice(max(top - margin, 0), min(top + tile + margin, h))
            columns = slice(max(left - margin, 0), min(left + tile + margin, w))
            piece = probability[rows, columns].astype(np.float32)
            if np.ptp(piece) < FLAT:
                continue
            guide = cv2.transform(image[rows, columns].astype(np.float32), AXES)
            filtered = cv2.ximgproc.guidedFilter(guide, piece, radius, smoothness * 255**2)
            inner = filtered[top - rows.start :, left - columns.start :][:tile, :tile]
            refined[top : top + tile, left : left + tile] = inner.clip(0, 1)
    return refined
