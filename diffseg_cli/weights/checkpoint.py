"""Checkpoints of SCM and PAM: one safetensors file that knows which backbone it was trained on.

Everything but the tensors is in the file's metadata: `format`, `format_version`, `backbone`, `fingerprint`,
and as JSON `config`, `training`, `metrics`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg_cli.errors import WeightsError
from diffseg_cli.weights.files import read_header, read_safetensors, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "diffseg-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself.

    Attributes:
        backbone: name of the backbone it was trained on ("compact", "kandinsky-2-2").
        fingerprint: of that backbone's frozen weights.
        config: every number needed to build the modules again.
        training: data, recipe, seed, episodes.
        metrics: what was measured on held-out classes, with the protocol; None where a figure is undefined.
    """

    backbone: str
    fingerprint: str
    config: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


def read_checkpoint_info(path: Path) -> CheckpointInfo:
    """What a checkpoint says about itself, from its header alone and without torch.

    Raises:
        WeightsError: the file is unreadable, no checkpoint of diffseg, or of a newer format.
    """
    metadata = read_header(path)[1]
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is not a diffseg checkpoint: it holds tensors, but not of SCM and PAM.",
            "Give a file that `diffseg train` wrote, or leave --checkpoint out.",
        )
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise WeightsError(
            f"{path} has checkpoint format {version or 'unknown'}, and this diffseg reads {FORMAT_VERSION}.",
            "Update diffseg, or give a checkpoint of this version.",
        )
    try:
        records = {name: _plain(metadata[name]) for name in ("config", "training", "metrics")}
        if not all(isinstance(record, dict) for record in records.values()):
            raise ValueError("a record is not an object")
        return CheckpointInfo(metadata["backbone"], metadata["fingerprint"], **records)
    except (ValueError, KeyError, RecursionError) as error:
        raise WeightsError(
            f"{path} is damaged: its checkpoint metadata cannot be read.", "Copy or download the file again."
        ) from error


def read_checkpoint(
    path: Path, *, backbone: str, fingerprint: str
) -> "tuple[dict[str, Tensor], CheckpointInfo]":
    """Tensors of a checkpoint made for this very backbone, and what it says about itself.

    Args:
        path: the file.
        backbone: name of the backbone in use.
        fingerprint: of the backbone in use.

    Raises:
        WeightsError: as `read_checkpoint_info`, or it was trained on another backbone or other
            weights of it.
    """
    info = read_checkpoint_info(path)
    if info.backbone != backbone:
        raise WeightsError(
            f"{path} was trained on {info.backbone}, and the model in use is {backbone}.",
            f"Use it with --model {info.backbone}, or give a checkpoint trained on {backbone}.",
        )
    if info.fingerprint != fingerprint:
        raise WeightsError(
            f"{path} was trained on other weights of {backbone} ({info.fingerprint}) than those in use "
            f"({fingerprint}).",
            "Use the weights it was trained with (DIFFSEG_WEIGHTS), or train it again with `diffseg train`.",
        )
    return read_safetensors(path)[0], info


def write_checkpoint(path: Path, tensors: "Mapping[str, Tensor]", info: CheckpointInfo) -> None:
    """Write SCM's and PAM's tensors with everything needed to load and to judge them.

    Raises:
        InputError: the folder cannot be written.
    """
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "backbone": info.backbone,
        "fingerprint": info.fingerprint,
        "config": json.dumps(info.config),
        "training": json.dumps(info.training),
        "metrics": json.dumps(info.metrics),
    }
    write_safetensors(path, tensors, metadata)


def _plain(text: str) -> Any:
    """JSON whose NaN and infinities, which JSON does not have, are read as None."""
    return json.loads(text, parse_constant=lambda _: None)
