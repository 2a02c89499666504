"""Where work runs: the device and the number format, chosen or checked, never changed in silence."""

import math
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from diffseg_cli.errors import UsageError

DEVICES = ("auto", "cuda", "mps", "cpu")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of the container this runs in, where there is one
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def resolve_device(name: str = "auto") -> torch.device:
    """The device a user named, or the fastest there is.

    Args:
        name: "auto" (cuda, else mps, else cpu), "cuda", "cuda:1", "mps" or "cpu".

    Returns:
        The device; CUDA ones always with their number.

    Raises:
        UsageError: no such name, or this machine does not have it.
    """
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"There is no device '{name}'.", f"Choose one of {', '.join(DEVICES)}, or cuda:N.")
    present = _present_devices()
    if name == "auto":
        return torch.device(present[0])
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in present:
        built = kind != "cuda" or torch.backends.cuda.is_built()
        raise UsageError(
            f"The device '{name}' is not there: this machine has {', '.join(present)}"
            f"{'' if built else ', and its torch was built without CUDA'}.",
            f"Use --device {present[0]}, or --device auto to take the fastest there is.",
        )
    return torch.device(wanted)


def resolve_dtype(name: str | None, device: torch.device, on_cuda: torch.dtype | None = None) -> torch.dtype:
    """The number format to compute in.

    Args:
        name: "float32", "float16", "bfloat16", "fp32", "fp16", "bf16"; None or "auto" choose float32 on CPU
            and MPS, on CUDA bfloat16 where the hardware has it and float16 otherwise.
        device: what it will run on.
        on_cuda: what to choose on CUDA instead, where a model answers better in it.

    Raises:
        UsageError: no such name, or float16 on a CPU, which has no fast arithmetic for it.
    """
    if name is None or name == "auto":
        if device.type != "cuda":
            return torch.float32
        if on_cuda is not None:
            return on_cuda
        return torch.bfloat16 if has_bfloat16(device) else torch.float16
    if name not in DTYPES:
        raise UsageError(f"There is no dtype '{name}'.", f"Choose one of auto, {', '.join(DTYPES)}.")
    if DTYPES[name] == torch.float16 and device.type == "cpu":
        other = " (or bfloat16)" if has_bfloat16(device) else ""
        raise UsageError("float16 does not run on a CPU.", f"Use --dtype float32{other}, or a GPU.")
    if DTYPES[name] == torch.bfloat16 and device.type == "cpu" and not has_bfloat16(device):
        warnings.warn(
            "This processor has no bfloat16 instructions: it is many times slower so than in float32.",
            stacklevel=2,
        )
    return DTYPES[name]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; elsewhere it is emulated, far slower than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # torch has no public question for this. oneDNN knows what it may use (ONEDNN_MAX_CPU_ISA), but on x86 it
    # says yes to any AVX-512, where it emulates: there the processor's own flag decides too.
    usable = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return usable and (not x86 or torch.cpu._is_avx512_bf16_supported())


def autocast_for(device: torch.device, precision: str) -> torch.autocast:
    """The automatic mixed precision of training and its caches.

    Args:
        device: what it will run on.
        precision: "bf16" for bfloat16 where the hardware has it and float32 elsewhere, "fp32" for float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and has_bfloat16(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the machine: on a CPU torch says so in words alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def limit_threads() -> None:
    """Compute on no more threads than the container may use.

    torch starts a thread for every core it sees. In a container with `--cpus 2` on a large machine those are
    all of the machine's: they are stopped most of the time and wait for each other.
    """
    try:
        quota, period = CPU_QUOTA.read_text().split()
        allowed = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return
    if allowed < torch.get_num_threads():
        torch.set_num_threads(max(1, allowed))


def describe_device(device: torch.device) -> str:
    """A device in a user's words, such as "cpu (2 threads)" or "cuda:0 (NVIDIA H100, 79 GiB)"."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' if threads > 1 else ''})"
    return str(device)


def _present_devices() -> list[str]:
    """Names of what this machine has, fastest first."""
    cuda = (
        [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return cuda + (["mps"] if torch.backends.mps.is_available() else []) + ["cpu"]


def synchronise(device: torch.device) -> None:
    """Wait until everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def read_time(device: torch.device, *, processor: bool = False) -> Callable[[], float]:
    """A meter of seconds.

    Args:
        device: whose work is waited for.
        processor: count seconds of the process on the processor, all threads together, instead of wall time:
            what else runs on the machine then counts less. Of no use for a GPU.
    """
    clock = time.process_time if processor else time.perf_counter
    synchronise(device)
    last = clock()

    def read() -> float:
        nonlocal last
        synchronise(device)
        before, last = last, clock()
        return last - before

    return read
