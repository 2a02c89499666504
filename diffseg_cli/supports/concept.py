"""Concepts: what a run looks for, from images with masks or from a file, so that they are encoded only once.

A file is one safetensors file. Tensors: `latents` (k c H W), `masks` (k 1 H W), `image_embeds` (k t d) as in
`SupportFeatures`, and of every support `thumbnail.I` and `thumbnail_mask.I`, the bytes of a small JPEG and a
1-bit PNG. Everything else is in the metadata: `format`, `format_version`, `version`, `name`, `backbone`,
`fingerprint`, `digest` (of the encoded supports), and as JSON `settings` and `sources`. With modules that
were adapted to the concept (`adapted_modules.py`) the format is version 2, else version 1.

Importing it does not import torch, and neither does reading a file's header.
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.errors import UsageError, WeightsError
from diffseg_cli.results.outputs import support_tile
from diffseg_cli.results.render import jpeg_bytes, shrunk_wh
from diffseg_cli.supports.adapted_modules import SavedModules, pack, parse, unpack
from diffseg_cli.version import __version__
from diffseg_cli.views import Pair
from diffseg_cli.weights.files import file_sha256, read_header, read_safetensors, write_safetensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diffseg_cli.adaptation import Adapted
    from diffseg_cli.models.support import SupportFeatures
    from diffseg_cli.segmenter import Segmenter

FORMAT = "diffseg-concept"
PLAIN, WITH_MODULES = "1", "2"  # versions of the format
THUMBNAIL = 384  # longest side: what the compact model sees of an image anyway
PREVIEW = 160  # longest side
MOST_SUPPORTS = 256
MOST_THUMBNAIL_BYTES = 4_000_000
DIMENSIONS = {"latents": 4, "masks": 4, "image_embeds": 3}  # of the encoded supports

# Names become parts of file names and of text formats.
NAME = re.compile(r"[^\W_][\w .+-]{0,63}(?<![ .])")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows
AGAIN = "Make it again with `diffseg concept make`."


@dataclass(frozen=True)
class Source:
    """Where a support came from: names without folders, and hashes of the files."""

    image: str
    image_sha256: str
    mask: str
    mask_sha256: str


@dataclass(frozen=True, eq=False, repr=False)
class Concept:
    """A class to look for, by its encoded supports.

    Attributes:
        name: what results call it.
        support: its encoded supports, (1 k ...).
        tiles: a small image uint8 (h w 3) of each, its background darkened; may be left out.
        sources: where each came from; empty where that is not known.
        notes: how their masks were understood, where that is worth knowing.
        file: that holds it, or None.
        adapted: modules that were adapted to it, or None where those of the segmenter answer.
    """

    name: str
    support: "SupportFeatures"
    tiles: Sequence[NDArray[np.uint8]]
    sources: Sequence[Source] = ()
    notes: Sequence[str] = ()
    file: Path | None = None
    adapted: "Adapted | None" = None

    def __repr__(self) -> str:
        own = ", adapted" if self.adapted else ""
        return f"Concept({self.name}, {self.support!r}{own})"

    def ready_for(self, segmenter: "Segmenter") -> "tuple[Segmenter, SupportFeatures]":
        """What looks for it, and its supports: as `segmenter.Findable`."""
        return self.answering(segmenter), self.support

    def answering(self, segmenter: "Segmenter") -> "Segmenter":
        """The segmenter with the modules that answer for this concept."""
        return segmenter.with_trained(self.adapted.trained) if self.adapted else segmenter

    @cached_property
    def preview(self) -> bytes:
        """Its first support as a JPEG, small enough for a list; needs tiles."""
        shown = Image.fromarray(self.tiles[0])
        shown.thumbnail((PREVIEW, PREVIEW))
        return jpeg_bytes(np.asarray(shown), 85)

    @property
    def record(self) -> dict[str, Any]:
        """Where it came from, as plain values for JSON."""
        file = {"concept": str(self.file)} if self.file else {}
        adapted = {"adapted": self.adapted.record()} if self.adapted else {}
        return {"name": self.name, **file, "supports": [asdict(source) for source in self.sources], **adapted}


@dataclass(frozen=True, eq=False)
class SupportSet:
    """Images and masks that a concept is made of.

    Attributes:
        name: of the concept.
        pairs: uint8 (h w 3) and bool (h w) of each support, any sizes.
        sources: as in `Concept`.
        notes: as in `Concept`.
        files: all of it was read from.
        adapt: whether the modules are to be adapted to it.
        negatives: images uint8 (h w 3), each with the region bool (h w) that is not the concept, or None for
            all of it; for the adaptation.
    """

    name: str
    pairs: Sequence[Pair]
    sources: Sequence[Source] = ()
    notes: Sequence[str] = ()
    files: Sequence[Path] = ()
    adapt: bool = False
    negatives: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_] | None]] = ()

    def concept(self, segmenter: "Segmenter") -> Concept:
        """Encode the supports; `finding.encode_concepts` also adapts.

        Raises:
            InputError: there are none.
        """
        tiles = [support_tile(*pair) for pair in self.pairs]
        return Concept(self.name, segmenter.encode_support(self.pairs), tiles, self.sources, self.notes)


@dataclass(frozen=True, repr=False)
class SavedConcept:
    """A concept in a file, as far as its header tells.

    Attributes:
        file: that holds it.
        name: of the concept.
        backbone: that encoded it.
        fingerprint: of that backbone's weights.
        settings: of the encoding.
        sources: one per support.
        version: of diffseg that wrote it.
        adapted: what it says of modules adapted to it, or None.
    """

    file: Path
    name: str
    backbone: str
    fingerprint: str
    settings: dict[str, Any]
    sources: tuple[Source, ...]
    version: str
    adapted: SavedModules | None = None

    def __repr__(self) -> str:
        own = ", adapted" if self.adapted else ""
        return f"SavedConcept({self.name}, {len(self.sources)} of {self.backbone}, {self.file}{own})"

    def ready_for(self, segmenter: "Segmenter") -> "tuple[Segmenter, SupportFeatures]":
        """Read and check the file; raises as `concept`."""
        return self.concept(segmenter).ready_for(segmenter)

    @property
    def files(self) -> Sequence[Path]:
        """As of a `SupportSet`."""
        return (self.file,)

    @property
    def record(self) -> dict[str, Any]:
        """The header, as plain values for JSON."""
        return {**asdict(self), "file": str(self.file)}

    def concept(self, segmenter: "Segmenter") -> Concept:
        """Its supports, ready for this segmenter, and the adapted modules where the head reads any.

        Raises:
            WeightsError: the file is damaged, another model encoded it, or its modules were adapted from
                others than those in use.
        """
        from diffseg_cli.models.support import TENSORS, SupportFeatures

        backbone = segmenter.backbone
        if self.backbone != backbone.name:
            raise WeightsError(
                f"{self.file} was made with {self.backbone}, and the model in use is {backbone.name}.",
                f"Use it with --model {self.backbone}, or make it again with this model.",
            )
        if self.fingerprint != backbone.fingerprint:
            raise WeightsError(
                f"{self.file} is stale: it was made with other weights of {self.backbone} "
                f"({self.fingerprint}) than those in use ({backbone.fingerprint}).",
                AGAIN,
            )
        tensors, metadata = read_safetensors(self.file)
        grid = backbone.image_size // 8
        support = SupportFeatures.of(backbone, *(tensors[what][None] for what in TENSORS))
        shape = (1, len(self.sources), backbone.latent_channels)
        views = [(*shape, count * grid, grid) for count in (1, 2)]
        whole = metadata.get("digest") == support.digest and support.latents.shape in views
        if not whole or not all(_is_plain(tensors[what]) for what in TENSORS):
            raise WeightsError(
                f"{self.file} is damaged: its encoded supports are not those of a model.", AGAIN
            )
        support = support.to(backbone.device, backbone.dtype)
        tiles = [support_tile(*pair) for pair in self.thumbnails()]
        uses = self.adapted is not None and segmenter.head == "pam"
        adapted = unpack(self.adapted, tensors, segmenter, self.file) if self.adapted and uses else None
        return Concept(self.name, support, tiles, self.sources, file=self.file, adapted=adapted)

    def thumbnails(self) -> list[Pair]:
        """The small images in the file: uint8 (h w 3) and bool (h w) of each support.

        Raises:
            WeightsError: the file or an image in it is damaged.
        """
        tensors, _ = read_safetensors(self.file)
        pairs = []
        for index in range(len(self.sources)):
            try:
                image = _decode(tensors[f"thumbnail.{index}"], "JPEG").convert("RGB")
                mask = _decode(tensors[f"thumbnail_mask.{index}"], "PNG").convert("1")
                if image.size != mask.size:
                    raise ValueError("sizes differ")
            except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
                raise WeightsError(
                    f"{self.file} is damaged: its image {index + 1} cannot be read.", AGAIN
                ) from error
            pairs.append((np.array(image), np.array(mask)))
        return pairs


def check_name(name: str) -> str:
    """A name for a concept: letters, digits, spaces and . + - _, starting with a letter or digit.

    Raises:
        UsageError: it is none.
    """
    if not (NAME.fullmatch(name) and not RESERVED.fullmatch(name)):
        raise UsageError(
            f"{name!r} cannot be the name of a concept.",
            "Use up to 64 letters, digits, spaces and . + - _, and begin with a letter or digit.",
        )
    return name


def source_of(image: Path, mask: Path) -> Source:
    """Hash the files of a support."""
    return Source(image.name, file_sha256(image), mask.name, file_sha256(mask))


def write_concept(
    path: Path, segmenter: "Segmenter", supports: SupportSet, adapted: "Adapted | None" = None
) -> SavedConcept:
    """Encode supports and write them as a concept; the file is whole or not there.

    Args:
        path: of the file.
        segmenter: whose backbone encodes them.
        supports: with a source of each.
        adapted: what came of adapting the segmenter's modules to them.

    Raises:
        UsageError: the name is none, or there are too many supports.
        InputError: there are no supports, or the folder cannot be written.
    """
    import torch

    from diffseg_cli.models.support import TENSORS

    check_name(supports.name)
    if len(supports.pairs) > MOST_SUPPORTS:
        raise UsageError(
            f"A concept holds {MOST_SUPPORTS} supports at most.", "Choose the most different ones."
        )
    support = segmenter.encode_support(supports.pairs)
    tensors = {what: getattr(support, what)[0] for what in TENSORS}
    for index, (image, mask) in enumerate(supports.pairs):
        for what, content in zip(("thumbnail", "thumbnail_mask"), _thumbnails(image, mask), strict=True):
            tensors[f"{what}.{index}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    settings = {
        "image_size": segmenter.backbone.image_size,
        "dtype": str(segmenter.dtype).removeprefix("torch."),
    }
    modules, about = pack(adapted, segmenter.trained) if adapted else ({}, None)
    made = (support.backbone, support.fingerprint, settings, tuple(supports.sources), __version__)
    saved = SavedConcept(path, supports.name, *made, about)
    metadata = {
        "format": FORMAT,
        "format_version": WITH_MODULES if about else PLAIN,
        **{field: getattr(saved, field) for field in ("version", "name", "backbone", "fingerprint")},
        "digest": support.digest,
        "settings": json.dumps(settings),
        "sources": json.dumps([asdict(source) for source in supports.sources]),
        **({"adapted": json.dumps(asdict(about))} if about else {}),
    }
    write_safetensors(path, {**tensors, **modules}, metadata)
    return saved


def open_concept(path: Path) -> SavedConcept:
    """A concept in a file, from the header alone and without torch.

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
    if version not in (PLAIN, WITH_MODULES):
        raise WeightsError(
            f"{path} has concept format {version[:20] or 'unknown'}; this diffseg reads {PLAIN} and "
            f"{WITH_MODULES}.",
            "Update diffseg, or make the concept again with this version.",
        )
    try:
        settings = json.loads(metadata["settings"])
        sources = tuple(Source(**_texts(row)) for row in json.loads(metadata["sources"]))
        name = check_name(metadata["name"])
        made = (metadata["backbone"], metadata["fingerprint"], settings, sources, metadata["version"])
        adapted = parse(metadata["adapted"]) if version == WITH_MODULES else None
        _check_shapes(shapes, len(sources))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise WeightsError(f"{path} is damaged: its record of the supports cannot be read.", AGAIN) from error
    return SavedConcept(path, name, *made, adapted)


def load_concept(path: str | Path) -> SavedConcept:
    """A concept in a file, for `Segmenter.segment`, which reads all but its header.

    Raises:
        WeightsError: as `open_concept`.
    """
    return open_concept(Path(path))


def _thumbnails(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[bytes, bytes]:
    """JPEG of an image and PNG of its mask, both small."""
    size_wh = shrunk_wh(mask.shape, THUMBNAIL)
    jpeg, outline = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).resize(size_wh, Image.Resampling.BOX).save(jpeg, "JPEG", quality=90)
    covered = Image.fromarray(mask.astype(np.uint8) * 255).resize(size_wh, Image.Resampling.BOX)
    covered.point([0] * 128 + [255] * 128, "1").save(outline, "PNG")
    return jpeg.getvalue(), outline.getvalue()


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
