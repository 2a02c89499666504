"""Closer looks at large images: where they go, how many there are, and what comes of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from test_cli import run
from test_shipped import EXAMPLES, iou, truth

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.datasets.pasting import mosaic, paste
from diffseg_cli.datasets.truth import Truth
from diffseg_cli.errors import UsageError
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.zoom import ROUND, Window, WindowLook, compose, most_looks, search

SIZE = 48  # of the model frame


class Marker:
    """A model that marks the corner of a cell in every window, and remembers where it looked."""

    def __init__(self) -> None:
        self.windows: list[Window] = []

    def look_at(self, windows: Sequence[Window]) -> list[WindowLook]:
        assert 0 < len(windows) <= ROUND
        self.windows += windows
        return [self._look(window) for window in windows]

    def _look(self, window: Window) -> WindowLook:
        generator = np.random.default_rng([window.top, window.left, window.height, window.width])
        probability = np.zeros((SIZE, SIZE), np.float32)
        for y, x in generator.integers(0, SIZE - 8, (5, 2)):
            probability[y : y + 4, x : x + 8] = generator.random()
        return WindowLook(window, probability, float(generator.random()))

    def plain(self, size_hw: tuple[int, int]) -> WindowLook:
        return self._look(Window(0, 0, *size_hw))


@pytest.mark.parametrize("size_hw", [(96, 96), (97, 400), (1000, 101), (700, 1300), (4000, 6000), (1, 900)])
@pytest.mark.parametrize("looks", [1, 2, 5, 10, 24])
def test_search_keeps_its_bound_and_stays_inside(size_hw: tuple[int, int], looks: int) -> None:
    marker = Marker()
    plain = marker.plain(size_hw)
    seen = search(marker.look_at, plain, looks)
    assert seen[0] is plain
    assert 1 <= len(seen) <= looks
    assert [look.window for look in seen[1:]] == marker.windows
    for window in marker.windows:
        assert 0 <= window.top <= window.top + window.height <= size_hw[0]
        assert 0 <= window.left <= window.left + window.width <= size_hw[1]
        assert min(window.height, window.width) > 0
        assert window.longer < max(size_hw)
    assert len(set(marker.windows)) == len(marker.windows)
    again = Marker()
    search(again.look_at, plain, looks)
    assert again.windows == marker.windows


def test_several_objects_each_get_their_look() -> None:
    size_hw = (1200, 1600)
    places = {"large": (6, 6, 12), "small": (30, 34, 3), "middle": (38, 8, 6)}  # top, left, side in the frame

    def answer(window: Window) -> WindowLook:
        probability = np.zeros((SIZE, SIZE), np.float32)
        for top, left, side in places.values():
            y, x = (
                np.array([top, top + side]) * size_hw[0] / SIZE,
                np.array([left, left + side]) * size_hw[1] / SIZE,
            )
            rows = ((y - window.top) * SIZE / window.height).round().astype(int).clip(0, SIZE)
            columns = ((x - window.left) * SIZE / window.width).round().astype(int).clip(0, SIZE)
            probability[rows[0] : rows[1], columns[0] : columns[1]] = 0.9
        return WindowLook(window, probability, 0.8 if probability.any() else 0.1)

    plain = answer(Window(0, 0, *size_hw))
    closer = [look.window for look in search(lambda ws: [answer(w) for w in ws], plain, 10)[1:]]
    for top, left, side in places.values():
        middle = (top + side / 2) * size_hw[0] / SIZE, (left + side / 2) * size_hw[1] / SIZE
        fitting = [
            w
            for w in closer
            if w.top < middle[0] < w.top + w.height
            and w.left < middle[1] < w.left + w.width
            and w.longer <= max(2.5 * side * size_hw[1] / SIZE, SIZE)
        ]
        assert fitting, (top, left, side)


@pytest.mark.parametrize(
    ("zoom", "size_hw", "share", "presence", "looks"),
    [
        ("auto", (1500, 2000), 0.02, 0.7, 10),  # small and not sure
        ("auto", (1500, 2000), 0.3, 0.4, 10),  # nothing seems to be there
        ("auto", (1500, 2000), 0.3, 0.7, 1),  # large
        ("auto", (1500, 2000), 0.02, 0.95, 1),  # small and sure
        ("auto", (4000, 6000), 0.02, 0.1, 22),  # one more for each megapixel above 12
        ("auto", (60, 95), 0.02, 0.1, 1),  # no pixels to spare
        ("40", (60, 95), 0.02, 0.1, 1),
        ("40", (1500, 2000), 0.9, 0.99, 40),
        ("off", (1500, 2000), 0.02, 0.1, 1),
    ],
)
def test_when_to_look_closer(
    zoom: str, size_hw: tuple[int, int], share: float, presence: float, looks: int
) -> None:
    probability = np.zeros((SIZE, SIZE), np.float32)
    probability[:, : round(share * SIZE)] = 0.8
    assert most_looks(zoom, WindowLook(Window(0, 0, *size_hw), probability, presence), SIZE) == looks


def test_windows_that_agree_leave_no_seam() -> None:
    size_hw = (300, 400)
    windows = [
        Window(0, 0, *size_hw),
        Window(0, 0, 150, 200),
        Window(37, 120, 90, 90),
        Window(150, 200, 150, 200),
    ]
    half = np.full((SIZE, SIZE), 0.5, np.float32)
    looks = [WindowLook(window, half, 0.6) for window in windows]
    composed = compose(looks, np.zeros((*size_hw, 3), np.uint8), refine=True)
    assert composed.dtype == np.float32
    np.testing.assert_allclose(composed, 0.5, atol=1e-6)


def test_windows_that_disagree_change_gradually() -> None:
    size_hw = (400, 400)
    looks = [
        WindowLook(Window(0, 0, *size_hw), np.zeros((SIZE, SIZE), np.float32), 0.9),
        WindowLook(Window(100, 100, 200, 200), np.ones((SIZE, SIZE), np.float32), 0.9),
    ]
    composed = compose(looks, np.zeros((*size_hw, 3), np.uint8), refine=False)
    steps = max(np.abs(np.diff(composed, axis=axis)).max() for axis in (0, 1))
    assert steps < 0.08
    assert composed[200, 200] == pytest.approx(2 / 3)  # the closer window weighs twice as much
    assert composed[50, 50] == 0


def test_a_window_counts_by_its_presence() -> None:
    size_hw = (400, 400)
    looks = [
        WindowLook(Window(0, 0, *size_hw), np.zeros((SIZE, SIZE), np.float32), 0.1),
        WindowLook(Window(0, 0, 100, 100), np.ones((SIZE, SIZE), np.float32), 0.8),
        WindowLook(Window(300, 300, 100, 100), np.ones((SIZE, SIZE), np.float32), 0.2),
    ]
    composed = compose(looks, np.zeros((*size_hw, 3), np.uint8), refine=False)
    assert composed[20, 20] > 0.5 > 0.25 > composed[380, 380]


# --- the shipped model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load_segmenter("compact", device="cpu")


@pytest.fixture(scope="module")
def scene() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A windmill on 0.6 % of a large image of animals."""
    image = mosaic(
        [read_image(EXAMPLES / name / "query.jpg") for name in ("giraffe", "dog", "cat", "horse")],
        (1200, 1600),
    )
    mask = truth("windmill/query_mask.png")
    object_alone = Truth(mask, np.zeros_like(mask))
    windmill = read_image(EXAMPLES / "windmill/query.jpg")
    return image, paste(image, windmill, object_alone, 0.006, np.random.default_rng(3)).mask


def windmill(segmenter: Segmenter):  # type: ignore[no-untyped-def]
    return segmenter.encode_support(
        [(EXAMPLES / "windmill/support.jpg", EXAMPLES / "windmill/support_mask.png")]
    )


def test_finds_a_small_object_that_one_look_misses(
    segmenter: Segmenter, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]]
) -> None:
    image, expected = scene
    support = windmill(segmenter)
    missed = segmenter.segment(image, support, refine=False)
    found = segmenter.segment(image, support, zoom="auto", refine=False)
    assert iou(missed.mask, expected) < 0.1
    assert iou(found.mask, expected) > 0.7
    assert not missed.windows
    assert len(found.windows) == 9
    assert found.presence is not None
    assert missed.presence is not None
    assert found.presence > missed.presence
    again = segmenter.segment(image, support, zoom="auto", refine=False)
    assert again.probability.tobytes() == found.probability.tobytes()


def test_a_large_object_costs_one_look(segmenter: Segmenter) -> None:
    image = np.repeat(np.repeat(read_image(EXAMPLES / "windmill/query.jpg"), 4, axis=0), 4, axis=1)
    support = windmill(segmenter)
    auto, off = (segmenter.segment(image, support, zoom=zoom, refine=False) for zoom in ("auto", "off"))
    assert not auto.windows
    assert auto.mask.tobytes() == off.mask.tobytes()
    assert auto.probability.tobytes() == off.probability.tobytes()


def test_without_a_presence_score(small_segmenter: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    mask = np.zeros((900, 1200), bool)
    mask[:300, :300] = True
    support = small_segmenter.encode_support([(image, mask)])
    assert small_segmenter.trained.presence is None
    assert not small_segmenter.segment(image, support, zoom="auto").windows
    with pytest.raises(UsageError, match="no presence score"):
        small_segmenter.segment(image, support, zoom="5")


# --- the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "0", "-3", "1000", "on", "10.5", ""])
def test_a_bad_value_is_a_usage_error(value: str, tmp_path: Path) -> None:
    done = run("segment", EXAMPLES / "dog/query.jpg", "-o", tmp_path / "out", "--zoom", value)
    assert done.exit_code == 2
    assert "neither auto nor off nor a number of looks from 2 to 999" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
