"""What a stage costs: time, floating-point operations, peak memory; and what the machine could do.

A meter is read at the borders of stages (`timing.Stages`) and says what was spent since it was read before.
The stages are walked through once with each meter: counting operations slows Python down, and resetting a
peak takes time.
"""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from diffseg_cli.compute import read_time

CEILING_SIZES = (512, 1024, 2048, 4096, 8192)
CEILING_SECONDS = 0.25  # no larger product is tried after one that took longer
CEILING_RUNS = 5


class FlopCounter(FlopCounterMode):
    """PyTorch's counter (matrix products and convolutions, 2 FLOP a multiply-add), and a meter.

    The fused attention of CPUs is missing in PyTorch's table and would count as nothing; it is added here.
    """

    def __init__(self) -> None:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        super().__init__(display=False, custom_mapping={fused: _count_attention})
        self._last = 0

    def read(self) -> float:
        before, self._last = self._last, self.get_total_flops()
        return self._last - before


def _count_attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """The counter gives shapes in place of tensors."""
    return int(sdpa_flop_count(query, key, value))


def count_flop(work: Callable[[], object]) -> int:
    """FLOP of a piece of work, on any device, meta tensors included."""
    with FlopCounter() as counter:
        work()
    return int(counter.get_total_flops())


def read_peak(device: torch.device) -> Callable[[], float] | None:
    """A meter of peak memory in bytes: what torch holds on a GPU, elsewhere the whole process.

    Returns:
        The meter, or None where a peak cannot be reset.
    """
    if device.type == "cuda":

        def read_cuda() -> float:
            peak = torch.cuda.max_memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            return float(peak)

        return read_cuda
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
    except OSError:
        return None

    def read_process() -> float:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        reset.write_text("5")
        return float(line.split()[1]) * 1024

    return read_process


def process_peak() -> float:
    """Most memory the process held, in bytes, since it began or since `read_peak` last reset it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def measure_ceiling(device: torch.device, dtype: torch.dtype, *, processor: bool = False) -> dict[int, float]:
    """FLOP per second of products of square matrices: what no stage can exceed. Arguments as of `read_time`.

    Returns:
        Side -> best rate of a few runs.
    """
    rates: dict[int, float] = {}
    generator = torch.Generator(device).manual_seed(0)
    for side in CEILING_SIZES:
        left = torch.randn(side, side, device=device, generator=generator).to(dtype)
        read, best = read_time(device, processor=processor), float("inf")
        for _ in range(CEILING_RUNS):
            read()
            torch.mm(left, left)
            best = min(best, read())
        rates[side] = 2 * side**3 / best
        if best > CEILING_SECONDS:
            break
    return rates
