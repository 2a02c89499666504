"""Closer looks at large images: where they go, how many there are, and what comes of them."""

from collections.abc import Sequence
from dataclasses import replace
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
from diffseg_cli.zoom import Window, WindowLook, deciding, join, most_looks, search

SIZE = 48  # of the model frame


def look(
    window: Window, probability: NDArray[np.float32], *, presence: float = 0.5, share: float = 0.2
) -> WindowLook:
    """A look in which every place gives the same share of its attention to the prompt."""
    return WindowLook(window, probability, presence, np.full((6, 6), share, np.float32), share)


class Marker:
    """A model that marks the corner of a cell in every window, and remembers where it looked."""

    def __init__(self) -> None:
        self.windows: list[Window] = []

    def look_at(self, windows: Sequence[Window]) -> list[WindowLook]:
        assert windows
        self.windows += windows
        return [self._look(window) for window in windows]

    def _look(self, window: Window) -> WindowLook:
        generator = np.random.default_rng([window.top, window.left, window.height, window.width])
        probability = np.zeros((SIZE, SIZE), np.float32)
        for y, x in generator.integers(0, SIZE - 8, (5, 2)):
            probability[y : y + 4, x : x + 8] = generator.random()
        shares = generator.random((6, 6), dtype=np.float32)
        return WindowLook(window, probability, float(generator.random()), shares, float(shares.max()))

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


@pytest.mark.parametrize(
    ("size_hw", "looks", "side_hw", "tiles"),
    [
        ((1500, 2000), 10, (938, 833), 6),  # 2 x 3
        ((2000, 1500), 10, (833, 938), 6),
        ((4000, 6000), 22, (1667, 1875), 12),  # 3 x 4
        ((60, 3000), 10, (60, 625), 6),
        ((100, 120), 40, (31, 30), 20),  # 4 x 5, for 32 pixels hold no more than the model sees
    ],
)
def test_tiles_cover_the_image(
    size_hw: tuple[int, int], looks: int, side_hw: tuple[int, int], tiles: int
) -> None:
    marker = Marker()
    seen = search(marker.look_at, marker.plain(size_hw), looks)
    windows = [each.window for each in seen if each.is_tile]
    assert {(each.height, each.width) for each in windows} == {side_hw}
    assert len(windows) == tiles
    covered = np.zeros(size_hw, bool)
    for each in windows:
        covered[each.slices] = True
    assert covered.all()


def test_what_nearly_fills_a_tile_is_not_looked_at_again() -> None:
    rounds: list[Sequence[Window]] = []

    def look_at(windows: Sequence[Window]) -> list[WindowLook]:
        rounds.append(windows)
        found = [look(each, np.zeros((SIZE, SIZE), np.float32)) for each in windows]
        found[-1].probability[:24, :24] = 1  # a look around it would be no closer, and lie mostly elsewhere
        return found

    search(look_at, look(Window(0, 0, 480, 480), np.zeros((SIZE, SIZE), np.float32)), 10)
    assert len(rounds) == 1


def test_looks_go_where_most_attention_is_drawn_each_framed_as_supports_are() -> None:
    """Four marks that one look shows; by size or by probability the order would be another."""
    size_hw = (1200, 1600)
    marks = [(6, 6, 12, 0.1, 0.9), (30, 34, 4, 0.5, 0.6), (38, 8, 6, 0.3, 0.8), (8, 36, 4, 0.2, 0.9)]
    probability = np.zeros((SIZE, SIZE), np.float32)
    shares = np.zeros((SIZE, SIZE), np.float32)
    for top, left, side, share, sure in marks:
        probability[top : top + side, left : left + side] = sure
        shares[top : top + side, left : left + side] = share
    plain = WindowLook(Window(0, 0, *size_hw), probability, 0.5, shares, 0.5)

    def nothing(windows: Sequence[Window]) -> list[WindowLook]:
        return [look(each, np.zeros((SIZE, SIZE), np.float32)) for each in windows]

    closer = [each.window for each in search(nothing, plain, 10)[1:] if not each.is_tile]
    assert len(closer) == 3
    for window, (top, left, side, *_) in zip(closer, (marks[i] for i in (1, 2, 3)), strict=True):
        assert window.height == window.width == round(1.6 * side * size_hw[1] / SIZE)
        assert window.top <= top * 25 < (top + side) * 25 <= window.top + window.height
        assert window.left <= left * 1600 / 48 < (left + side) * 1600 / 48 <= window.left + window.width


@pytest.mark.parametrize(
    ("zoom", "size_hw", "presence", "looks"),
    [
        ("auto", (1500, 2000), 0.45, 10),
        ("auto", (1500, 2000), 0.55, 1),  # sure
        ("auto", (4000, 6000), 0.1, 22),  # one more for each megapixel above 12
        ("auto", (60, 95), 0.1, 1),  # no pixels to spare
        ("40", (60, 95), 0.1, 1),
        ("40", (1500, 2000), 0.99, 40),
        ("off", (1500, 2000), 0.1, 1),
    ],
)
def test_when_to_look_closer(zoom: str, size_hw: tuple[int, int], presence: float, looks: int) -> None:
    plain = look(Window(0, 0, *size_hw), np.zeros((SIZE, SIZE), np.float32), presence=presence)
    assert most_looks(zoom, plain, SIZE) == looks


def test_a_closer_look_decides_only_where_it_draws_clearly_more_attention() -> None:
    marked = np.ones((SIZE, SIZE), np.float32)
    plain = look(Window(0, 0, 400, 400), marked, share=0.2)
    tile = replace(look(Window(0, 0, 200, 200), marked, share=0.9), is_tile=True)
    close, closer, closest = (look(Window(0, 0, 90, 90), marked, share=share) for share in (0.29, 0.31, 0.5))
    assert deciding([plain]) == [plain]
    assert deciding([plain, tile, close]) == [plain]
    assert deciding([plain, tile, close, closer]) == [close, closer]
    assert deciding([plain, tile, close, closer, closest]) == [closest]
    assert deciding([]) == []


def test_looks_are_joined_by_the_highest_and_leave_no_seam() -> None:
    size_hw = (300, 400)
    image = np.zeros((*size_hw, 3), np.uint8)
    half = np.full((SIZE, SIZE), 0.5, np.float32)
    looks = [look(window, half) for window in (Window(37, 120, 90, 90), Window(60, 150, 150, 200))]
    for refine in (False, True):
        joined = join(looks, image, refine=refine)
        assert joined.dtype == np.float32
        for each in looks:
            np.testing.assert_allclose(joined[each.window.slices], 0.5, atol=1e-6)
        assert (joined > 0).sum() == 90 * 90 + 150 * 200 - 67 * 60
    more = look(Window(37, 120, 90, 90), half + np.float32(0.25))
    assert join([*looks, more], image, refine=False)[70, 160] == 0.75


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
    return image, paste(image, windmill, object_alone, 0.006, np.random.default_rng(1)).mask


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
