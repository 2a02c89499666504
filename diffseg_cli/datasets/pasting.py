"""Large scenes with one small object, made of labelled images: a bench for looking closer.

An object is cut out with its mask and pasted, at a drawn share of the scene, onto a mosaic of images of the
same data set that do not hold its class. The truth is exact; the same seed gives the same scene everywhere.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from diffseg_cli.datasets.episode import Episode, FewShotDataset
from diffseg_cli.datasets.truth import Truth

SHARES = (0.001, 0.5)  # of the scene that the object covers, least and most; all sizes are as likely
CELLS = 2  # of the mosaic, a side
ASPECT = 4 / 3  # width over height of a scene
MOST_SIDE = 0.95  # of the scene, that an object may take up

Read = Callable[[int], tuple[NDArray[np.uint8], Truth]]  # a sample's image and truth by its index


def draw_scene(
    dataset: FewShotDataset, episode: Episode, read: Read, *, megapixels: float, seed: tuple[int, ...]
) -> tuple[NDArray[np.uint8], Truth]:
    """A scene (h w 3) that holds an episode's query object, and no other of its class; and its truth.

    `read` gives image uint8 (h w 3) and truth of a sample; the data set gives the background.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    height = round(math.sqrt(megapixels * 1e6 / ASPECT))
    size_hw = height, round(height * ASPECT)
    share = math.exp(generator.uniform(math.log(SHARES[0]), math.log(SHARES[1])))
    others = dataset.without(episode.class_name)
    cells = generator.choice(others or [episode.query], CELLS**2, replace=len(others) < CELLS**2)
    scene = mosaic([read(int(index))[0] for index in cells], size_hw)
    return scene, paste(scene, *read(episode.query), share, generator)


def mosaic(images: list[NDArray[np.uint8]], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Images (h w 3), each cropped to the middle and enlarged to its cell, row by row."""
    scene = np.empty((*size_hw, 3), np.uint8)
    rows, columns = (np.linspace(0, side, CELLS + 1).round().astype(int) for side in size_hw)
    for place, image in enumerate(images):
        row, column = divmod(place, CELLS)
        cell = scene[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
        scale = min(image.shape[0] / cell.shape[0], image.shape[1] / cell.shape[1])
        h, w = (max(1, round(side * scale)) for side in cell.shape[:2])
        top, left = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
        part = image[top : top + h, left : left + w]
        cell[:] = cv2.resize(part, (cell.shape[1], cell.shape[0]), interpolation=cv2.INTER_CUBIC)
    return scene


def paste(
    scene: NDArray[np.uint8],
    image: NDArray[np.uint8],
    truth: Truth,
    share: float,
    generator: np.random.Generator,
) -> Truth:
    """Paste an object so that it covers a share of a scene (h w 3), which is changed; its truth there."""
    rows, columns = np.flatnonzero(truth.mask.any(1)), np.flatnonzero(truth.mask.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    size_hw = scene.shape[:2]
    cut, alpha = image[box], truth.mask[box]
    scale = math.sqrt(share * size_hw[0] * size_hw[1] / alpha.sum())
    scale = min(scale, *(MOST_SIDE * most / side for most, side in zip(size_hw, alpha.shape, strict=True)))
    h, w = (max(1, round(side * scale)) for side in alpha.shape)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    cut = cv2.resize(cut, (w, h), interpolation=how)
    soft = cv2.resize(
        alpha.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    top, left = (
        int(generator.integers(0, most - side + 1)) for most, side in zip(size_hw, (h, w), strict=True)
    )
    place = slice(top, top + h), slice(left, left + w)
    blended = soft[..., None] * cut + (1 - soft[..., None]) * scene[place]
    scene[place] = blended.round().astype(np.uint8)
    mask = np.zeros(size_hw, dtype=bool)
    mask[place] = soft > 0.5
    return Truth(mask, np.zeros(size_hw, dtype=bool))
