"""Kandinsky's memory at full size, counted on meta tensors; and the counters themselves."""

import sys
from pathlib import Path

import pytest
import torch

from diffseg_cli.bench.subject import random_segmenter
from diffseg_cli.segmenter import Segmenter
from tools.account_memory import GB, META, account, peak_of
from tools.peak_memory import watch


def test_the_counter_knows_what_is_alive() -> None:
    def work() -> torch.Tensor:
        first = torch.empty(1000, device=META)
        second = first + 1  # 8 kB
        del first
        view = second.view(10, 100).relu_()  # no new memory
        result = view.sum(0)
        assert result.shape == (100,)
        return view * 2  # 8 kB and the 400 bytes of the sum

    assert peak_of(work)[1] == 8400
    assert peak_of(lambda: torch.empty(7, device=META, dtype=torch.float16))[1] == 14


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return random_segmenter("kandinsky-2-2", device=META, dtype=torch.float16)


@pytest.mark.parametrize(
    ("batch_size", "shots", "clip", "most"),
    [
        (1, 1, {}, 7.0),
        (1, 1, {"offload": True}, 4.5),
        (8, 5, {"offload": True}, 4.5),
        (1, 1, {"concept": True}, 3.2),
    ],
)
def test_kandinsky_fits_into_8_gb_at_512_px(
    segmenter: Segmenter, batch_size: int, shots: int, clip: dict[str, bool], most: float
) -> None:
    rows = account(segmenter, batch_size=batch_size, shots=shots, **clip)
    peaks = {stage: (parameters + tensors) / GB for stage, parameters, tensors in rows}
    assert max(peaks.values()) < most, peaks
    assert min(peaks.values()) > 2.5  # the UNet alone
    # The probabilities of one layer at batch 8 would be 0.21 GB, and 0.42 more in float32.
    assert {stage: tensors for stage, _, tensors in rows}["look"] < 0.45 * GB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's figures")
def test_own_memory_is_told_from_mapped_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(80_000_000))
    program = (
        "import mmap, sys, time; own = b'x' * 200_000_000; file = open(sys.argv[1], 'rb'); "
        "mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); "
        "sum(mapped[:: mmap.PAGESIZE]); time.sleep(0.5); sys.exit(3)"
    )
    code, peaks = watch([sys.executable, "-c", program, str(tmp_path / "file")])
    assert code == 3 and 200e6 < peaks["own"] < 260e6 and 80e6 < peaks["mapped from files"] < 120e6
