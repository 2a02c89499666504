"""Write Kandinsky 2.2 with random weights, as the hub lays its files out, to try verbs without the real ones.

    python -m tools.random_kandinsky /tmp/kandinsky --dtype float16

Takes 6.4 GB of disk in float16, 12.7 GB in float32, and somewhat more than half of that in memory. The folder
works wherever `--model` takes one; its answers mean nothing.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from diffseg_cli.bench.random_kandinsky import (
    FULL_SIZE,
    PIXEL_MEAN,
    PIXEL_STD,
    SCHEDULER,
    build_networks,
    materialise,
)
from diffseg_cli.compute import DTYPES, resolve_device
from diffseg_cli.weights.hub import COMPONENTS


def write_folder(folder: Path, networks: Iterable[tuple[str, Any]], *, clip_size: int) -> Path:
    """Write networks and the settings that belong to them, in `decoder/` and `prior/`.

    Args:
        folder: of the result.
        networks: "unet", "movq" and "image_encoder", each with its network; written before the next is taken.
        clip_size: side of the images that the image encoder sees, in pixels.

    Returns:
        The folder, for `load_kandinsky` and `--model`.
    """
    for name, network in networks:
        network.save_pretrained(_part(folder, name))
    processor = {
        "crop_size": {"height": clip_size, "width": clip_size},
        "image_mean": PIXEL_MEAN,
        "image_std": PIXEL_STD,
        "size": {"shortest_edge": clip_size},
    }
    for name, file, config in (
        ("scheduler", "scheduler_config.json", SCHEDULER),
        ("image_processor", "preprocessor_config.json", processor),
    ):
        part = _part(folder, name)
        part.mkdir(parents=True)
        (part / file).write_text(json.dumps(config))
    return folder


def _part(folder: Path, name: str) -> Path:
    return next(folder / part.repository / name for part in COMPONENTS if part.name == name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the result, new or empty")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float16")
    parser.add_argument("--device", default="auto", help="where the weights are drawn")
    options = parser.parse_args()
    device = resolve_device(options.device)
    with torch.device("meta"):
        empty = build_networks(FULL_SIZE)

    def draw() -> Iterable[tuple[str, Any]]:
        while empty:  # one at a time: no network is held after it was written
            name = next(iter(empty))
            network = empty.pop(name)
            materialise(network, device, DTYPES[options.dtype], seed=0)
            yield name, network
            network.to("meta")

    write_folder(options.folder, draw(), clip_size=FULL_SIZE.clip["image_size"])


if __name__ == "__main__":
    main()
