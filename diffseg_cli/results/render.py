"""Results out: masks, heatmaps and overlays as PNG files.

Letters: H W size of the image, as its reader sees it.
"""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.files import write_whole

TINT = (255, 45, 85)  # RGB; rare in photographs
TINT_SHARE = 0.45
CONTOUR_SHARE = 1 / 300  # of the shorter side: as thick on a large image as on a small one
IMAGE_SHARE = 0.35  # of the greyed image that shows through a heatmap
HEAT = cv2.COLORMAP_INFERNO  # even steps look even, also in print and to colour-blind eyes


# --- files ---------------------------------------------------------------------------------------------


def write_image(path: str | Path, pixels: NDArray[np.uint8]) -> None:
    """Write uint8 (H W 3) RGB or (H W) grey as PNG."""
    write_whole(path, png_bytes(pixels))


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of uint8 (H W 3) RGB or (H W) grey."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=3)  # level 6 takes thrice the time for 5%
    return stream.getvalue()


def jpeg_bytes(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """A JPEG file of uint8 (H W 3) RGB."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def write_mask(path: str | Path, mask: NDArray[np.bool_]) -> None:
    """Write bool (H W) as grey 0 and 255."""
    write_image(path, mask_pixels(mask))


def mask_pixels(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """bool (H W) -> grey 0 and 255."""
    return mask.astype(np.uint8) * np.uint8(255)


def write_overlay(path: str | Path, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
    """Write an image with its mask tinted and outlined; see `overlay`."""
    write_image(path, overlay(image, mask))


# --- pixels --------------------------------------------------------------------------------------------


def shrunk_wh(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Width and height, as OpenCV takes them, of an image (H W ...) with at most so many pixels a side."""
    scale = min(1.0, longest / max(shape[:2]))
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def shrunk(pixels: NDArray[Any], longest: int) -> NDArray[Any]:
    """An image (H W ...) whose longest side has at most so many pixels; itself where it has."""
    size_wh = shrunk_wh(pixels.shape, longest)
    if pixels.shape[1::-1] == size_wh:
        return pixels
    small: NDArray[Any] = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)
    return small


def resized(pixels: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[Any]:
    """(H W ...) -> (h w ...): area averaging where it shrinks both ways, else linear; the range is kept."""
    shrinks = pixels.shape[0] >= size_hw[0] and pixels.shape[1] >= size_hw[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    scaled: NDArray[Any] = cv2.resize(pixels, size_hw[::-1], interpolation=interpolation)
    return scaled


def heatmap(score_map: NDArray[np.float32], image: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """A map (H W) in [0, 1] as colours (H W 3), over the greyed image (H W 3) or alone."""
    levels = np.rint(np.clip(score_map, 0, 1) * 255).astype(np.uint8)
    colors: NDArray[np.uint8] = cv2.cvtColor(cv2.applyColorMap(levels, HEAT), cv2.COLOR_BGR2RGB)
    if image is None:
        return colors
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    blended: NDArray[np.uint8] = cv2.addWeighted(colors, 1 - IMAGE_SHARE, grey, IMAGE_SHARE, 0)
    return blended


def contour_width(shape: tuple[int, ...]) -> int:
    """Width in pixels of outlines in an image of this shape."""
    return max(1, round(min(shape[:2]) * CONTOUR_SHARE))


def overlay(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    tint: tuple[int, int, int] = TINT,
    line: int | None = None,
) -> NDArray[np.uint8]:
    """An image (H W 3) with the mask (H W) tinted, and outlined in the tint (RGB) between two white lines.

    The outline is `line` pixels wide, by default in proportion to the image.
    """
    tinted = image.copy()
    flat = np.full_like(image, tint)
    tinted[mask] = cv2.addWeighted(image, 1 - TINT_SHARE, flat, TINT_SHARE, 0)[mask]
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = line or contour_width(mask.shape)
    cv2.drawContours(tinted, contours, -1, (255, 255, 255), 3 * width, cv2.LINE_AA)
    cv2.drawContours(tinted, contours, -1, tint, width, cv2.LINE_AA)
    return tinted
