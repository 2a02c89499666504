"""Counts against a brute-force loop over pixels, and that they add up in any order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffseg_cli.metrics import IouCounts

masks = arrays(np.bool_, (5, 7))


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.sampled_from("ab"), masks, masks, masks), min_size=1, max_size=5))
def test_counts_equal_a_loop_over_pixels(pairs: list) -> None:
    counts = IouCounts()
    for name, predicted, truth, ignore in pairs:
        counts.add(name, predicted, truth, ignore)
    for name in {pair[0] for pair in pairs}:
        hit = either = 0
        for other, predicted, truth, ignore in pairs:
            for p, t, i in zip(predicted.flat, truth.flat, ignore.flat, strict=True):
                if other == name and not i:
                    hit, either = hit + (p and t), either + (p or t)
        assert counts.iou(name) == pytest.approx(hit / either if either else 1.0)


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.sampled_from("abc"), masks, masks), min_size=2, max_size=6),
    cut=st.integers(1, 5),
)
def test_merging_parts_gives_the_whole(pairs: list, cut: int) -> None:
    whole, left, right = IouCounts(), IouCounts(), IouCounts()
    for index, (name, predicted, truth) in enumerate(pairs):
        whole.add(name, predicted, truth)
        (left if index < cut else right).add(name, predicted, truth)
    right.merge(left)
    assert right.mean_iou() == pytest.approx(whole.mean_iou())
    assert right.fb_iou() == pytest.approx(whole.fb_iou())
    assert right.episodes == whole.episodes


def test_fb_iou_by_hand() -> None:
    predicted = np.array([[True, True, False, False]])
    truth = np.array([[True, False, False, False]])
    counts = IouCounts()
    counts.add("x", predicted, truth)
    assert counts.fb_iou() == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert counts.mean_iou([]) != counts.mean_iou([])  # NaN: there is no class


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        IouCounts().add("x", np.ones((2, 2), bool), np.ones((2, 3), bool))
