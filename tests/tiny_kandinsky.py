"""Kandinsky 2.2's very classes, tiny and seeded, on disk as the hub lays them out.

`build(folder)` writes 7 MB in a moment. Pictures are 128 px, latents 16x16, attention runs at 8x8, 4x4, 2x2.
"""

from pathlib import Path

import torch

from diffseg_cli.bench.random_kandinsky import TINY, build_networks
from tools.random_kandinsky import write_folder


def build(folder: Path, seed: int = 0) -> Path:
    """Write the tiny networks as `decoder/` and `prior/` below a folder.

    Queries and keys are scaled up, so that attention is far from even and a wrong column shows.

    Returns:
        The folder, for `load_kandinsky` and `--model`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = build_networks(TINY)
    with torch.no_grad():
        for name, parameter in networks["unet"].named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight", "add_k_proj.weight")):
                parameter.mul_(3)
    return write_folder(folder, networks.items(), clip_size=TINY.clip["image_size"])
