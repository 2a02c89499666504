"""Kandinsky 2.2 from its files: safetensors and JSON only, read strictly and without a network.

The loaders of diffusers and transformers fill what a file lacks with random numbers and warn. Here the names
and shapes of all tensors are compared before the first one is read, and tensors go one by one to the device
in the format they are computed in, so that main memory holds no second copy.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffseg_cli.compute import is_out_of_memory
from diffseg_cli.errors import WeightsError
from diffseg_cli.models.kandinsky import SUPPORT_CROP, KandinskyBackbone, KandinskyNetworks
from diffseg_cli.weights.files import REFETCH, load_strict, read_header
from diffseg_cli.weights.hub import KANDINSKY, PULL, ComponentFiles, locate_kandinsky
from diffseg_cli.weights.kandinsky_files import read_config

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

# What makes a diffusers UNet the one of Kandinsky 2.2. Its siblings (2.1, ControlNet) take other conditions.
UNET_KIND = {
    "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image",
    "class_embed_type": None,
    "time_embedding_act_fn": None,
    "center_input_sample": False,
    "only_cross_attention": False,
    "cross_attention_norm": None,
}
FINGERPRINT_VALUES = 8  # of each tensor
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_kandinsky(
    source: str | Path = KANDINSKY,
    *,
    device: torch.device,
    dtype: torch.dtype,
    offload: bool = False,
    support_crop: float | None = SUPPORT_CROP,
) -> KandinskyBackbone:
    """Kandinsky 2.2 from a folder or the Hugging Face cache; never from the network.

    Args:
        source: "kandinsky-2-2" or a folder, see `locate_kandinsky`.
        device: where to compute.
        dtype: what to compute in; weights are converted as they are read.
        offload: see `KandinskyBackbone`.
        support_crop: see `KandinskyBackbone`.

    Raises:
        WeightsError: a part is missing, damaged, or of another network.
    """
    files = locate_kandinsky(source)
    large_device = torch.device("cpu") if offload else device
    networks = read_networks(files, device=device, large_device=large_device, dtype=dtype)
    return KandinskyBackbone(networks, device=device, support_crop=support_crop, offload=offload)


def read_networks(
    files: dict[str, ComponentFiles], *, device: torch.device, large_device: torch.device, dtype: torch.dtype
) -> KandinskyNetworks:
    """Build the networks and fill them.

    Args:
        files: from `locate_kandinsky`.
        device: of MoVQ.
        large_device: of UNet and CLIP.
        dtype: of all.

    Returns:
        UNet and MoVQ filled, CLIP checked and ready to be filled.

    Raises:
        WeightsError: a file is damaged, is of another network, or the device has too little memory.
    """
    networks = _build_networks(files)
    digest = hashlib.sha256()
    for name in ("unet", "movq", "image_encoder"):
        tensors = _check_tensors(getattr(networks, name), files[name].weights)
        digest.update(_sample(tensors, files[name].weights))
    _fill(networks.unet, files["unet"].weights, device=large_device, dtype=dtype)
    _fill(networks.movq, files["movq"].weights, device=device, dtype=dtype)

    def fill_image_encoder(network: nn.Module) -> None:
        _fill(network, files["image_encoder"].weights, device=large_device, dtype=dtype)

    return replace(networks, fingerprint=digest.hexdigest()[:16], fill_image_encoder=fill_image_encoder)


def check_networks(files: dict[str, ComponentFiles]) -> None:
    """Compare configs, and names and shapes of all tensors, with what the networks need; no tensor is read.

    Raises:
        WeightsError: a file is damaged, or of another network.
    """
    networks = _build_networks(files)
    for name in ("unet", "movq", "image_encoder"):
        _check_tensors(getattr(networks, name), files[name].weights)


def _build_networks(files: dict[str, ComponentFiles]) -> KandinskyNetworks:
    """The networks on meta tensors, without a fingerprint."""
    configs: dict[str, dict[str, Any]] = {name: read_config(each.config) for name, each in files.items()}
    unet_path = files["unet"].config
    for key, wanted in UNET_KIND.items():  # before gigabytes are read
        if (configs["unet"].get(key) or None) != (wanted or None):
            raise WeightsError(
                f"{unet_path} is not the UNet of Kandinsky 2.2: {key} is {configs['unet'].get(key)}, "
                f"not {wanted}.",
                "Take kandinsky-community/kandinsky-2-2-decoder.",
            )
    # diffusers and transformers take seconds to import
    from diffusers.models.autoencoders.vq_model import VQModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    unet = _build(UNet2DConditionModel.from_config, configs["unet"], unet_path)
    movq = _build(VQModel.from_config, configs["movq"], files["movq"].config)
    image_encoder = _build(_image_encoder, configs["image_encoder"], files["image_encoder"].config)
    widths = image_encoder.config.projection_dim, unet.config.encoder_hid_dim
    if widths[0] != widths[1]:
        raise WeightsError(
            f"{files['image_encoder'].config} and {unet_path} do not belong together: embeddings are "
            f"{widths[0]} wide in one and {widths[1]} in the other.",
            "Take the prior and the decoder of Kandinsky 2.2.",
        )
    # Numbers, not weights: meta tensors would be of no use.
    scheduler = _build(
        DDPMScheduler.from_config, configs["scheduler"], files["scheduler"].config, torch.device("cpu")
    )
    return KandinskyNetworks(
        unet=unet,
        movq=movq,
        image_encoder=image_encoder,
        scheduler=scheduler,
        pixel_mean=_channel_numbers(configs, "image_mean", files),
        pixel_std=_channel_numbers(configs, "image_std", files),
        fingerprint="",
    )


def _image_encoder(config: dict[str, Any]) -> "CLIPVisionModelWithProjection":
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config))


def _build(build: Any, config: dict[str, Any], path: Path, device: torch.device | None = None) -> Any:
    """A network from its config, on meta tensors: nothing is allocated, nothing drawn at random."""
    from huggingface_hub import errors

    # transformers 5 checks its configs with a class of its own.
    invalid = getattr(errors, "StrictDataclassError", ValueError)
    try:
        with device or torch.device("meta"):
            return build(config)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ArithmeticError, invalid) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path} describes no network of Kandinsky 2.2: {reason}.", f"Copy it again, or run `{PULL}`."
        ) from error


def _channel_numbers(
    configs: dict[str, dict[str, Any]], key: str, files: dict[str, ComponentFiles]
) -> tuple[float, ...]:
    numbers = configs["image_processor"].get(key)
    if not isinstance(numbers, list) or [type(number) in (int, float) for number in numbers] != [True] * 3:
        raise WeightsError(
            f"{files['image_processor'].config} has no {key} of three numbers.",
            "Take kandinsky-community/kandinsky-2-2-prior.",
        )
    return tuple(numbers)


def _check_tensors(network: nn.Module, paths: tuple[Path, ...]) -> dict[str, str]:
    """Compare names and shapes of a network's tensors with its files' headers.

    Returns:
        Names in the files -> names in the network.

    Raises:
        WeightsError: a file is damaged, or some tensors are missing, too many, or of another shape.
    """
    shapes = {name: shape for path in paths for name, shape in read_header(path)[0].items()}
    # Older files carry the positions 0, 1, 2... of CLIP's patches as if they were weights.
    names = {name: _present_name(name) for name in shapes if not name.endswith("position_ids")}
    tensors = {new: torch.empty(shapes[old], device="meta") for old, new in names.items()}
    load_strict(network, tensors, paths[0])
    return names


def _present_name(name: str) -> str:
    """A tensor's name as diffusers has it now: attention of MoVQ was once named by its matrices alone."""
    *path, matrix, kind = name.split(".")
    if matrix in OLD_ATTENTION and path and path[-2:-1] == ["attentions"]:
        return ".".join([*path, OLD_ATTENTION[matrix], kind])
    return name


def _sample(names: dict[str, str], paths: tuple[Path, ...]) -> bytes:
    """What the fingerprint is made of: a page of each tensor is read, no more."""
    samples = {
        name: f"{name}{tuple(tensor.shape)}".encode()
        + tensor.flatten()[:FINGERPRINT_VALUES].to(torch.float16).numpy().tobytes()
        for name, tensor in _read_tensors(names, paths)
    }
    return b"".join(samples[name] for name in sorted(samples))


def _read_tensors(names: dict[str, str], paths: tuple[Path, ...]) -> Iterator[tuple[str, Tensor]]:
    """Tensors one by one, by their names in the network; their bytes are read when they are used.

    Raises:
        WeightsError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for stored in names.keys() & file.keys():
                    yield names[stored], file.get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged: {error}.", REFETCH) from error


def _fill(network: nn.Module, paths: tuple[Path, ...], *, device: torch.device, dtype: torch.dtype) -> None:
    """Give a network on meta tensors the weights of its files.

    Raises:
        WeightsError: a file is damaged, or the device has too little memory.
    """
    names = _check_tensors(network, paths)
    try:
        state = {name: tensor.to(dtype).to(device) for name, tensor in _read_tensors(names, paths)}
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        less = "Use --dtype float16, --offload, or --device cpu."
        if device.type == "cpu":
            less = "End other programs, or encode supports once with `diffseg concept make`, for -c."
        raise WeightsError(f"Kandinsky 2.2 does not fit into the memory of {device}.", less) from error
    network.load_state_dict(state, assign=True)
    for module in network.modules():
        positions = getattr(module, "position_ids", None)
        if positions is not None:  # no weight, so it is still a meta tensor
            module.position_ids = torch.arange(positions.shape[-1], device=device)[None]
