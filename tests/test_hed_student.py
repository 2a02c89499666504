"""HED's student: its network, its shipped weights, and how near its edges and masks come to HED's."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.config import CompactConfig
from diffseg_cli.errors import WeightsError
from diffseg_cli.models.hed_student import HedStudent
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.weights.edge_detectors import STUDENT_FILE, load_hed, load_hed_student
from diffseg_cli.weights.files import file_sha256, find_weights, read_safetensors

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def student() -> HedStudent:
    return load_hed_student()


@pytest.mark.parametrize("size_hw", [(192, 192), (64, 96), (30, 2)])
def test_a_map_has_the_size_and_format_of_its_picture(student: HedStudent, size_hw: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size_hw)
    edges = student(images)
    assert edges.shape == (2, 1, *size_hw) and edges.dtype == torch.float32
    assert edges.min() >= 0 and edges.max() <= 1
    torch.testing.assert_close(edges[1:], student(images[1:]), atol=1e-4, rtol=0)


def test_other_shapes_are_the_callers_mistake(student: HedStudent) -> None:
    for shape in ((3, 64, 64), (1, 1, 64, 64), (1, 3, 63, 64)):
        with pytest.raises(ValueError, match="even h and w"):
            student(torch.rand(shape))


def test_bfloat16_gives_nearly_the_same_map(student: HedStudent) -> None:
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    half = load_hed_student().to(torch.bfloat16)(images)
    assert half.dtype == torch.float32 and (half - student(images)).abs().max() < 0.05


def test_on_photographs_it_repeats_hed(student: HedStudent) -> None:
    hed = load_hed()
    for name in ("bird", "horse", "windmill"):
        picture = torch.from_numpy(read_image(EXAMPLES / name / "query.jpg")).permute(2, 0, 1)
        size = CompactConfig.image_size // 2
        images = F.interpolate(picture[None] / 255, size=(size, size), mode="area")
        guessed, wanted = student(images), hed(images)
        assert torch.corrcoef(torch.stack([guessed.flatten(), wanted.flatten()]))[0, 1] > 0.9
        assert (guessed - wanted).abs().mean() < 0.1


def test_masks_stay_those_of_hed() -> None:
    segmenter = load_segmenter("compact", device="cpu")
    assert isinstance(segmenter.hed, HedStudent) and segmenter.edge_size == CompactConfig.image_size // 2
    support = segmenter.encode_support([(EXAMPLES / "bird/support.jpg", EXAMPLES / "bird/support_mask.png")])
    masks = [segmenter.segment(EXAMPLES / "bird/query.jpg", support).mask]
    with_teacher = dataclasses.replace(segmenter, hed=load_hed())
    masks.append(with_teacher.segment(EXAMPLES / "bird/query.jpg", support).mask)
    assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.98


def test_a_file_of_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hed").mkdir()
    (tmp_path / STUDENT_FILE).write_bytes(find_weights("hed/hed_bsds500.safetensors").read_bytes())
    monkeypatch.setenv("DIFFSEG_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="does not fit HedStudent"):
        load_hed_student()


def test_the_card_states_the_shipped_file() -> None:
    path = find_weights(STUDENT_FILE)
    card = (path.parent / "README.md").read_text()
    assert read_safetensors(path)[1]["licence"] == "Apache-2.0" and file_sha256(path) in card
