"""Specks: which parts and holes of a mask go, and that every door gives the same mask."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_segmenter import picture

from diffseg_cli.segmenter import Segmenter
from diffseg_cli.specks import drop_specks


def scene() -> NDArray[np.bool_]:
    """A square of 400 pixels with a hole of 3 and one of 16, parts of 3 and 100, and one at the border."""
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:30, 10:30] = True
    mask[15, 15:18] = mask[20:24, 20:24] = False
    mask[40, 40:43] = True
    mask[40:50, 60:70] = True
    mask[0, 79] = True
    return mask


def test_small_parts_go_and_small_holes_are_filled() -> None:
    expected = scene()
    expected[15, 15:18] = True
    expected[40, 40:43] = expected[0, 79] = False
    assert np.array_equal(drop_specks(scene(), "1%"), expected)
    assert np.array_equal(drop_specks(scene(), "4"), expected)
    expected[20:24, 20:24] = True
    assert np.array_equal(drop_specks(scene(), "17"), expected)
    expected[40:50, 60:70] = False
    assert np.array_equal(drop_specks(scene(), "30%"), expected)
    assert np.array_equal(drop_specks(scene(), "0"), scene())


def test_an_object_that_stands_alone_stays_however_small() -> None:
    mask = np.zeros((50, 50), dtype=bool)
    mask[20, 20] = True
    for area in ("1%", "100%", "4000"):
        assert np.array_equal(drop_specks(mask, area), mask)
    assert not drop_specks(np.zeros((5, 5), dtype=bool), "1%").any()
    assert drop_specks(np.ones((5, 5), dtype=bool), "1%").all()


def test_pixels_that_touch_at_a_corner_are_one_part_and_a_bay_is_no_hole() -> None:
    diagonal = np.eye(12, dtype=bool)
    assert np.array_equal(drop_specks(diagonal, "100%"), diagonal)
    bay = np.ones((20, 20), dtype=bool)
    bay[0, 5] = False
    assert np.array_equal(drop_specks(bay, "40"), bay)


@pytest.mark.parametrize("area", ["", "%", "-1", "1 %", "1%%", "nan", "1e3", "101%", "¼", "٣"])
def test_an_area_is_pixels_or_percent(area: str) -> None:
    with pytest.raises(ValueError, match="neither a number of pixels"):
        drop_specks(np.ones((5, 5), dtype=bool), area)


def test_the_segmenter_drops_specks_unless_told_otherwise(small_segmenter: Segmenter) -> None:
    image = picture(0)
    specked = torch.zeros(image.shape[:2])
    specked[20:60, 20:60] = 1
    specked[80, 100] = 1
    plain, probability = small_segmenter.finish(specked, image, refine=False)
    kept, _ = small_segmenter.finish(specked, image, refine=False, min_area="0")
    assert (plain.sum(), kept.sum()) == (1600, 1601)
    assert probability[80, 100] == 1  # the score says what the model said
