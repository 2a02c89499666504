"""Borders: what the guided filter does to a soft mask, in pieces and in bounded memory."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffseg_cli.refine import refine_borders
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.specks import drop_specks

REPOSITORY = Path(__file__).parents[1]


def test_a_blurred_border_goes_to_the_edge_in_the_picture() -> None:
    truth = np.zeros((200, 240), dtype=bool)
    truth[60:150, 70:180] = True
    image = np.where(truth[..., None], (200, 60, 50), (40, 90, 120)).astype(np.uint8)
    soft = np.zeros(truth.shape, dtype=np.float32)
    soft[63:153, 67:177] = 1  # three pixels off
    refined = refine_borders(soft, image, radius_share=1 / 24)
    off = [int(((probability > 0.5) != truth).sum()) for probability in (soft, refined)]
    assert off[1] < off[0] / 10
    assert refined.dtype == np.float32 and refined.min() >= 0 and refined.max() <= 1


def test_an_even_picture_only_smooths() -> None:
    soft = np.zeros((60, 60), dtype=np.float32)
    soft[20:40, 20:40] = 1
    refined = refine_borders(soft, np.full((60, 60, 3), 128, np.uint8))
    assert 0.45 < refined[30, 20] < 0.75 and refined[30, 30] > 0.9 and refined[5, 5] < 0.01


@settings(deadline=None, max_examples=25)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.integers(1, 40),
    st.floats(0.001, 0.2),
    st.integers(0, 99),
)
def test_pieces_give_the_whole(size_hw: tuple[int, int], tile: int, share: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    soft = draw.random(size_hw, dtype=np.float32)
    whole = refine_borders(soft, image, radius_share=share, tile=1000)
    pieces = refine_borders(soft, image, radius_share=share, tile=tile)
    np.testing.assert_allclose(pieces, whole, atol=2e-3)
    assert np.isfinite(whole).all() and whole.min() >= 0 and whole.max() <= 1


@pytest.mark.parametrize("size_hw", [(10, 20_000), (20_000, 10)])
def test_a_strip_takes_a_moment(size_hw: tuple[int, int]) -> None:
    """The filter's window was 833 pixels wide where the image had 10: 160 times the work."""
    soft = np.linspace(0, 1, 200_000, dtype=np.float32).reshape(size_hw)
    began = time.process_time()
    refined = refine_borders(soft, np.full((*size_hw, 3), 128, np.uint8))
    assert time.process_time() - began < 10 and refined.shape == size_hw


def test_a_colour_beyond_the_others_is_no_probability_beyond_one() -> None:
    """The filter is linear in colour: a spot far brighter than the object would come out far above 1."""
    image, found = np.full((60, 80, 3), 100, np.uint8), np.zeros((60, 80), np.float32)
    image[:, 40:], found[:, 40:] = 140, 1
    image[20:22, 41:43], image[40:42, 37:39] = 255, 0
    refined = refine_borders(found, image, radius_share=0.1)
    assert refined.min() == 0 and refined.max() == 1


def test_sizes_that_differ_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        refine_borders(np.zeros((4, 5), np.float32), np.zeros((5, 4, 3), np.uint8))


def guided_filter(
    image: NDArray[np.uint8], soft: NDArray[np.float32], radius: int, smoothness: float
) -> NDArray[np.float64]:
    """He, Sun and Tang's equations 14 to 16 as they stand, in float64."""

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        side = 2 * radius + 1
        return cv2.boxFilter(values, -1, (side, side), borderType=cv2.BORDER_REFLECT)

    colors, target = image.astype(np.float64) / 255, soft.astype(np.float64)
    means = np.stack([mean(colors[..., i]) for i in range(3)], -1)
    products = [[mean(colors[..., i] * colors[..., j]) for j in range(3)] for i in range(3)]
    spread = np.stack([np.stack(row, -1) for row in products], -2) - means[..., None] * means[..., None, :]
    shared = np.stack([mean(colors[..., i] * target) for i in range(3)], -1) - means * mean(target)[..., None]
    slope = np.linalg.solve(spread + smoothness * np.eye(3), shared[..., None])[..., 0]
    offset = mean(target) - (slope * means).sum(-1)
    return sum(mean(slope[..., i]) * colors[..., i] for i in range(3)) + mean(offset)


@pytest.mark.parametrize("kind", ["colours", "grey", "black and white"])
@pytest.mark.parametrize("smoothness", [1e-5, 1e-4, 1e-2])
def test_it_is_the_filter_of_the_paper(kind: str, smoothness: float) -> None:
    draw = np.random.default_rng(5)
    coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC)
    if kind != "colours":
        image = np.repeat(image[..., 1:2], 3, axis=2)
    if kind == "black and white":
        image = (image > 127).astype(np.uint8) * np.uint8(255)
    soft = cv2.resize(draw.random((9, 12), dtype=np.float32), (160, 120))
    refined = refine_borders(soft, image, radius_share=1 / 16, smoothness=smoothness)
    np.testing.assert_allclose(refined, guided_filter(image, soft, 10, smoothness).clip(0, 1), atol=2e-3)


MEMORY = """
import resource
from pathlib import Path
import cv2, numpy as np
from diffseg_cli.refine import refine_borders
cv2.setNumThreads(1)
coarse = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
image = cv2.resize(coarse, (6000, 4000))
soft = cv2.resize(np.random.default_rng(1).random((48, 48), dtype=np.float32), (6000, 4000))
def peak():  # ru_maxrss starts at the parent's; the high-water mark of /proc is this program's own
    status = Path("/proc/self/status")
    words = status.read_text().split() if status.exists() else []
    if words:
        return int(words[words.index("VmHWM:") + 1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
refined = refine_borders(soft, image)
print(peak() - before, abs(refined - soft).max())
"""


def test_memory_is_bounded_for_24_megapixels() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    grown, changed = map(float, done.stdout.split())
    assert changed > 0.01
    result_kib = 24e6 * 4 / 1024
    unit = 1024 if sys.platform == "darwin" else 1  # macOS counts bytes
    assert grown / unit < result_kib + 350 * 1024
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


def test_the_segmenter_refines_when_asked_and_says_what_it_cut(small_segmenter: Segmenter) -> None:
    draw = np.random.default_rng(3)
    image = np.kron(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((12, 12, 1), np.uint8))
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[20:50, 30:70] = True
    support = small_segmenter.encode_support([(image, mask)])
    plain, refined = (small_segmenter.segment(image, support, refine=wanted) for wanted in (False, True))
    np.testing.assert_array_equal(refined.probability, refine_borders(plain.probability, image))
    cut = refined.probability > refined.threshold
    np.testing.assert_array_equal(refined.mask, drop_specks(cut, "1%"))
    np.testing.assert_array_equal(refined.score_map, plain.score_map)
    usual = small_segmenter.segment(image, support)
    wanted = small_segmenter.settings.refine
    np.testing.assert_array_equal(usual.mask, (refined if wanted else plain).mask)


def test_queries_encoded_once_serve_several_supports(small_segmenter: Segmenter) -> None:
    draw = np.random.default_rng(4)
    images = [draw.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(2)]
    masks = [np.zeros((40, 50), dtype=bool) for _ in range(2)]
    masks[0][5:20, 5:30] = masks[1][25:38, 20:45] = True
    supports = [small_segmenter.encode_support([pair]) for pair in zip(images, masks, strict=True)]
    encoded = small_segmenter.encode_queries(images)
    for support in supports:
        once = small_segmenter.segment_encoded(encoded, support)
        again = small_segmenter.segment_encoded(small_segmenter.encode_queries(images), support)
        for first, second in zip(once, again, strict=True):
            np.testing.assert_array_equal(first.probability, second.probability)
            assert first.presence == second.presence
