"""Build networks from their files: the one place that knows which weights make which network."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from diffseg_cli.config import CompactConfig, LookConfig, PamConfig, ScmConfig
from diffseg_cli.errors import UsageError, WeightsError
from diffseg_cli.models.backbone import Backbone
from diffseg_cli.models.compact import CompactBackbone
from diffseg_cli.models.hed import HED
from diffseg_cli.models.hed_student import HedStudent
from diffseg_cli.models.kandinsky import KandinskyBackbone
from diffseg_cli.models.knowledge import KNOWLEDGE
from diffseg_cli.models.perceptual_attention import PerceptualAttention
from diffseg_cli.models.spatial_control import SpatialControl
from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.trained import Trained
from diffseg_cli.weights.checkpoint import read_checkpoint, read_checkpoint_info
from diffseg_cli.weights.edge_detectors import load_hed, load_hed_student
from diffseg_cli.weights.files import (
    file_sha256,
    find_weights,
    load_strict,
    read_safetensors,
    write_safetensors,
)
from diffseg_cli.weights.kandinsky import load_kandinsky

EdgeDetector = HED | HedStudent
COMPACT_ENCODER, COMPACT_DECODER = "compact/encoder.safetensors", "compact/decoder.safetensors"


def build_compact(config: CompactConfig | None = None) -> CompactBackbone:
    """A compact backbone with random weights, in eval mode and without gradients."""
    backbone = CompactBackbone(**vars(config or CompactConfig()))
    # Two thirds of the time on a CPU; torch's types lack this form of Module.to.
    backbone.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone.eval().requires_grad_(False)


def load_encoder(backbone: CompactBackbone, path: Path) -> None:
    """Load the ImageNet encoder alone, before anything is fitted to it."""
    tensors, _ = read_safetensors(path)
    load_strict(backbone.encoder, {name: value.float() for name, value in tensors.items()}, path)


def load_compact(
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    encoder: Path | None = None,
    decoder: Path | None = None,
    image_size: int | None = None,
) -> CompactBackbone:
    """The shipped compact backbone.

    Args:
        device: where to put it.
        dtype: to compute in.
        encoder: ImageNet weights; default the shipped file.
        decoder: what was fitted to them (statistics, basis, temperatures, decoder); default the shipped file.
        image_size: S, a multiple of 64; default as configured.

    Raises:
        UsageError: a size the backbone cannot see at.
        WeightsError: a file is missing, damaged or of another network.
    """
    if image_size is not None and (image_size < 64 or image_size % 64):
        raise UsageError(f"The image size {image_size} is no multiple of 64.", "Give 256, 320 or 384.")
    encoder = encoder or find_weights(COMPACT_ENCODER)
    decoder = decoder or find_weights(COMPACT_DECODER)
    backbone = build_compact(replace(CompactConfig(), image_size=image_size or CompactConfig.image_size))
    tensors = {f"encoder.{name}": value for name, value in read_safetensors(encoder)[0].items()}
    load_strict(backbone, {**tensors, **read_safetensors(decoder)[0]}, decoder)
    backbone.fingerprint = hashlib.sha256(
        f"{file_sha256(encoder)}{file_sha256(decoder)}".encode()
    ).hexdigest()[:16]
    if backbone.image_size != CompactConfig.image_size:
        backbone.fingerprint += f"-{backbone.image_size}px"  # modules and supports do not fit another size
    return backbone.to(device=device, dtype=dtype)


def save_fitted(backbone: CompactBackbone, path: Path, training: str) -> None:
    """Write what is fitted on top of the encoder, as half precision where that is enough.

    Args:
        backbone: it was fitted in.
        path: of the file.
        training: JSON text for the metadata.
    """
    state = {name: value for name, value in backbone.state_dict().items() if not name.startswith("encoder.")}
    halves = {name: value.half() if value.dim() > 1 else value for name, value in state.items()}
    write_safetensors(path, halves, {"format": "diffseg-compact-decoder", "training": training})


@dataclass(frozen=True)
class BackboneRequest:
    """What a backbone is asked for.

    Attributes:
        source: its name, or the folder it lies in.
        device: where to put it.
        dtype: to compute in.
        offload: keep only the part in use on the device, where it has parts.
        image_size: S, where it is resizable; None for its own.
    """

    source: str
    device: torch.device
    dtype: torch.dtype
    offload: bool
    image_size: int | None


@dataclass(frozen=True)
class BackboneKind:
    """What is known of a backbone before it is loaded.

    Attributes:
        network: its class, whose class attributes hold without weights.
        load: from its files.
        modules: file of the SCM and PAM shipped for it, in `weights/`; None where there are none.
    """

    network: type[Backbone]
    load: Callable[[BackboneRequest], Backbone]
    modules: str | None


# Of each edge detector: with random weights, and with its own.
EDGE_DETECTORS: dict[str, tuple[Callable[[], EdgeDetector], Callable[[], EdgeDetector]]] = {
    "hed": (HED, load_hed),
    "student": (HedStudent, load_hed_student),
}
BACKBONES = {
    CompactBackbone.name: BackboneKind(
        network=CompactBackbone,
        load=lambda asked: load_compact(device=asked.device, dtype=asked.dtype, image_size=asked.image_size),
        modules="compact/modules.safetensors",
    ),
    KandinskyBackbone.name: BackboneKind(
        network=KandinskyBackbone,
        load=lambda asked: load_kandinsky(
            asked.source, device=asked.device, dtype=asked.dtype, offload=asked.offload
        ),
        modules=None,
    ),
}


def backbone_kind(model: str) -> BackboneKind:
    """The kind a name means; a folder means Kandinsky 2.2.

    Raises:
        UsageError: it is neither.
    """
    if model not in BACKBONES and not Path(model).is_dir():
        raise UsageError(
            f"Unknown model '{model}'.", f"Use {', '.join(BACKBONES)}, or a folder that holds Kandinsky 2.2."
        )
    return BACKBONES.get(model, BACKBONES[KandinskyBackbone.name])


def load_backbone(
    model: str, device: torch.device, dtype: torch.dtype, offload: bool, image_size: int | None = None
) -> Backbone:
    """A backbone by name, or Kandinsky 2.2 from a folder; arguments as of `BackboneRequest`.

    Raises:
        UsageError: neither a known name nor a folder, or a size it cannot see at.
        WeightsError: its weights are missing or damaged.
    """
    return backbone_kind(model).load(BackboneRequest(model, device, dtype, offload, image_size))


def build_modules(backbone: Backbone, scm: ScmConfig | None, pam: PamConfig | None) -> nn.ModuleDict:
    """The trained modules with random weights, ready for this backbone; None leaves one out."""
    modules = nn.ModuleDict()
    if scm is not None:
        modules["scm"] = SpatialControl(scale_widths=backbone.scale_widths, **vars(scm))
    if pam is not None:
        modules["pam"] = PerceptualAttention(
            latent_channels=backbone.latent_channels, groups=backbone.latent_groups, **vars(pam)
        )
    return modules


def edge_size(backbone: Backbone) -> int:
    """Size E the edge detector runs at: SCM brings edges to four places per latent, S/2, and at S HED would
    cost four times as much."""
    return backbone.image_size // 2


def build_edge_detector(backbone: Backbone) -> EdgeDetector:
    """The edge detector of this backbone with random weights."""
    return EDGE_DETECTORS[backbone.edge_detector][0]()


def load_edge_detector(backbone: Backbone) -> EdgeDetector:
    """What finds the edges SCM reads, for this backbone, in training and in use.

    Raises:
        WeightsError: its weights are missing or damaged.
    """
    return EDGE_DETECTORS[backbone.edge_detector][1]().to(device=backbone.device, dtype=backbone.dtype)


def trained_size(checkpoint: Path) -> int | None:
    """The image size a checkpoint was trained at; None for the backbone's own.

    Raises:
        WeightsError: as `read_checkpoint_info`.
    """
    size = read_checkpoint_info(checkpoint).config.get("image_size")
    return size if isinstance(size, int) else None


def trained_look(checkpoint: Path) -> LookConfig:
    """The look a checkpoint was trained with.

    Raises:
        WeightsError: as `read_checkpoint_info`, or it is none that this version knows.
    """
    look = read_checkpoint_info(checkpoint).config.get("look", {})
    try:
        return LookConfig(**{**look, **({"timesteps": tuple(look["timesteps"])} if look else {})})
    except (TypeError, KeyError) as error:
        raise WeightsError(
            f"{checkpoint} was trained with a look this diffseg does not know.", "Update diffseg."
        ) from error


def load_modules(checkpoint: Path, backbone: Backbone, dtype: torch.dtype = torch.float32) -> Trained:
    """What a checkpoint holds for a backbone, checked, on its device, in eval mode and without gradients.

    Raises:
        WeightsError: damaged, of another backbone, or of another version.
    """
    tensors, info = read_checkpoint(checkpoint, backbone=backbone.name, fingerprint=backbone.fingerprint)
    config = info.config
    try:
        scm, pam, knowledge = config.get("scm"), config.get("pam"), config.get("knowledge", Trained.knowledge)
        if knowledge not in KNOWLEDGE:
            raise ValueError(f"unknown knowledge '{knowledge}'")
        modules = build_modules(
            backbone, ScmConfig(**scm) if scm else None, PamConfig(**pam) if pam else None
        )
    except (TypeError, ValueError) as error:
        raise WeightsError(
            f"{checkpoint} describes modules this diffseg cannot build: {error}.",
            "Update diffseg, or train it again.",
        ) from error
    load_strict(modules, tensors, checkpoint)
    return Trained(
        modules=modules.eval().requires_grad_(False).to(device=backbone.device, dtype=dtype),
        knowledge=knowledge,
        presence=PresenceCalibration.from_config(config.get("presence")),
        mask_gamma=config.get("mask_gamma", Trained.mask_gamma),
        image_size=config.get("image_size"),
        source=str(checkpoint),
    )
