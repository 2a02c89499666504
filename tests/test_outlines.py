"""Masks as polygons: exact along pixel edges, close when simplified, holes kept."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from diffseg_cli.results.outlines import TOLERANCE, one_ring, outlines, ring_area

SMALL = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def fill(mask: NDArray[np.bool_], tolerance: float) -> NDArray[np.bool_]:
    """The outlines drawn by pycocotools, each part as one ring."""
    h, w = mask.shape
    drawn = np.zeros((h, w), dtype=bool)
    for rings in outlines(mask, tolerance):
        rle = coco_mask.frPyObjects([one_ring(rings).ravel().tolist()], h, w)
        drawn |= coco_mask.decode(rle)[..., 0].astype(bool)
    return drawn


@settings(deadline=None, max_examples=200)
@given(SMALL)
def test_areas_of_exact_outlines_are_pixel_counts(mask: NDArray[np.bool_]) -> None:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    parts = outlines(mask, 0)
    assert len(parts) == count - 1
    for label, rings in enumerate(parts, start=1):
        areas = [ring_area(ring) for ring in rings]
        assert areas[0] - sum(areas[1:]) == (labels == label).sum()
        assert ring_area(one_ring(rings)) == pytest.approx((labels == label).sum())


@settings(deadline=None, max_examples=200)
@given(SMALL)
def test_exact_outlines_fill_to_the_mask(mask: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(fill(mask, 0), mask)


def test_simplified_outlines_are_short_and_close() -> None:
    page = Image.new("L", (400, 300))
    draw = ImageDraw.Draw(page)
    draw.ellipse((40, 30, 300, 270), fill=255)
    draw.ellipse((120, 100, 200, 190), fill=0)
    draw.polygon([(310, 10), (390, 60), (350, 120)], fill=255)
    mask = np.asarray(page) > 0
    parts = outlines(mask)
    assert sorted(len(rings) for rings in parts) == [1, 2]
    assert sum(len(ring) for rings in parts for ring in rings) < 120
    assert sum(len(ring) for rings in outlines(mask, 0) for ring in rings) > 1000
    drawn = fill(mask, TOLERANCE)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.985
    assert not drawn[140, 160] and drawn[140, 60]  # the hole is one


def test_a_speck_stays() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[4, 5] = True
    (((ring),),) = outlines(mask)
    assert sorted(map(tuple, ring.tolist())) == [(5, 4), (5, 5), (6, 4), (6, 5)]


def test_nothing_has_no_outline() -> None:
    assert outlines(np.zeros((5, 4), dtype=bool)) == []
