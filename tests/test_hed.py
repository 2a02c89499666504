"""HED: edges where edges are, over the picture at any size, from the shipped file or from a user's own.

`python -m tests.test_hed` prints the figures of the shipped weights that this file expects.
"""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffseg_cli.errors import ExitCode, WeightsError
from diffseg_cli.models.hed import HED
from diffseg_cli.weights.edge_detectors import HED_FILE, load_hed
from diffseg_cli.weights.files import file_sha256, find_weights, read_safetensors, write_safetensors

# Of the synthetic picture, from `python -m tests.test_hed` (torch 2.13, float32).
MEAN_EDGE = 0.1135
BOUNDARY_CORRELATION = 0.7831
# Rounding the weights to fp16 moved no pixel of six photographs by more than 5e-4, so other kernels of torch
# have room here; swapped colour channels or a forgotten mean do not.
TOLERANCE = 2e-3

RANDOM_HED = HED().eval().requires_grad_(False)  # sizes need no trained weights


def synthetic_picture() -> tuple[Tensor, np.ndarray]:
    """A disc, a bar and a triangle in colours on a gradient: image (1 3 160 208), true boundary (160 208)."""
    h, w = 160, 208
    rows = np.linspace(90, 150, h, dtype=np.float32)[:, None, None]
    image = np.broadcast_to(rows * np.array([1.0, 0.8, 0.5], np.float32), (h, w, 3)).astype(np.uint8).copy()
    labels = np.zeros((h, w), np.uint8)
    for canvas, colours in ((image, [(230, 60, 40), (30, 60, 200), (250, 240, 210)]), (labels, [1, 2, 3])):
        cv2.circle(canvas, (60, 70), 38, colours[0], -1)
        cv2.rectangle(canvas, (120, 20), (190, 60), colours[1], -1)
        cv2.fillPoly(canvas, [np.array([[110, 140], [190, 140], [160, 80]])], colours[2])
    boundary = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255, boundary


def figures(hed: HED) -> tuple[float, float]:
    """Mean of the edge map, and its correlation with the true boundary, both at a quarter of the size."""
    image, boundary = synthetic_picture()
    edge_map = hed(image)
    coarse = [F.avg_pool2d(edge_map, 4), F.avg_pool2d(torch.from_numpy(boundary).float()[None, None], 4)]
    return float(edge_map.mean()), float(torch.corrcoef(torch.stack([c.flatten() for c in coarse]))[0, 1])


@pytest.fixture(scope="module")
def hed() -> HED:
    return load_hed()


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Something busier than shapes: smooth coloured noise on top of the synthetic picture."""
    noise = torch.rand(1, 3, 20, 26, generator=torch.Generator().manual_seed(3))
    noise = F.interpolate(noise, size=(160, 208), mode="bicubic", align_corners=False)
    return (0.6 * synthetic_picture()[0] + 0.4 * noise).clamp(0, 1)


# --- what it sees


def test_shipped_weights_give_the_recorded_figures(hed: HED) -> None:
    mean, correlation = figures(hed)
    assert mean == pytest.approx(MEAN_EDGE, abs=TOLERANCE)
    assert correlation == pytest.approx(BOUNDARY_CORRELATION, abs=TOLERANCE)


def test_edges_are_bright_on_the_boundary_and_dark_away_from_it(hed: HED) -> None:
    image, boundary = synthetic_picture()
    edge_map = hed(image)[0, 0].numpy()
    away = cv2.dilate(boundary.astype(np.uint8), np.ones((25, 25), np.uint8)) == 0
    assert edge_map[boundary].mean() > 0.7
    assert edge_map[away].mean() < 0.15


def test_a_flat_picture_has_no_edges_inside(hed: HED) -> None:
    assert hed(torch.full((1, 3, 96, 96), 0.45))[..., 24:-24, 24:-24].max() < 0.1


# --- sizes, batches, dtypes


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 2))
def test_any_size_gives_a_map_of_that_size(h: int, w: int, b: int) -> None:
    torch.manual_seed(0)
    edge_map = RANDOM_HED(torch.rand(b, 3, h, w))
    assert edge_map.shape == (b, 1, h, w)
    assert edge_map.min() >= 0 and edge_map.max() <= 1


@pytest.mark.parametrize("crop_hw", [(147, 181), (145, 193), (160, 177)])
def test_a_size_16_does_not_divide_shifts_nothing(hed: HED, photo: Tensor, crop_hw: tuple[int, int]) -> None:
    h, w = crop_hw
    whole, crop = hed(photo)[..., : h - 28, : w - 28], hed(photo[..., :h, :w])[..., : h - 28, : w - 28]
    assert (whole - crop).abs().mean() < 0.01


def test_a_batch_equals_its_pictures_one_by_one(hed: HED, photo: Tensor) -> None:
    pictures = torch.cat([photo, photo.flip(-1), 1 - photo])[..., :101, :77]
    single = torch.cat([hed(picture[None]) for picture in pictures])
    torch.testing.assert_close(hed(pictures), single, atol=1e-4, rtol=0)


def test_bfloat16_gives_nearly_the_same_map_in_the_dtype_of_the_pictures(hed: HED, photo: Tensor) -> None:
    edge_map = load_hed().to(torch.bfloat16)(photo)
    assert edge_map.dtype == torch.float32
    assert (edge_map - hed(photo)).abs().max() < 0.05


def test_a_picture_of_another_shape_is_the_callers_mistake(hed: HED) -> None:
    with pytest.raises(ValueError, match=r"\(b 3 h w\)"):
        hed(torch.rand(3, 64, 64))


# --- files


def controlnet_state() -> dict[str, Tensor]:
    """The shipped weights as a ControlNetHED.pth would hold them: no `fuse`."""
    state = read_safetensors(find_weights(HED_FILE))[0]
    return {name: value.float() for name, value in state.items() if not name.startswith("fuse")}


def controlnet_edges(state: dict[str, Tensor], image: np.ndarray) -> np.ndarray:
    """The edge map as controlnet_aux defines it, from uint8 RGB (H W 3), written without HED."""
    hidden = torch.from_numpy(image).permute(2, 0, 1)[None].float() - state["norm"]
    sides = []
    for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
        hidden = hidden if block == 1 else F.max_pool2d(hidden, 2)
        for index in range(convolutions):
            name = f"block{block}.convs.{index}"
            hidden = F.conv2d(hidden, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
        name = f"block{block}.projection"
        side = F.conv2d(hidden, state[f"{name}.weight"], state[f"{name}.bias"])[0, 0].numpy()
        sides.append(cv2.resize(side, image.shape[1::-1], interpolation=cv2.INTER_LINEAR))
    mean: np.ndarray = np.mean(sides, axis=0)
    edge_map: np.ndarray = 1 / (1 + np.exp(-mean))
    return edge_map


@pytest.mark.parametrize("legacy", [False, True])
def test_a_controlnet_file_gives_the_controlnet_edge_map(tmp_path: Path, photo: Tensor, legacy: bool) -> None:
    path, state = tmp_path / "ControlNetHED.pth", controlnet_state()
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    image = (photo[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    edge_map = load_hed(path)(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0, 0].numpy()
    np.testing.assert_allclose(edge_map, controlnet_edges(state, image), atol=1e-3)


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (exec, (f"open({str(self.path)!r}, 'w').close()", ""))


def refused(path: Path) -> WeightsError:
    """The error `load_hed` raises for a file; names the file and carries the exit code of weights."""
    with pytest.raises(WeightsError) as caught:
        load_hed(path)
    assert str(path) in caught.value.message and caught.value.hint
    assert caught.value.exit_code == ExitCode.WEIGHTS
    return caught.value


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_file_with_code_is_refused_unrun(tmp_path: Path, plain_pickle: bool) -> None:
    path, trace = tmp_path / "network.pth", tmp_path / "trace"
    if plain_pickle:
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        torch.save({"norm": Payload(trace)}, path)
    error = refused(path)
    assert "could run code" in error.message and "state_dict()" in str(error.hint)
    assert not trace.exists()


def test_files_of_another_make_are_refused_with_the_reason(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent.pth").message
    (tmp_path / "picture.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    refused(tmp_path / "picture.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "not a plain dictionary" in refused(tmp_path / "list.pth").message
    torch.save({0: torch.zeros(3)}, tmp_path / "numbers.pth")
    assert "not a plain dictionary" in refused(tmp_path / "numbers.pth").message
    torch.save({"stem.weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert "does not fit HED" in refused(tmp_path / "other.pth").message
    write_safetensors(tmp_path / "other.safetensors", {"stem.weight": torch.zeros(3)}, {})
    assert "does not fit HED" in refused(tmp_path / "other.safetensors").message
    whole = find_weights(HED_FILE).read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused(tmp_path / "short.safetensors").message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@example(cut=1.0, at=0.5, value=0xE6, legacy=False, bare=True)  # text that is no UTF-8
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.floats(0, 1),
    at=st.floats(0, 1),
    value=st.integers(0, 255),
    legacy=st.booleans(),
    bare=st.booleans(),
)
def test_a_damaged_torch_file_is_an_error_that_names_it(
    tmp_path: Path, cut: float, at: float, value: int, legacy: bool, bare: bool
) -> None:
    path = tmp_path / "damaged.pth"
    torch.save({"norm": torch.zeros(2)}, path, _use_new_zipfile_serialization=not legacy)
    content = bytearray(pickle.dumps({"norm": [1, "a"]}) if bare else path.read_bytes())
    content[int(at * (len(content) - 1))] = value
    path.write_bytes(content[: int(cut * len(content))])
    refused(path)


def test_the_card_states_the_shipped_file() -> None:
    path = find_weights(HED_FILE)
    metadata = read_safetensors(path)[1]
    card = (path.parent / "README.md").read_text()
    assert metadata["licence"] == "MIT"
    assert metadata["source_sha256"] in card
    assert file_sha256(path) in card
    assert "MIT License" in (path.parent / "LICENSE").read_text()


if __name__ == "__main__":
    print("mean edge {:.4f}, boundary correlation {:.4f}".format(*figures(load_hed())))
