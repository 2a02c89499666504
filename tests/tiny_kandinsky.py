"""Kandinsky 2.2's very classes, tiny and seeded, on disk as the hub lays them out; and the full-size configs.

`build(folder)` writes 7 MB in a moment. Pictures are 128 px, latents 16x16, attention runs at 8x8, 4x4, 2x2.
"""

import json
from pathlib import Path
from typing import Any

import torch

UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 8,
    "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "block_out_channels": [384, 768, 1152, 1536],
    "layers_per_block": 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 64,
    "encoder_hid_dim": 1280,
    "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image",
    "resnet_time_scale_shift": "scale_shift",
}
MOVQ: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [128, 256, 256, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "vq_embed_dim": 4,
    "num_vq_embeddings": 16384,
    "norm_type": "spatial",
}
CLIP: dict[str, Any] = {
    "hidden_size": 1664,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "prediction_type": "epsilon",
    "variance_type": "learned_range",
}
IMAGE_PROCESSOR: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"shortest_edge": 224},
}

TINY_UNET = UNET | {
    "sample_size": 16,
    "block_out_channels": [16, 32, 48, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "encoder_hid_dim": 40,
    "norm_num_groups": 8,
}
TINY_MOVQ = MOVQ | {
    "block_out_channels": [32, 32, 32, 32],  # its spatial norm has 32 groups, whatever the config says
    "layers_per_block": 1,
    "num_vq_embeddings": 16,
}
TINY_CLIP = CLIP | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "projection_dim": 40,
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
        unet, movq, clip = networks(TINY_UNET, TINY_MOVQ, TINY_CLIP)
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
