"""Kandinsky's memory at full size, counted on meta tensors; and the counter itself."""

import pytest
import torch

from diffseg_cli.bench.subject import random_segmenter
from diffseg_cli.segmenter import Segmenter
from tools.account_memory import GB, META, account, peak_of


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
