"""A segmenter put together from its files: backbone, trained modules and edge detector."""

from collections.abc import Sequence
from pathlib import Path

from diffseg_cli import loading
from diffseg_cli.choices import ModelChoice
from diffseg_cli.compute import limit_threads, resolve_device, resolve_dtype
from diffseg_cli.config import LookConfig, SegmentConfig
from diffseg_cli.errors import UsageError, WeightsError
from diffseg_cli.method import CROSS_MAPS, SUPPORT_CROPS
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.trained import untrained
from diffseg_cli.weights.files import find_weights

HEADS = ("pam", "attention")
FUSIONS = ("concat", "mean")
NOISE_LEVELS = 1000  # of Kandinsky's schedule


def load_segmenter(
    model: str = "compact",
    checkpoint: str | Path | None = None,
    device: str = "auto",
    dtype: str | None = None,
    *,
    head: str | None = None,
    fusion: str | None = None,
    offload: bool = False,
    timesteps: Sequence[int] | None = None,
    cross_map: str | None = None,
    support_crop: str | None = None,
) -> Segmenter:
    """Load a backbone with its trained modules.

    Args:
        model: "compact", "kandinsky-2-2", or a folder with Kandinsky 2.2 in hub layout.
        checkpoint: SCM and PAM; default the ones shipped for the backbone, if any.
        device: "auto", "cpu", "cuda", "cuda:1" or "mps".
        dtype: "float32", "bfloat16" or "float16"; default what suits the device.
        head: "pam" or "attention"; default "pam" where there is a checkpoint, else "attention".
        fusion: of several supports, "concat" or "mean"; default "concat".
        offload: keep only the part of Kandinsky in use on the device.
        timesteps: noise levels a diffusion backbone looks at, each in [0, 999]; their maps are averaged. This
            and the next two default to what the modules were trained with, or to `LookConfig`.
        cross_map: "paper", "balanced" or "contrast", see `Method.find_maps`.
        support_crop: "object", "whole" or "both", how supports are seen.

    Raises:
        UsageError: an unknown model, device or other word, or a timestep out of range.
        WeightsError: weights or checkpoint missing, damaged, or made for each other's rivals.
    """
    check_words(("head", head, HEADS), ("fusion", fusion, FUSIONS))
    choose_look(timesteps, cross_map, support_crop)  # before anything is read
    if checkpoint is None and head != "attention":
        shipped = loading.backbone_kind(model).modules
        checkpoint = find_weights(shipped) if shipped else None
    used = Path(checkpoint) if checkpoint is not None and head != "attention" else None
    place = resolve_device(device)
    limit_threads()
    number_format = resolve_dtype(dtype, place, loading.backbone_kind(model).network.cuda_dtype)
    image_size = loading.trained_size(used) if used else None
    look = choose_look(timesteps, cross_map, support_crop, loading.trained_look(used) if used else None)
    backbone = loading.load_backbone(model, place, number_format, offload, image_size)
    trained = loading.load_modules(used, backbone, number_format) if used else untrained()
    if head == "pam" and "pam" not in trained.modules:
        raise WeightsError(
            f"Head 'pam' needs a trained PAM, and there is none for {backbone.name}.",
            "Give a checkpoint that has one, train one with `diffseg train`, or use --head attention.",
        )
    return Segmenter(
        backbone=backbone,
        trained=trained,
        hed=loading.load_edge_detector(backbone) if "scm" in trained.modules else None,
        head=head or ("pam" if "pam" in trained.modules else "attention"),
        settings=SegmentConfig(**vars(look), fusion=fusion or SegmentConfig.fusion),
    )


def choose_look(
    timesteps: Sequence[int] | None = None,
    cross_map: str | None = None,
    support_crop: str | None = None,
    trained: LookConfig | None = None,
) -> LookConfig:
    """How to look: as asked for, else as the modules were trained, else as configured.

    Raises:
        UsageError: an unknown word, or a timestep out of range.
    """
    check_words(("cross map", cross_map, CROSS_MAPS), ("support crop", support_crop, SUPPORT_CROPS))
    if timesteps is not None and not (timesteps and all(0 <= step < NOISE_LEVELS for step in timesteps)):
        raise UsageError(
            f"Timesteps must lie between 0 and {NOISE_LEVELS - 1}.", "Give for example 50 or 20,50,100."
        )
    usual = trained or LookConfig()
    return LookConfig(
        usual.timesteps if timesteps is None else tuple(timesteps),
        cross_map or usual.cross_map,
        support_crop or usual.support_crop,
    )


def check_words(*asked: tuple[str, str | None, Sequence[str]]) -> None:
    """Of each option: what it is called, its value or None, and the values there are.

    Raises:
        UsageError: another value.
    """
    for what, value, known in asked:
        if value is not None and value not in known:
            raise UsageError(f"Unknown {what} '{value}'.", f"Use {', '.join(known)}.")


def load_chosen(choice: ModelChoice) -> Segmenter:
    """`load_segmenter` with the options of a verb."""
    return load_segmenter(**vars(choice))
