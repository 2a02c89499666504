"""From the mask of a concept to its instances: connected parts, cut where two objects touch.

Two objects that touch make a part with two wide places and a neck between them. The wide places are peaks of
the distance to the mask's border; a part is cut where the neck is clearly narrower than the smaller of two
peaks that are alike (a watershed with dynamics, Grimaud 1992; Beucher and Meyer 1993). Unlike peaks are taken
for one object with limbs.

Letters: H W size of the image, h w of a part.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.errors import InputError
from diffseg_cli.results.render import shrunk_wh

SIDE = 384  # longest side at which a part is looked at, in pixels
NECK = 0.7  # of the smaller peak: a wider neck joins
ALIKE = 0.5  # of the larger peak: a smaller one is a limb
LEAST_PEAK = 3.0  # pixels: narrower places say nothing
LEVELS = 64
MOST_INSTANCES = 65535

Labels = NDArray[np.int32]  # 0 is background, instances count from 1


@dataclass(frozen=True)
class Instance:
    """One object of a concept.

    Attributes:
        id: from 1, unique in its image.
        left: of its box, in pixels.
        top: of its box, in pixels.
        mask: bool (h w) inside its box.
        score: how sure it is, in [0, 1].
    """

    id: int
    left: int
    top: int
    mask: NDArray[np.bool_]
    score: float

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of its box."""
        h, w = self.mask.shape
        return slice(self.top, self.top + h), slice(self.left, self.left + w)

    def whole_mask(self, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Its mask at the size of the image."""
        mask = np.zeros(size_hw, dtype=bool)
        mask[self.window] = self.mask
        return mask

    def record(self) -> dict[str, Any]:
        """What JSON says of it."""
        h, w = self.mask.shape
        box = [self.left, self.top, w, h]
        return {"id": self.id, "box_xywh": box, "pixels": int(self.mask.sum()), "score": round(self.score, 4)}


def find_instances(
    mask: NDArray[np.bool_], probability: NDArray[np.float32], presence: float | None, first: int = 1
) -> list[Instance]:
    """The instances of a concept, in reading order of the parts they are in, numbered from `first`.

    Args:
        mask: (H W) of the concept.
        probability: (H W) in [0, 1].
        presence: in [0, 1], or None.
    """
    count, parts, figures, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found: list[Instance] = []
    for part in range(1, count):
        left, top, width, height = (int(value) for value in figures[part][:4])
        pieces = _split(parts[top : top + height, left : left + width] == part)
        for number in np.unique(pieces[pieces > 0]):  # a small one may be lost where the part was shrunk
            piece = pieces == number
            rows, columns = np.flatnonzero(piece.any(1)), np.flatnonzero(piece.any(0))
            y, x = int(rows[0]), int(columns[0])
            piece = piece[y : rows[-1] + 1, x : columns[-1] + 1]
            place = Instance(first + len(found), left + x, top + y, piece, 0.0)
            score = float(probability[place.window][piece].mean()) * (1 if presence is None else presence)
            found.append(replace(place, score=score))
    return found


def instance_map_png(instances: Sequence[Instance], size_hw: tuple[int, int]) -> bytes:
    """The ids of all instances of an image as a 16-bit grey PNG; 0 is background.

    Raises:
        InputError: there are more than 16 bits can number.
    """
    if len(instances) > MOST_INSTANCES:
        raise InputError(
            f"The image holds {len(instances)} instances, more than the {MOST_INSTANCES} of a 16-bit map.",
            "Drop small ones with --min-area.",
        )
    ids = np.zeros(size_hw, dtype=np.uint16)
    for each in instances:
        ids[each.window][each.mask] = each.id
    stream = io.BytesIO()
    Image.fromarray(ids).save(stream, "PNG")
    return stream.getvalue()


def _split(part: NDArray[np.bool_]) -> Labels:
    """Instances of one connected part (h w), from 1."""
    small = cv2.resize(part.astype(np.uint8), shrunk_wh(part.shape, SIDE), interpolation=cv2.INTER_NEAREST)
    small = np.pad(small, 2)
    depth: NDArray[np.float32] = cv2.distanceTransform(small, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    markers = _markers(depth)
    if markers.max() < 2:
        return part.astype(np.int32)
    flooded = _flood(markers, depth)[2:-2, 2:-2].astype(np.float32)
    large = cv2.resize(flooded, part.shape[::-1], interpolation=cv2.INTER_NEAREST)
    pieces: Labels = _nearest(large.astype(np.int32) * part) * part
    return pieces


def _markers(depth: NDArray[np.float32]) -> Labels:
    """One marker pixel for each instance, at its peak.

    Levels are visited downwards. Peaks whose surroundings meet at a level join, unless the lower one is alike
    and stands out from that neck.

    Args:
        depth: (h w) distance to the border, in pixels.
    """
    markers = np.zeros(depth.shape, dtype=np.int32)
    if depth.max() < LEAST_PEAK:
        return markers
    peaks: list[tuple[float, tuple[int, int], bool]] = []  # height, place, whether it stays apart
    for level in _levels(depth):
        count, areas = cv2.connectedComponents((depth > level).astype(np.uint8), connectivity=8)
        of_area: dict[int, list[int]] = {area: [] for area in range(1, count)}
        for index, (_, place, _) in enumerate(peaks):
            of_area[int(areas[place])].append(index)
        gone = set()
        for area, indices in of_area.items():
            if not indices:
                row, column = divmod(int(np.where(areas == area, depth, -1).argmax()), depth.shape[1])
                peaks.append((float(depth[row, column]), (row, column), False))
                continue
            undecided = sorted((i for i in indices if not peaks[i][2]), key=lambda i: -peaks[i][0])
            for index in undecided[1:]:
                height, place, _ = peaks[index]
                alike = height >= max(LEAST_PEAK, ALIKE * peaks[undecided[0]][0])
                if alike and level <= NECK * height:
                    peaks[index] = height, place, True
                else:
                    gone.add(index)
        peaks = [peak for index, peak in enumerate(peaks) if index not in gone]
    # Shrinking tears off what hangs by a pixel; it belongs to the part it came from.
    kept = (place for height, place, _ in peaks if height >= LEAST_PEAK)
    for number, place in enumerate(kept, start=1):
        markers[place] = number
    return markers


def _levels(depth: NDArray[np.float32]) -> NDArray[np.float64]:
    """Levels to visit downwards; the last is 0."""
    return np.linspace(depth.max(), 0, LEVELS + 1)[1:]


def _flood(markers: Labels, depth: NDArray[np.float32]) -> Labels:
    """Grow markers (h w), high places first, until they fill what is above 0."""
    labels, around = markers.copy(), np.ones((3, 3), np.uint8)
    for level in _levels(depth):
        open_to = depth > level
        while True:
            grown = cv2.dilate((labels > 0).astype(np.uint8), around) > 0
            new = (labels == 0) & grown & open_to
            if not new.any():
                break
            labels[new] = _nearest(labels)[new]  # the largest of the neighbours would creep along borders
    return labels


def _nearest(labels: Labels) -> Labels:
    """Labels (h w) with every unlabelled pixel given to the nearest label."""
    _, places = cv2.distanceTransformWithLabels(
        (labels == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_place = np.zeros(int(places.max()) + 1, dtype=np.int32)
    labelled = labels > 0
    of_place[places[labelled]] = labels[labelled]
    nearest: Labels = of_place[places]
    return nearest
