"""One labelled image as it might also have looked: zoomed in or out, in other colours, mirrored.

Views are made before anything is encoded: the latents of a mirrored image are not its mirrored latents (at
the five depths of the compact model, 1 minus their cosine is 0.38, 0.45, 0.16, 0.11 and 0.04).

Letters: h w size of the image.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Pair = tuple[NDArray[np.uint8], NDArray[np.bool_]]  # an image (h w 3) and its mask (h w)

BLURRED_SIZE = 512  # longest side at which a background is blurred
LEAST_SHARE = 0.4  # of the object that a cropped view keeps
CROP, SHRINK, STRETCH = (
    (0.35, 1.0),
    (0.4, 0.8),
    (0.8, 1.25),
)  # ranges of a view's side, as a share of the image's


def zoomed_in(pair: Pair, generator: np.random.Generator) -> Pair:
    """A random crop that keeps at least `LEAST_SHARE` of the object; the whole image where none is found."""
    image, mask = pair
    height, width = mask.shape
    for _ in range(20):
        side, stretch = generator.uniform(*CROP), generator.uniform(*STRETCH)
        crop_h = min(height, max(32, round(side * stretch * height)))
        crop_w = min(width, max(32, round(side / stretch * width)))
        top, left = int(generator.integers(height - crop_h + 1)), int(generator.integers(width - crop_w + 1))
        window = slice(top, top + crop_h), slice(left, left + crop_w)
        if mask[window].sum() >= LEAST_SHARE * mask.sum():
            return image[window], mask[window]
    return pair


def zoomed_out(pair: Pair, generator: np.random.Generator) -> Pair:
    """The image made smaller and set on a blurred, mirrored copy of itself, in which nothing is marked."""
    image, mask = pair
    height, width = mask.shape
    side = generator.uniform(*SHRINK)
    inner_h, inner_w = (min(whole, max(8, round(side * whole))) for whole in (height, width))
    top, left = int(generator.integers(height - inner_h + 1)), int(generator.integers(width - inner_w + 1))
    window = slice(top, top + inner_h), slice(left, left + inner_w)
    canvas = _blurred(np.ascontiguousarray(image[:, ::-1]))
    canvas[window] = cv2.resize(image, (inner_w, inner_h), interpolation=cv2.INTER_AREA)
    marked = np.zeros_like(mask)
    marked[window] = (
        cv2.resize(mask.astype(np.uint8), (inner_w, inner_h), interpolation=cv2.INTER_NEAREST) > 0
    )
    return canvas, marked


def _blurred(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (h w 3) without what is smaller than a twentieth of it.

    A large one is blurred small, as the cost of a blur grows with the cube of the side.
    """
    height, width = image.shape[:2]
    scale = min(1.0, BLURRED_SIZE / max(height, width))
    if scale < 1:
        small_wh = max(1, round(scale * width)), max(1, round(scale * height))
        image = cv2.resize(image, small_wh, interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(image, (0, 0), max(image.shape[:2]) / 20)
    if scale < 1:
        blurred = cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(blurred, dtype=np.uint8)


def recoloured(pair: Pair, generator: np.random.Generator) -> Pair:
    """Other saturation, contrast and brightness, and mirrored half of the time."""
    image, mask = pair
    pixels = image.astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * generator.uniform(0.5, 1.5)
    mean = pixels.mean()
    pixels = (pixels - mean) * generator.uniform(0.7, 1.3) + mean + generator.uniform(-25, 25)
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    if generator.random() < 0.5:  # before it is encoded: mirrored latents are not those of the mirrored image
        image, mask = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])
    return image, mask
