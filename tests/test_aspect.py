"""`tools/measure_aspect.py`: where an image lies in each frame, and that the frames of one image agree."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffseg_cli.datasets.episode import read_folder
from diffseg_cli.segmenter import Segmenter
from tests.test_training_runs import make_classes
from tools.measure_aspect import SHAPES, frame, measure, nearest_size, new_counts, table


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [((500, 500), (384, 384)), ((480, 640), (320, 448)), ((640, 480), (448, 320)), ((200, 800), (192, 768))],
)
def test_the_nearest_size_keeps_pixels_and_aspect(
    size_hw: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert nearest_size(size_hw, 384) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_is_found_again_in_its_frame(shape: str) -> None:
    image = np.full((90, 160, 3), 255, dtype=np.uint8)
    seen, inside = frame(image, shape, 384)
    content = seen[(0, slice(None), *inside)]
    assert (content == 1).all() and content.numel() == (seen == 1).sum()
    expected = {"squeezed": 1.0, "padded": 16 / 9, "nearest size": 16 / 9}[shape]
    assert content.shape[2] / content.shape[1] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(("size_wh", "band"), [((128, 128), "up to 1.25"), ((256, 64), "longer")])
def test_shapes_are_measured_on_the_same_episodes(
    small_segmenter: Segmenter, tmp_path: Path, size_wh: tuple[int, int], band: str
) -> None:
    root = make_classes(tmp_path, pictures=3)
    for path in root.rglob("*.*"):
        with Image.open(path) as opened:
            opened.resize(size_wh, Image.Resampling.NEAREST).save(path)
    counts = new_counts()
    settings = replace(small_segmenter.settings, threshold=0.01, min_area="0")  # random weights find little
    small_segmenter = replace(small_segmenter, settings=settings)
    measure(small_segmenter, read_folder(root), episodes=1, seed=0, counts=counts)
    assert set(counts) == {"all", band}
    squeezed, *others = (counts[band][shape] for shape in SHAPES)
    for other in others:  # in a square nothing is squeezed
        same = [np.array_equal(squeezed[name], other[name]) for name in ("ball", "brick")]
        assert all(same) == (band == "up to 1.25")
    assert table(counts).count("squeezed") == 2
