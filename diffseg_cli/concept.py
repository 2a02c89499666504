"""Concepts: encoded supports in one safetensors file, to find the same thing again without their pictures.

Tensors: `latents` (k c H W), `masks` (k 1 H W), `image_embeds` (k t d) as in `SupportFeatures`, and of every
support `thumbnail.I` and `thumbnail_mask.I`, the bytes of a small JPEG and a 1-bit PNG. Everything else is in
the metadata: `format`, `format_version`, `version`, `name`, `backbone`, `fingerprint`, `digest` (of the
encoded supports), and as JSON `settings` and `sources`.
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.errors import UsageError, WeightsError
from diffseg_cli.version import __version__
from diffseg_cli.weights import file_sha256, read_header, read_safetensors, write_safetensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diffseg_cli.models.support import SupportFeatures
    from diffseg_cli.segmenter import Segmenter

FORMAT = "diffseg-concept"
FORMAT_VERSION = 1
THUMBNAIL = 384  # longest side: what the compact model sees of a picture anyway
MOST_SUPPORTS = 256
MOST_THUMBNAIL_BYTES = 4_000_000
DIMENSIONS = {"latents": 4, "masks": 4, "image_embeds": 3}  # of the encoded supports

# Names become parts of file names and of text formats.
NAME = re.compile(r"[^\W_][\w .+-]{0,63}(?<![ .])")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows
AGAIN = "Make it again with `diffseg concept make`."

Pair = tuple[NDArray[np.uint8], NDArray[np.bool_]]


@dataclass(frozen=True)
class Source:
    """Where a support came from: names without folders, and hashes of the files."""

    image: str
    image_sha256: str
    mask: str
    mask_sha256: str


@dataclass(frozen=True)
class ConceptInfo:
    """What a concept says about itself.

    Attributes:
        name: of the thing.
        backbone: that encoded it.
        fingerprint: of that backbone's weights.
        settings: of the encoding.
        sources: one a support.
        version: of diffseg that wrote it.
    """

    name: str
    backbone: str
    fingerprint: str
    settings: dict[str, Any]
    sources: tuple[Source, ...]
    version: str


def check_name(name: str) -> str:
    """A name for a thing: letters, digits, spaces and . + - _, starting with a letter or digit.

    Raises:
        UsageError: it is none.
    """
    if not (NAME.fullmatch(name) and not RESERVED.fullmatch(name)):
        raise UsageError(
            f"{name!r} cannot be the name of a thing.",
            "Use up to 64 letters, digits, spaces and . + - _, and begin with a letter or digit.",
        )
    return name


def source_of(image: Path, mask: Path) -> Source:
    """Hash the files of a support."""
    return Source(image.name, file_sha256(image), mask.name, file_sha256(mask))


def write_concept(
    path: Path, segmenter: "Segmenter", name: str, pairs: Sequence[Pair], sources: Sequence[Source]
) -> ConceptInfo:
    """Encode supports and write them as a concept; the file is whole or not there.

    Args:
        path: of the file.
        segmenter: whose backbone encodes them.
        name: of the thing.
        pairs: uint8 (h w 3) and bool (h w) of each support, any sizes.
        sources: where each came from.

    Raises:
        UsageError: the name is none, or there are too many supports.
        InputError: the folder cannot be written.
    """
    import torch

    from diffseg_cli.models.support import TENSORS

    check_name(name)
    if len(pairs) > MOST_SUPPORTS:
        raise UsageError(
            f"A concept holds {MOST_SUPPORTS} supports at most.", "Choose the most different ones."
        )
    support = segmenter.encode_support(pairs)
    tensors = {what: getattr(support, what)[0] for what in TENSORS}
    for index, (image, mask) in enumerate(pairs):
        for what, content in zip(("thumbnail", "thumbnail_mask"), _thumbnails(image, mask), strict=True):
            tensors[f"{what}.{index}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    settings = {
        "image_size": segmenter.backbone.image_size,
        "dtype": str(segmenter.dtype).removeprefix("torch."),
    }
    info = ConceptInfo(name, support.backbone, support.fingerprint, settings, tuple(sources), __version__)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        **{field: getattr(info, field) for field in ("version", "name", "backbone", "fingerprint")},
        "digest": support.digest,
        "settings": json.dumps(settings),
        "sources": json.dumps([asdict(source) for source in sources]),
    }
    write_safetensors(path, tensors, metadata)
    return info


def read_concept_info(path: Path) -> ConceptInfo:
    """What a concept says about itself, from its header alone and without torch.

    Raises:
        WeightsError: the file is unreadable, damaged, no concept, or of another format version.
    """
    shapes, metadata = read_header(path)
    if metadata.get("format") != FORMAT:
        raise WeightsError(
            f"{path} is not a concept: it holds tensors, but no encoded supports.",
            "Give a file that `diffseg concept make` wrote.",
        )
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise WeightsError(
            f"{path} has concept format {version[:20] or 'unknown'}; this diffseg reads {FORMAT_VERSION}.",
            "Update diffseg, or make the concept again with this version.",
        )
    try:
        settings = json.loads(metadata["settings"])
        sources = tuple(Source(**_texts(row)) for row in json.loads(metadata["sources"]))
        name = check_name(metadata["name"])
        info = ConceptInfo(
            name, metadata["backbone"], metadata["fingerprint"], settings, sources, metadata["version"]
        )
        _check_shapes(shapes, len(sources))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise WeightsError(f"{path} is damaged: its record of the supports cannot be read.", AGAIN) from error
    return info


def read_concept(path: Path, segmenter: "Segmenter") -> "tuple[SupportFeatures, ConceptInfo]":
    """A concept's supports, ready for this segmenter.

    Raises:
        WeightsError: as `read_concept_info`, or another model encoded it.
    """
    from diffseg_cli.models.support import TENSORS, SupportFeatures

    info, backbone = read_concept_info(path), segmenter.backbone
    if info.backbone != backbone.name:
        raise WeightsError(
            f"{path} was made with {info.backbone}, and the model in use is {backbone.name}.",
            f"Use it with --model {info.backbone}, or make it again with this model.",
        )
    if info.fingerprint != backbone.fingerprint:
        raise WeightsError(
            f"{path} is stale: it was made with other weights of {info.backbone} ({info.fingerprint}) than "
            f"those in use ({backbone.fingerprint}).",
            AGAIN,
        )
    tensors, metadata = read_safetensors(path)
    grid = backbone.image_size // 8
    support = SupportFeatures.of(backbone, *(tensors[what][None] for what in TENSORS))
    expected = (1, len(info.sources), backbone.latent_channels, grid, grid)
    whole = metadata.get("digest") == support.digest and support.latents.shape == expected
    if not whole or not all(_is_plain(tensors[what]) for what in TENSORS):
        raise WeightsError(f"{path} is damaged: its encoded supports are not those of a model.", AGAIN)
    return support.to(backbone.device, backbone.dtype), info


def read_thumbnails(path: Path) -> list[Pair]:
    """The small pictures in a concept: uint8 (h w 3) and bool (h w) of each support.

    Raises:
        WeightsError: as `read_concept_info`, or a picture is damaged.
    """
    info = read_concept_info(path)
    tensors, _ = read_safetensors(path)
    pairs = []
    for index in range(len(info.sources)):
        try:
            image = _decode(tensors[f"thumbnail.{index}"], "JPEG").convert("RGB")
            mask = _decode(tensors[f"thumbnail_mask.{index}"], "PNG").convert("1")
            if image.size != mask.size:
                raise ValueError("sizes differ")
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            raise WeightsError(
                f"{path} is damaged: its picture {index + 1} cannot be read.", AGAIN
            ) from error
        pairs.append((np.array(image), np.array(mask)))
    return pairs


def _thumbnails(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[bytes, bytes]:
    """JPEG of a picture and PNG of its mask, both small."""
    scale = min(1.0, THUMBNAIL / max(mask.shape))
    size_wh = max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale))
    picture, outline = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).resize(size_wh, Image.Resampling.BOX).save(picture, "JPEG", quality=90)
    covered = Image.fromarray(mask.astype(np.uint8) * 255).resize(size_wh, Image.Resampling.BOX)
    covered.point([0] * 128 + [255] * 128, "1").save(outline, "PNG")
    return picture.getvalue(), outline.getvalue()


def _decode(content: "Tensor", kind: str) -> Image.Image:
    image = Image.open(io.BytesIO(content.numpy().tobytes()), formats=[kind])
    if max(image.size) > THUMBNAIL:
        raise ValueError("larger than any thumbnail")
    image.load()
    return image


def _texts(row: Any) -> dict[str, str]:
    if not (isinstance(row, dict) and all(isinstance(value, str) for value in row.values())):
        raise ValueError("a source is not a record of texts")
    return row


def _check_shapes(shapes: dict[str, tuple[int, ...]], shots: int) -> None:
    """Raise ValueError or KeyError unless the tensors can be those of so many supports."""
    if not 0 < shots <= MOST_SUPPORTS:
        raise ValueError("no supports")
    for what, dimensions in DIMENSIONS.items():
        if len(shapes[what]) != dimensions or shapes[what][0] != shots:
            raise ValueError(f"{what} has another shape")
    if shapes["masks"] != (shots, 1, *shapes["latents"][2:]):
        raise ValueError("masks and latents differ in size")
    for index in range(shots):
        for what in ("thumbnail", "thumbnail_mask"):
            if len(shapes[f"{what}.{index}"]) != 1 or shapes[f"{what}.{index}"][0] > MOST_THUMBNAIL_BYTES:
                raise ValueError("a thumbnail has another shape")


def _is_plain(tensor: "torch.Tensor") -> bool:
    """Finite numbers of a format that is computed in."""
    return tensor.is_floating_point() and tensor.element_size() > 1 and bool(tensor.isfinite().all())
