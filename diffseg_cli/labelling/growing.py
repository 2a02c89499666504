"""Clicks and boxes in the editor: what the backbone's own affinity puts together, cut out by GrabCut.

The backbone looks at an image once. What an answer needs of that look is small, so it is kept in memory, and
an answer needs neither the model nor the image file.

Letters: h w size of the image as GrabCut sees it, H W size of the latents.
"""

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.frames import from_frame, stack_frames
from diffseg_cli.labelling.project import Mask
from diffseg_cli.labelling.query_cache import QueryCache
from diffseg_cli.models.attention import AttentionMaps, affinity_of
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.results.render import shrunk
from diffseg_cli.supports.mask_making import belonging_by, box_region, cut_out_box, discs, grabcut

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter

MOST_BYTES = 100_000_000  # of looks in memory; one of the compact model takes 2 MB
LEVEL = 0.5  # twice the attention of the average place counts as 2/3, the same as 1/2
LEAST_LEVEL = 0.35  # of the largest belonging
REACH = 0.06  # of the longer side: GrabCut may move the border that far
SIDE = 320  # longest side GrabCut sees: its time grows with the pixels


@dataclass(frozen=True)
class Glance:
    """What is kept of a look at an image.

    Attributes:
        image: uint8 (h w 3).
        size_hw: of the image itself.
        maps: of the look, in float32 on the CPU.
        usual: (1 H W) attention every place gets, from all over the image.
    """

    image: NDArray[np.uint8]
    size_hw: tuple[int, int]
    maps: AttentionMaps
    usual: Tensor

    @property
    def bytes(self) -> int:
        """In memory, about."""
        return self.image.nbytes + sum(affinity.nbytes for affinity in self.maps.affinity.values())


class ClickGrower:
    """Looks at images in the thread that owns the model, and answers clicks and boxes in any."""

    def __init__(self, segmenter: "Segmenter", queries: QueryCache) -> None:
        self._segmenter, self._queries = segmenter, queries
        self._glances: OrderedDict[str, Glance] = OrderedDict()  # the least used first
        self._lock = threading.Lock()

    def seen(self, path: Path) -> Glance | None:
        """The look at an image, where it is in memory."""
        name = self._queries.name(path)
        with self._lock:
            if name in self._glances:
                self._glances.move_to_end(name)
            return self._glances.get(name)

    def look(self, path: Path) -> Glance:
        """The look at an image, taken now or earlier. For the thread that owns the model.

        Raises:
            InputError: it cannot be read.
        """
        glance = self.seen(path)
        if glance is None:
            glance = self._look(path)
            with self._lock:
                self._glances[self._queries.name(path)] = glance
                while len(self._glances) > 1 and sum(g.bytes for g in self._glances.values()) > MOST_BYTES:
                    self._glances.popitem(last=False)
        return glance

    @torch.inference_mode()
    def _look(self, path: Path) -> Glance:
        """A look at an image with all of itself as support."""
        query, segmenter = self._queries.encode(path), self._segmenter
        backbone, latents = segmenter.backbone, query.latents
        frames = stack_frames(query.images, backbone.image_size).to(backbone.device)
        everything, cells = torch.ones_like(frames[:, :1]), torch.ones_like(latents[:, :1])
        embeds = backbone.embed(frames, everything, latents)
        support = SupportFeatures.of(backbone, latents[None], cells[None], embeds[None])
        maps, _ = segmenter.find_scores(latents, query.edges, support, segmenter.make_noise(latents, 0))
        affinity = {grid_hw: values.float().cpu() for grid_hw, values in maps.affinity.items()}
        kept = AttentionMaps({}, affinity, maps.layers)
        usual = affinity_of(kept, torch.ones(1, *latents.shape[2:]))
        image = query.images[0]
        return Glance(shrunk(image, SIDE), (image.shape[0], image.shape[1]), kept, usual)

    @torch.inference_mode()
    def grow(self, glance: Glance, x: float, y: float) -> Mask:
        """The region (h w) a click belongs to; it holds the click and is connected.

        Args:
            glance: at the image.
            x: of the click, as a share of the width in [0, 1].
            y: of the height.
        """
        h, w = size_hw = (glance.image.shape[0], glance.image.shape[1])
        column, row = (min(int(share * side), side - 1) for share, side in ((x, w), (y, h)))
        here = discs([(column, row)], size_hw)
        weights = torch.zeros_like(glance.usual)
        weights[0, row * weights.shape[1] // h, column * weights.shape[2] // w] = 1
        paid = affinity_of(glance.maps, weights)
        belonging = from_frame((paid / (paid + glance.usual).clamp_min(1e-12))[0], size_hw)
        inside = _part_at(belonging > max(LEVEL, LEAST_LEVEL * float(belonging.max())), column, row)
        reach = max(1, round(REACH * max(size_hw)))
        kernel = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
        near = cv2.dilate((inside | here).astype(np.uint8), kernel).astype(bool)
        hints = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
        hints[~near] = cv2.GC_BGD
        hints[here] = cv2.GC_FGD
        return _part_at(grabcut(glance.image, hints.astype(np.uint8), SIDE) | here, column, row)

    @torch.inference_mode()
    def fill(self, glance: Glance, box: tuple[float, float, float, float]) -> Mask:
        """What fills a box (x, y of its upper left corner, width, height, as shares of the image): (h w).

        Raises:
            UsageError: the box holds no pixel.
        """
        h, w = size_hw = (glance.image.shape[0], glance.image.shape[1])
        left, top = math.floor(box[0] * w), math.floor(box[1] * h)
        right, bottom = math.ceil((box[0] + box[2]) * w), math.ceil((box[1] + box[3]) * h)
        region = box_region((left, top, right - left, bottom - top), size_hw)
        belonging = belonging_by(glance.maps, region, self._segmenter.backbone.image_size)
        return cut_out_box(glance.image, region, belonging, SIDE)


def _part_at(mask: Mask, x: int, y: int) -> Mask:
    """The connected part of a mask (h w) that holds a pixel; empty where the mask does not."""
    parts = cv2.connectedComponents(mask.astype(np.uint8))[1]
    part: Mask = (parts == parts[y, x]) & mask[y, x]
    return part
