"""Results out: what overlays and heatmaps show."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffseg_cli.results.render import heatmap, overlay, write_image, write_mask, write_overlay


def test_files_hold_what_was_written(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    mask = image[..., 0] > 128
    score_map = image[..., 1].astype(np.float32) / 255
    write_mask(tmp_path / "new" / "folder" / "m.png", mask)
    write_overlay(tmp_path / "o.png", image, mask)
    write_image(tmp_path / "h.png", heatmap(score_map))
    with Image.open(tmp_path / "new" / "folder" / "m.png") as read:
        assert read.mode == "L"
        np.testing.assert_array_equal(np.asarray(read), mask * 255)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o.png")), overlay(image, mask))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "h.png")), heatmap(score_map))
    assert len(list(tmp_path.iterdir())) == 3  # no temporary file stays


def test_heat_grows_with_the_score() -> None:
    ramp = np.linspace(-0.2, 1.2, 50, dtype=np.float32)[None].repeat(4, axis=0)
    picture = np.full((4, 50, 3), 128, np.uint8)
    for colors in (heatmap(ramp), heatmap(ramp, picture)):
        brightness = colors[0].astype(int) @ (299, 587, 114)
        assert (np.diff(brightness) >= 0).all() and brightness[-1] > 2 * brightness[0]


def test_an_overlay_leaves_the_background_and_tints_the_object() -> None:
    image = np.full((300, 400, 3), (30, 120, 200), np.uint8)
    mask = np.zeros((300, 400), dtype=bool)
    mask[100:200, 100:300] = True
    shown = overlay(image, mask)
    np.testing.assert_array_equal(shown[:90], image[:90])
    inside = shown[120:180, 120:280].astype(int)
    assert (inside[..., 0] > 100).all() and (inside[..., 2] < 180).all()
    assert (shown[95:105, 200] == (255, 255, 255)).all(axis=1).any()  # the contour shows on any colour
    np.testing.assert_array_equal(overlay(image, np.zeros_like(mask)), image)


@settings(max_examples=30, deadline=None)
@given(h=st.integers(1, 60), w=st.integers(1, 60), seed=st.integers(0, 99))
def test_any_size_can_be_drawn_and_nothing_is_changed_in_place(h: int, w: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (h, w, 3), dtype=np.uint8)
    before, mask = image.copy(), generator.random((h, w)) > 0.5
    assert (
        overlay(image, mask).shape == heatmap(generator.random((h, w), np.float32), image).shape == (h, w, 3)
    )
    np.testing.assert_array_equal(image, before)
