"""A support mask from a box, an outline or points (`diffseg mask`).

The frozen backbone looks at the image with the image itself as support; what belongs together according
to its attention is then cut out by OpenCV's GrabCut, which follows colours. docs/notebook.md has the figures.

Letters: h w the image's own size, H W size of the latents.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from diffseg_cli.errors import UsageError
from diffseg_cli.frames import from_frame, mask_to_frame, stack_frames
from diffseg_cli.models.attention import AttentionMaps, affinity_of
from diffseg_cli.prediction import Look
from diffseg_cli.reading.mask_shapes import draw_polygon
from diffseg_cli.results.render import shrunk, shrunk_wh
from diffseg_cli.segmenter import Segmenter

Image = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Point = tuple[int, int]  # x, y

SURE_SHARE = 0.4  # of a box: the part that is taken for object without asking GrabCut
GRABCUT_SIZE = 640  # longest side GrabCut sees; its time grows with the pixels
GRABCUT_STEPS = 3
POINT_RADIUS = 0.02  # of the longer side
SURELY_NOT, LIKELY, SURE = 0.2, 0.5, 0.8  # levels of the score map a point gives


def box_region(box: Sequence[float], size_hw: tuple[int, int]) -> Bools:
    """A box as pixels (h w): x, y of its upper left corner, width, height; what lies outside is cut off.

    Raises:
        UsageError: it holds no pixel of the image.
    """
    h, w = size_hw
    x, y, width, height = box
    left, right = (round(min(max(value, 0), w)) for value in (x, x + width))
    top, bottom = (round(min(max(value, 0), h)) for value in (y, y + height))
    if left >= right or top >= bottom:
        raise UsageError(
            f"The box {x:g},{y:g},{width:g},{height:g} holds no pixel of the image.",
            f"It has {w} x {h} pixels; a box is X,Y,WIDTH,HEIGHT from the upper left corner.",
        )
    region = np.zeros(size_hw, dtype=bool)
    region[top:bottom, left:right] = True
    return region


def mask_from_outline(outline: Sequence[float], size_hw: tuple[int, int]) -> Bools:
    """What an outline (x, y, x, y, ... in pixels) encloses.

    Raises:
        UsageError: it encloses no pixel of the image.
    """
    mask = draw_polygon(np.array(outline, dtype=np.float64).reshape(-1, 2), size_hw)
    if not mask.any():
        raise UsageError(
            "The outline encloses no pixel of the image.", f"It has {size_hw[1]} x {size_hw[0]} pixels."
        )
    return mask


def mask_from_box(segmenter: Segmenter, image: Image, region: Bools) -> Bools:
    """The object in a box (h w): GrabCut, told by the backbone which part of it is surely the object."""
    return cut_out_box(image, region, belonging_to(segmenter, image, region))


def cut_out_box(image: Image, region: Bools, belonging: Floats, longest: int = GRABCUT_SIZE) -> Bools:
    """The object in a box (h w): GrabCut, told by `belonging_to` which part of it is surely the object."""
    inside = belonging[region]
    sure = belonging > np.quantile(inside, 1 - SURE_SHARE)
    likely = belonging > _otsu(inside)
    hints = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    hints[sure] = cv2.GC_FGD
    hints[~region] = cv2.GC_BGD
    return grabcut(image, hints.astype(np.uint8), longest)


def mask_from_points(
    segmenter: Segmenter, image: Image, points: Sequence[Point], not_points: Sequence[Point]
) -> Bools:
    """What looks to the backbone like the points (x, y), and not like the others, cut out by GrabCut."""
    size_hw = (image.shape[0], image.shape[1])
    here, there = discs(points, size_hw), discs(not_points, size_hw)
    score = score_from(segmenter, image, here)
    if not_points:
        score = score * (1 - score_from(segmenter, image, there))
        score /= max(float(score.max()), 1e-6)
    hints = np.where(score > LIKELY, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    hints[(score > SURE) | here] = cv2.GC_FGD
    hints[(score < SURELY_NOT) & ~here | there] = cv2.GC_BGD
    return grabcut(image, hints.astype(np.uint8))


@torch.inference_mode()
def belonging_to(segmenter: Segmenter, image: Image, region: Bools) -> Floats:
    """How much more attention a place gets from inside a region than from outside it.

    Returns:
        float32 (h w) in [0, 1], 0.5 where both look alike.
    """
    maps = look_at_itself(segmenter, image, region).maps
    return belonging_by(maps, region, segmenter.backbone.image_size)


def belonging_by(maps: AttentionMaps, region: Bools, frame_size: int) -> Floats:
    """`belonging_to` a region (h w) by the maps of a look, whose model frame has this size."""
    grid = frame_size // 8
    like = next(iter(maps.affinity.values()))
    frame = mask_to_frame(region, frame_size)[None].to(like)
    inside = torch.nn.functional.interpolate(frame, size=(grid, grid), mode="area")[0]  # (1 H W)
    from_inside = affinity_of(maps, inside)
    from_outside = affinity_of(maps, (1 - inside).clamp_min(1e-6))
    return from_frame((from_inside / (from_inside + from_outside))[0], (region.shape[0], region.shape[1]))


def score_from(segmenter: Segmenter, image: Image, region: Bools) -> Floats:
    """The score map of an image with a region of itself as support, float32 (h w) in [0, 1]."""
    look = look_at_itself(segmenter, image, region)
    return from_frame(look.scores.score_map[0, 0], look.image_hw)


@torch.inference_mode()
def look_at_itself(segmenter: Segmenter, image: Image, region: Bools) -> Look:
    """A look at an image with a region of it as support, seen whole: its background is the query's."""
    size = segmenter.backbone.image_size
    mask = mask_to_frame(region, size)[None].to(segmenter.device)
    return segmenter.look(
        image, segmenter.encode_frames(stack_frames([image], size).to(segmenter.device), mask)
    )


def grabcut(image: Image, hints: NDArray[np.uint8], longest: int = GRABCUT_SIZE) -> Bools:
    """OpenCV's GrabCut on an image (h w 3) shrunk to a bearable side in pixels: bool (h w).

    Hints (h w) are cv2.GC_BGD and GC_FGD, which are both kept, GC_PR_BGD and GC_PR_FGD.
    """
    h, w = hints.shape
    small = cv2.cvtColor(shrunk(image, longest), cv2.COLOR_RGB2BGR)
    labels = cv2.resize(hints, shrunk_wh(hints.shape, longest), interpolation=cv2.INTER_NEAREST)
    is_object = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if is_object.any() and not is_object.all():  # both colour models need a pixel
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        labels, _, _ = cv2.grabCut(small, labels, None, *models, GRABCUT_STEPS, cv2.GC_INIT_WITH_MASK)
        is_object = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    soft = cv2.resize(is_object.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    mask: Bools = (soft > 0.5) & (hints != cv2.GC_BGD)
    return mask


def discs(points: Sequence[Point], size_hw: tuple[int, int]) -> Bools:
    """Small discs round points (x, y), bool (h w).

    Raises:
        UsageError: a point lies outside the image.
    """
    h, w = size_hw
    drawn = np.zeros(size_hw, dtype=np.uint8)
    for x, y in points:
        if not (0 <= x < w and 0 <= y < h):
            raise UsageError(f"The point {x},{y} lies outside the image.", f"It has {w} x {h} pixels.")
        cv2.circle(drawn, (x, y), max(2, round(POINT_RADIUS * max(size_hw))), 1, cv2.FILLED)
    return drawn.astype(bool)


def _otsu(values: Floats) -> float:
    """The level that parts values in [0, 1] best into two groups."""
    levels = np.rint(values * 255).astype(np.uint8)[None]
    level, _ = cv2.threshold(levels, 0, 1, cv2.THRESH_OTSU)
    return float(level) / 255
