"""Edge detectors from their files: HED, shipped or a user's own, and its student."""

import pickle
import struct
from pathlib import Path

import torch
from torch import Tensor

from diffseg_cli.errors import WeightsError
from diffseg_cli.models.hed import HED
from diffseg_cli.models.hed_student import HedStudent
from diffseg_cli.weights.files import find_weights, load_strict, read_safetensors

HED_FILE, STUDENT_FILE = "hed/hed_bsds500.safetensors", "hed/student.safetensors"
# What reading damaged bytes as a torch file ends in: torch checks little of it.
DAMAGED = (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AssertionError, struct.error)


def load_hed(path: Path | None = None) -> HED:
    """HED with the shipped weights, or with those of a file the user has.

    Args:
        path: safetensors in this layout, or `ControlNetHED.pth` as controlnet_aux uses it (a dictionary of
            tensors; its edge map is the sigmoid of the mean side output). None takes the shipped file.

    Returns:
        HED in float32 on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: the file is missing, damaged, not of this network, or holds more than tensors.
    """
    path = find_weights(HED_FILE) if path is None else path
    state = _read_torch_file(path) if _is_torch_file(path) else read_safetensors(path)[0]
    state = {"fuse.weight": torch.full((1, 5, 1, 1), 0.2), "fuse.bias": torch.zeros(1), **state}
    hed = HED()
    load_strict(hed, {name: tensor.float() for name, tensor in state.items()}, path)
    # A sixth faster in float32 and, on a CPU that multiplies bfloat16, three times faster in that.
    hed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's own types
    return hed.eval().requires_grad_(False)


def load_hed_student() -> HedStudent:
    """The shipped student in float32 on the CPU, in eval mode, without gradients.

    Raises:
        WeightsError: the file is missing, damaged or of another network.
    """
    path = find_weights(STUDENT_FILE)
    student = HedStudent()
    load_strict(student, {name: tensor.float() for name, tensor in read_safetensors(path)[0].items()}, path)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's types
    return student.eval().requires_grad_(False)


def _is_torch_file(path: Path) -> bool:
    """True for what `torch.save` or pickle wrote; safetensors has a "{" after its eight bytes of length."""
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError:
        return False  # read_safetensors says why
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[8:] != b"{")


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.pth` file, read without running the code a pickle may carry."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} needs unpickling of more than tensors, which could run code it carries: refused.",
            "Load it where you trust it and save its state_dict() again, best as safetensors.",
        ) from error
    except DAMAGED as error:
        raise WeightsError(
            f"{path} is damaged: torch cannot read it.", "Fetch or copy the file again."
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise WeightsError(
            f"{path} is not a plain dictionary of tensors.",
            "Save the network's state_dict() alone, best as safetensors.",
        )
    return state
