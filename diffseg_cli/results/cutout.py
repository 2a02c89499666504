"""An object cut out of its image: RGBA whose half-clear border pixels carry none of the old background.

Letters: H W size of the image, h w of the part of it around the object.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.errors import MissingDependency

SOFT_SHARE = 1 / 1000  # of the longer side: width of the soft border, so that it is as soft at any size
CUT_FROM, CUT_TO = 0.35, 0.95  # coverage that becomes alpha 0 and 1; more is cut than kept, against fringes
BAND_SHARE = 1 / 100  # of the longer side: how far on both sides of the border matting decides
MATTING_PIXELS = 1_000_000  # matting solves for this many at most, and is enlarged: its memory grows fast


def cut_out(image: NDArray[np.uint8], mask: NDArray[np.bool_], *, matting: bool = False) -> NDArray[np.uint8]:
    """Cut an object out.

    Args:
        image: (H W 3).
        mask: (H W).
        matting: find alpha and colours of the border by closed-form matting (pymatting) instead of softening
            it; for hair and leaves.

    Returns:
        uint8 (H W 4), RGBA, not premultiplied; clear pixels are black.

    Raises:
        MissingDependency: matting is asked for and pymatting is not installed.
    """
    result = np.zeros((*mask.shape, 4), dtype=np.uint8)
    if not mask.any():
        return result
    longer = max(mask.shape)
    margin = 2 + round(longer * (BAND_SHARE if matting else 4 * SOFT_SHARE))
    box = _box(mask, margin)
    part: NDArray[np.float32] = image[box].astype(np.float32) / np.float32(255)
    inside = mask[box]
    if matting:
        alpha, colors = _matted(part, inside, max(2, round(longer * BAND_SHARE)))
    else:
        sigma = max(0.7, longer * SOFT_SHARE)
        coverage = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        alpha = np.clip((coverage - CUT_FROM) / (CUT_TO - CUT_FROM), 0, 1)
        colors = _cleaned(part, alpha, 3 * sigma)
    colors[alpha == 0] = 0
    result[box] = np.rint(np.dstack([colors, alpha]) * 255).astype(np.uint8)
    return result


def load_matting() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """pymatting's closed-form alpha and multi-level foreground.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        from pymatting import estimate_alpha_cf, estimate_foreground_ml
    except ImportError as error:
        raise MissingDependency(
            "Matting needs pymatting, which is not installed.", "Run: pip install 'diffseg[matting]'"
        ) from error
    return estimate_alpha_cf, estimate_foreground_ml


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Rows and columns around a mask that is not empty."""
    slices = []
    for axis in (1, 0):
        filled = np.flatnonzero(mask.any(axis))
        slices.append(slice(max(int(filled[0]) - margin, 0), int(filled[-1]) + 1 + margin))
    return slices[0], slices[1]


def _cleaned(image: NDArray[np.float32], alpha: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Colours (h w 3) with those of half-clear pixels taken from the opaque ones nearby."""
    sure = (alpha >= 1).astype(np.float32)
    weight = cv2.GaussianBlur(sure, (0, 0), sigma)
    spread = cv2.GaussianBlur(image * sure[..., None], (0, 0), sigma) / np.maximum(weight, 1e-6)[..., None]
    half = (alpha < 1) & (weight > 1e-4)
    cleaned = image.copy()
    cleaned[half] = np.clip(spread[half], 0, 1)
    return cleaned


def _matted(
    image: NDArray[np.float32], inside: NDArray[np.bool_], band: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Alpha (h w) and colours (h w 3) where only a band around the mask's border is open."""
    estimate_alpha, estimate_foreground = load_matting()
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1, 2 * band + 1))
    core = cv2.erode(inside.astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    if not core.any():  # thinner than the band everywhere
        core = inside.astype(np.uint8)
    reach = cv2.dilate(inside.astype(np.uint8), kernel)
    trimap = np.where(core > 0, 1.0, np.where(reach > 0, 0.5, 0.0))
    if not (trimap == 0).any():
        trimap[:1], trimap[-1:] = np.minimum(trimap[:1], 0.5), np.minimum(trimap[-1:], 0.5)
    h, w = inside.shape
    shrink = min(1.0, (MATTING_PIXELS / (h * w)) ** 0.5)
    small_wh = max(4, round(w * shrink)), max(4, round(h * shrink))
    small = cv2.resize(image, small_wh, interpolation=cv2.INTER_AREA).astype(np.float64)
    small_trimap = cv2.resize(trimap, small_wh, interpolation=cv2.INTER_NEAREST)
    small_alpha = estimate_alpha(small, small_trimap)
    small_colors = estimate_foreground(small, small_alpha)
    alpha = cv2.resize(small_alpha.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR).clip(0, 1)
    alpha[trimap == 1], alpha[trimap == 0] = 1, 0
    alpha[alpha < 1 / 255] = 0
    colors = cv2.resize(small_colors.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR).clip(0, 1)
    return alpha, np.where((alpha >= 1)[..., None], image, colors)
