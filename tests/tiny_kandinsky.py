"""Kandinsky 2.2's very classes, tiny and seeded, on disk as the hub lays them out.

`build(folder)` writes 7 MB in a moment. Pictures are 128 px, latents 16x16, attention runs at 8x8, 4x4, 2x2.
"""

import json
from pathlib import Path
from typing import Any

import torch

from diffseg_cli.bench.random_kandinsky import SCHEDULER, TINY

IMAGE_PROCESSOR: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"shortest_edge": 224},
}

TINY_IMAGE_PROCESSOR = IMAGE_PROCESSOR | {
    "crop_size": {"height": 28, "width": 28},
    "size": {"shortest_edge": 28},
}


def networks(
    unet: dict[str, Any], movq: dict[str, Any], clip: dict[str, Any]
) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """UNet, MoVQ and CLIP of these configs, randomly initialised on the default device."""
    from diffusers.models.autoencoders.vq_model import VQModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return (
        UNet2DConditionModel.from_config(unet),
        VQModel.from_config(movq),
        CLIPVisionModelWithProjection(CLIPVisionConfig(**clip)),
    )


def build(folder: Path, seed: int = 0) -> Path:
    """Write the tiny networks as `decoder/` and `prior/` below a folder.

    Queries and keys are scaled up, so that attention is far from even and a wrong column shows.

    Returns:
        The folder, for `load_kandinsky` and `--model`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, movq, clip = networks(TINY.unet, TINY.movq, TINY.clip)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight", "add_k_proj.weight")):
                parameter.mul_(3)
    for network, part in ((unet, "decoder/unet"), (movq, "decoder/movq"), (clip, "prior/image_encoder")):
        network.save_pretrained(folder / part)
    for part, name, config in (
        ("decoder/scheduler", "scheduler_config.json", SCHEDULER),
        ("prior/image_processor", "preprocessor_config.json", TINY_IMAGE_PROCESSOR),
    ):
        (folder / part).mkdir(parents=True)
        (folder / part / name).write_text(json.dumps(config))
    return folder
