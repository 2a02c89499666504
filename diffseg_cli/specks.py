"""Specks: parts of a mask too small to be meant, and holes as small.

Border refinement leaves them wherever colours of the background look like the object's: a cat came with 45
parts of under 20 pixels, which would be 45 objects in an annotation tool.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.choices import least_pixels


def drop_specks(mask: NDArray[np.bool_], min_area: str) -> NDArray[np.bool_]:
    """A mask without parts below an area and without holes below it.

    Parts are 8-connected, holes 4-connected background that does not reach the border of the image. The
    largest part always stays, so that a small object alone in the image is never lost.

    Args:
        mask: (H W).
        min_area: as for `choices.least_pixels`.

    Returns:
        bool (H W); `mask` itself where nothing changes it.

    Raises:
        ValueError: `min_area` is neither a number of pixels nor a percentage.
    """
    _, parts, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = figures[1:, cv2.CC_STAT_AREA]  # the first is the background
    largest = int(areas.max(initial=0))
    least = least_pixels(min_area, largest)
    if least <= 1 or not largest:
        return mask
    kept: NDArray[np.bool_] = np.append(False, areas >= min(least, largest))[parts]
    _, parts, figures, _ = cv2.connectedComponentsWithStats((~kept).astype(np.uint8), connectivity=4)
    left, top, width, height, areas = figures.T
    h, w = mask.shape
    inside = (left > 0) & (top > 0) & (left + width < w) & (top + height < h)
    fill = inside & (areas < least)
    fill[0] = False  # of this count, the mask itself
    filled: NDArray[np.bool_] = kept | fill[parts]
    return filled
