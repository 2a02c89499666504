"""Counts against loops over pixels and against scikit-learn, and that they add up in any order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import jaccard_score

from diffseg_cli.evaluation.metrics import (
    IouCounts,
    bootstrap_intervals,
    boundary_width,
    count_pixels,
    mask_boundary,
    roc_auc,
)

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


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(masks, masks, masks), min_size=1, max_size=4))
def test_iou_is_that_of_scikit_learn(pairs: list) -> None:
    counts = IouCounts()
    for predicted, truth, ignore in pairs:
        counts.add("x", predicted, truth, ignore)
    predicted, truth = (np.concatenate([pair[i][~pair[2]] for pair in pairs]) for i in (0, 1))
    if not predicted.size:
        return
    assert counts.iou("x") == pytest.approx(jaccard_score(truth, predicted, zero_division=1.0))
    if (predicted | truth).any() and not (predicted & truth).all():
        both = jaccard_score(truth, predicted, average=None, labels=[False, True], zero_division=1.0)
        assert counts.fb_iou() == pytest.approx(float(np.mean(both)))


def boundary_by_loop(mask: np.ndarray, width: int) -> np.ndarray:
    """A pixel is near the border when something within `width` of it is not the mask, or no picture."""
    found = np.zeros_like(mask)
    h, w = mask.shape
    for y in range(h):
        for x in range(w):
            ring = [
                0 <= v < h and 0 <= u < w and mask[v, u]
                for v in range(y - width, y + width + 1)
                for u in range(x - width, x + width + 1)
            ]
            found[y, x] = mask[y, x] and not all(ring)
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 4))
def test_boundary_equals_a_loop_over_pixels(seed: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    mask = np.zeros((13, 15), bool)
    for _ in range(3):
        top, left = generator.integers(0, 8, 2)
        mask[top : top + generator.integers(2, 12), left : left + generator.integers(2, 12)] = True
    assert np.array_equal(mask_boundary(mask, width), boundary_by_loop(mask, width))


def test_boundary_iou_by_hand() -> None:
    assert boundary_width((300, 400)) == 10 and boundary_width((4, 4)) == 1  # 2 % of the diagonal, at least 1
    predicted, truth = np.zeros((50, 50), bool), np.zeros((50, 50), bool)
    truth[10:40, 10:40], predicted[10:40, 11:41] = True, True
    counts = count_pixels(predicted, truth)
    assert tuple(counts[:2]) == (30 * 29, 30 * 31)
    ring, shared = 30**2 - 28**2, 2 * 29  # the bands are one pixel wide and share top and bottom rows
    assert boundary_width((50, 50)) == 1 and tuple(counts[4:]) == (shared, 2 * ring - shared)
    same = IouCounts()
    same.add("x", truth, truth)
    same.add("empty", ~truth & truth, ~truth & truth)
    assert same.boundary_iou("x") == same.iou("x") == 1 and same.mean_boundary_iou() == 1


def test_ignored_pixels_belong_to_neither_mask() -> None:
    truth, ignore = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    truth[10:30, 10:30], ignore[8:32, 8:32] = True, True
    ignore[10:30, 10:30] = False  # the undecided ring of VOC
    spilled = truth | ignore
    assert np.array_equal(count_pixels(spilled, truth, ignore), count_pixels(truth, truth, ignore))
    counts = count_pixels(spilled, truth, ignore)
    assert counts[0] == counts[1] == 400 and counts[4] == counts[5] and counts[3] == 40 * 40 - 24 * 24


def draw_counts(generator: np.random.Generator, n: int) -> np.ndarray:
    """(n 6) of random episodes; foreground, background and boundary alike."""
    union = generator.integers(500, 1500, (n, 3))
    hit = (union * generator.beta(6, 4, (n, 3))).astype(int)
    return np.stack([hit, union], axis=2).reshape(n, 6)


def test_bootstrap_holds_the_figures_and_narrows_with_episodes() -> None:
    generator = np.random.default_rng(0)
    spread = []
    for n in (10, 400):
        episodes = {name: draw_counts(generator, n) for name in "abc"}
        counts = IouCounts()
        for name, rows in episodes.items():
            for row in rows:
                counts.add_counts(name, row)
        found = bootstrap_intervals(episodes)
        assert found == bootstrap_intervals(dict(reversed(episodes.items())))
        pairs = [
            (found.mean_iou, counts.mean_iou()),
            (found.boundary_iou, counts.mean_boundary_iou()),
            (found.fb_iou, counts.fb_iou()),
            *((found.per_class[name], counts.iou(name)) for name in "abc"),
        ]
        assert all(low < value < high for (low, high), value in pairs)
        spread.append(np.ptp(found.mean_iou))
        assert np.ptp(found.per_class["a"]) > np.ptp(found.mean_iou)  # one class moves more than three
    assert spread[1] < spread[0] / 3
    certain = {"a": np.full((5, 6), 10), "b": np.zeros((5, 6), int)}
    assert bootstrap_intervals(certain).mean_iou == (1.0, 1.0)


def test_bootstrap_averages_background_over_folds() -> None:
    """Two folds that always give 1 and 0.5 give 0.75, whatever their sizes; in one heap they would not."""
    good, half = np.tile([9, 9, 9, 9, 1, 1], (4, 1)), np.tile([500, 1000, 500, 1000, 1, 1], (4, 1))
    assert bootstrap_intervals({"a": good, "b": half}, {"a": 0, "b": 1}).fb_iou == (0.75, 0.75)
    assert bootstrap_intervals({"a": good, "b": half}).fb_iou[1] < 0.6


def test_bootstrap_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    inside, half = 0, 0
    for _ in range(60):
        shares = generator.beta(6, 4, (40, 1))
        counts = np.tile(np.hstack([(1000 * shares).astype(int), np.full((40, 1), 1000)]), 3)
        low, high = bootstrap_intervals({"a": counts}).mean_iou
        inside += low <= 0.6 <= high
        low, high = bootstrap_intervals({"a": counts}, level=0.5).mean_iou
        half += low <= 0.6 <= high
    assert 0.85 < inside / 60 <= 1 and 0.3 < half / 60 < 0.7


def test_roc_auc_by_hand() -> None:
    assert roc_auc([0.9, 0.4], [0.4, 0.1]) == pytest.approx(3.5 / 4)
    assert roc_auc([-0.9, -0.4], [-0.4, -0.1]) == pytest.approx(0.5 / 4)
