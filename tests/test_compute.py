"""Devices and number formats: chosen, checked, described; never changed in silence."""

import platform
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffseg_cli import compute
from diffseg_cli.compute import (
    autocast_for,
    describe_device,
    has_bfloat16,
    limit_threads,
    resolve_device,
    resolve_dtype,
)
from diffseg_cli.errors import ExitCode, UsageError

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda:0"), torch.device("mps")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> object:
    """Make torch report the given hardware."""

    def pretend(*, gpus: int = 0, mps: bool = False, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)  # noqa: ARG005
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("hardware", "name", "expected"),
    [
        ({}, "auto", "cpu"),
        ({}, "cpu", "cpu"),
        ({"mps": True}, "auto", "mps"),
        ({"gpus": 2}, "auto", "cuda:0"),
        ({"gpus": 2, "mps": True}, "auto", "cuda:0"),
        ({"gpus": 2}, "cuda", "cuda:0"),
        ({"gpus": 2}, "cuda:1", "cuda:1"),
        ({"gpus": 2}, "cpu", "cpu"),
    ],
)
def test_device_is_the_one_asked_for(machine, hardware: dict[str, int], name: str, expected: str) -> None:
    machine(**hardware)
    assert resolve_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("hardware", "name", "reason"),
    [
        ({}, "cuda", "'cuda' is not there: this machine has cpu"),
        ({}, "mps", "'mps' is not there: this machine has cpu"),
        ({"gpus": 2}, "cuda:2", "'cuda:2' is not there: this machine has cuda:0, cuda:1, cpu"),
        ({"mps": True}, "cuda:0", "this machine has mps, cpu"),
        ({}, "gpu", "no device 'gpu'"),
        ({}, "", "no device ''"),
        ({}, "cuda:x", "no device 'cuda:x'"),
        ({}, "cuda:-1", "no device 'cuda:-1'"),
        ({}, "cpu:0", "no device 'cpu:0'"),
    ],
)
def test_absent_device_is_a_usage_error(machine, hardware: dict[str, int], name: str, reason: str) -> None:
    machine(**hardware)
    with pytest.raises(UsageError, match=reason) as caught:
        resolve_device(name)
    assert caught.value.exit_code == ExitCode.USAGE and caught.value.hint


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="the sentence is about a torch without CUDA")
def test_a_torch_without_cuda_is_named_as_the_reason() -> None:
    with pytest.raises(UsageError, match="built without CUDA"):
        resolve_device("cuda")


@pytest.mark.parametrize("name", [None, "auto"])
@pytest.mark.parametrize(
    ("device", "bf16", "expected"),
    [
        (CPU, True, torch.float32),
        (MPS, True, torch.float32),
        (CUDA, True, torch.bfloat16),
        (CUDA, False, torch.float16),
    ],
)
def test_automatic_dtype(
    machine,
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
    device: torch.device,
    bf16: bool,
    expected: torch.dtype,
) -> None:
    machine(gpus=1, bf16=bf16)
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda chosen: entered.append(chosen) or torch.no_grad())
    assert resolve_dtype(name, device) == expected
    assert entered == ([device] if device.type == "cuda" else [])
    asked = torch.float16 if device.type == "cuda" else expected
    assert resolve_dtype(name, device, torch.float16) == asked


@pytest.mark.parametrize(("short", "long"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_dtype_names(short: str, long: str) -> None:
    assert resolve_dtype(short, CUDA) == resolve_dtype(long, CUDA) == getattr(torch, long)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("float16", "float16 does not run on a CPU"),
        ("fp16", "float16 does not run"),
        ("int8", "no dtype 'int8'"),
    ],
)
def test_dtype_that_cannot_be_is_a_usage_error(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        resolve_dtype(name, CPU)
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore:This processor has no bfloat16")
def test_bfloat16_computes_on_a_cpu() -> None:
    dtype = resolve_dtype("bf16", CPU)
    assert (torch.ones(2, 2, dtype=dtype) @ torch.ones(2, 2, dtype=dtype)).sum() == 8


@pytest.mark.parametrize(
    ("machine_name", "onednn", "flag", "expected"),
    [
        ("x86_64", True, True, True),
        ("x86_64", True, False, False),  # AVX-512 of the first years: oneDNN emulates
        ("AMD64", False, True, False),  # ONEDNN_MAX_CPU_ISA=AVX2
        ("aarch64", True, False, True),
        ("aarch64", False, False, False),
    ],
)
def test_bfloat16_of_a_processor(
    monkeypatch: pytest.MonkeyPatch, machine_name: str, onednn: bool, flag: bool, expected: bool
) -> None:
    """Where it is emulated, training computes in float32, and nobody is advised to choose it."""
    monkeypatch.setattr(platform, "machine", lambda: machine_name)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: flag)
    assert has_bfloat16(CPU) == expected
    with autocast_for(CPU, "bf16"):
        product = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert product == (torch.bfloat16 if expected else torch.float32)
    with autocast_for(CPU, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(UsageError) as caught:
        resolve_dtype("float16", CPU)
    assert caught.value.hint and ("bfloat16" in caught.value.hint) == expected
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        assert resolve_dtype("bfloat16", CPU) == torch.bfloat16
    assert bool(noted) != expected


def test_bfloat16_of_other_devices(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _chosen: torch.no_grad())
    machine(gpus=1, bf16=True)
    assert has_bfloat16(CUDA) and not has_bfloat16(MPS)
    machine(gpus=1, bf16=False)
    assert not has_bfloat16(CUDA)


def test_devices_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert describe_device(CPU) == "cpu (2 threads)"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert describe_device(CPU) == "cpu (1 thread)"
    assert describe_device(MPS) == "mps"
    card = SimpleNamespace(name="Some GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: card)
    assert describe_device(CUDA) == "cuda:0 (Some GPU, 24 GiB)"


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("9900000 100000\n", 4),
        ("max 100000\n", 4),
        ("", 4),
        (None, 4),
    ],
)
def test_threads_stay_within_the_quota_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, threads: int
) -> None:
    monkeypatch.setattr(compute, "CPU_QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1] if chosen else 4)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    limit_threads()
    assert torch.get_num_threads() == threads


@pytest.mark.gpu
def test_a_real_gpu_is_chosen_and_described() -> None:
    device = compute.resolve_device("auto")
    assert device.type == "cuda"
    assert torch.cuda.get_device_name(device) in describe_device(device)
    assert torch.ones(2, device=device, dtype=resolve_dtype(None, device)).sum() == 2
