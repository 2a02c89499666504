"""Kandinsky 2.2 at full size without its files: the published configurations, and seeded random weights.

For measuring what it costs. The networks are diffusers' and transformers' own classes, built as the loader
builds them, and `KandinskyBackbone` runs them without knowing the difference. Their answers mean nothing.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffseg_cli.models.kandinsky import KandinskyNetworks

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
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class KandinskyConfigs:
    """What decides the size of the networks; the defaults are Kandinsky 2.2's own."""

    unet: dict[str, Any]
    movq: dict[str, Any]
    clip: dict[str, Any]


FULL_SIZE = KandinskyConfigs(UNET, MOVQ, CLIP)
# The same classes, small enough for a test on a CPU: images of 128 px.
TINY = KandinskyConfigs(
    UNET
    | {
        "sample_size": 16,
        "block_out_channels": [16, 32, 48, 64],
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
        "encoder_hid_dim": 40,
        "norm_num_groups": 8,
    },
    MOVQ
    | {
        "block_out_channels": [32, 32, 32, 32],  # its spatial norm has 32 groups, whatever the config says
        "layers_per_block": 1,
        "num_vq_embeddings": 16,
    },
    CLIP
    | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "projection_dim": 40,
    },
)


def build_networks(configs: KandinskyConfigs) -> dict[str, Any]:
    """UNet, MoVQ and CLIP as diffusers and transformers draw them on the default device, by component."""
    from diffusers.models.autoencoders.vq_model import VQModel  # takes seconds to import
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return {
        "unet": UNet2DConditionModel.from_config(configs.unet),
        "movq": VQModel.from_config(configs.movq),
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**configs.clip)),
    }


def random_networks(
    configs: KandinskyConfigs = FULL_SIZE,
    *,
    device: torch.device,
    large_device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> KandinskyNetworks:
    """The networks with seeded weights, made where they are to run: no second copy in main memory.

    Args:
        configs: of the networks.
        device: of MoVQ; "meta" allocates nothing and draws nothing.
        large_device: of UNet and CLIP, default the same.
        dtype: of all.
        seed: of the weights.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    with torch.device("meta"):
        networks = build_networks(configs)
    for name, network in networks.items():
        materialise(network, device if name == "movq" else large_device or device, dtype, seed)
    return KandinskyNetworks(
        **networks,
        scheduler=DDPMScheduler.from_config(SCHEDULER),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
        fingerprint=f"random-{seed}",
    )


@torch.no_grad()
def materialise(network: nn.Module, device: torch.device, dtype: torch.dtype, seed: int) -> None:
    """Bring a network from meta tensors to a device, with weights that keep activations near unit size."""
    nn.Module.to(network, dtype)  # diffusers' own warns of modules it does not have
    network.to_empty(device=device)
    if device.type == "meta":
        return
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)  # of norms; biases
    for name, values in network.named_buffers():
        if not name.endswith("position_ids"):
            raise ValueError(f"{name} is not known and holds whatever was in memory")
        values.copy_(torch.arange(values.shape[-1], device=device)[None])
