"""A click grown to its region: what the backbone's own affinity puts together, cut out by GrabCut."""

from collections import OrderedDict
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from diffseg_cli.frames import from_frame
from diffseg_cli.labelling.project import Mask
from diffseg_cli.models.attention import affinity_of
from diffseg_cli.prediction import Look
from diffseg_cli.supports.mask_making import discs, grabcut, look_at_itself

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter

LOOKS_KEPT = 3  # of the images that are open in an editor; some 25 MB each
LEVEL = 0.5  # twice the attention of the average place counts as 2/3, the same as 1/2
LEAST_LEVEL = 0.35  # of the largest belonging
REACH = 0.06  # of the longer side: GrabCut may move the border that far
CLICK_SIZE = 320  # longest side GrabCut sees; a click is answered in a third of a second


class ClickGrower:
    """Looks at images once and answers clicks on them. For one thread.

    Args:
        segmenter: of any model; only its backbone looks.
    """

    def __init__(self, segmenter: "Segmenter") -> None:
        self.segmenter = segmenter
        self._looks: OrderedDict[str, Look] = OrderedDict()

    def look(self, key: str, image: NDArray[np.uint8]) -> Look:
        """The look at an image (H W 3), from memory if it was asked for lately."""
        if key not in self._looks:
            everything = np.ones(image.shape[:2], dtype=bool)
            self._looks[key] = look_at_itself(self.segmenter, image, everything)
            if len(self._looks) > LOOKS_KEPT:
                self._looks.popitem(last=False)
        self._looks.move_to_end(key)
        return self._looks[key]

    @torch.inference_mode()
    def grow(self, key: str, image: NDArray[np.uint8], x: int, y: int) -> Mask:
        """The region a click belongs to.

        Args:
            key: under which the look is kept.
            image: (H W 3).
            x: of the click, in pixels from the left.
            y: from the top.

        Returns:
            bool (H W); it holds the click and is connected.

        Raises:
            UsageError: the click lies outside the image.
        """
        size_hw = (image.shape[0], image.shape[1])
        here = discs([(x, y)], size_hw)
        look = self.look(key, image)
        grid_hw = look.scores.score_map.shape[2:]
        weights = torch.zeros(1, *grid_hw).to(look.scores.score_map)
        row, column = y * grid_hw[0] // size_hw[0], x * grid_hw[1] // size_hw[1]
        weights[0, row, column] = 1
        paid = affinity_of(look.maps, weights)
        usual = affinity_of(look.maps, torch.ones_like(weights))  # some places are looked at from everywhere
        belonging = from_frame((paid / (paid + usual).clamp_min(1e-12))[0].float(), size_hw)
        inside = _part_at(belonging > max(LEVEL, LEAST_LEVEL * float(belonging.max())), x, y)
        reach = max(1, round(REACH * max(size_hw)))
        kernel = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
        near = cv2.dilate((inside | here).astype(np.uint8), kernel).astype(bool)
        hints = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
        hints[~near] = cv2.GC_BGD
        hints[here] = cv2.GC_FGD
        return _part_at(grabcut(image, hints.astype(np.uint8), CLICK_SIZE) | here, x, y)


def _part_at(mask: Mask, x: int, y: int) -> Mask:
    """The connected part of a mask (H W) that holds a pixel; empty where the mask does not."""
    parts = cv2.connectedComponents(mask.astype(np.uint8))[1]
    part: Mask = (parts == parts[y, x]) & mask[y, x]
    return part
