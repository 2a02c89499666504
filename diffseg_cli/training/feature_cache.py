"""Frozen results of training pictures on disk, so that an epoch costs no encoder.

A cache is a folder of memory-mapped arrays, one row a (sample, view). View 0 is the image as it is; the
others are random crops in other colours, half of them mirrored, a pure function of (seed, sample, view).
Where the backbone sees supports otherwise than queries (cropped to their object, or on black), one more row a
sample holds it as a support.

Letters: r rows, v views, S picture size, E edge size, H W = S/8, c latent channels, t prompt tokens.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.compute import autocast_for
from diffseg_cli.config import LookConfig
from diffseg_cli.datasets import read_truth
from diffseg_cli.datasets.episode import FewShotDataset
from diffseg_cli.errors import InputError
from diffseg_cli.files import replace_file
from diffseg_cli.frames import crop_to_object, mask_to_frame, stack_frames, to_frame
from diffseg_cli.loading import edge_size as default_edge_size
from diffseg_cli.models.backbone import Backbone
from diffseg_cli.models.hed import HED
from diffseg_cli.models.hed_student import HedStudent
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.reading.image_io import check_pair, read_image
from diffseg_cli.views import recoloured, zoomed_in

BATCH = 8
LAYOUT = 4  # of the arrays; another one is another cache
DONE = "rows_done"


@dataclass(frozen=True)
class CachedBatch:
    """Frozen results of some rows.

    Attributes:
        latents: (r c H W) of the pictures.
        targets: (r c H W) of the mask pictures (white object on black), the target of eq. 10.
        masks: (r 1 S/2 S/2) in [0, 1].
        edges: (r 1 E E) HED edges in [0, 1].
    """

    latents: Tensor
    targets: Tensor
    masks: Tensor
    edges: Tensor


def dataset_hash(dataset: FewShotDataset) -> str:
    """Of names, sizes and times of all files of a data set, so that a changed mask is encoded again.

    Raises:
        InputError: a file is missing.
    """
    digest = hashlib.sha256(dataset.name.encode())
    for sample in dataset.samples:
        for path in (sample.image, sample.mask):
            try:
                status = path.stat()
            except OSError as error:
                raise InputError(
                    f"{path} is missing.", "Restore it, or take its picture out of the data set."
                ) from error
            line = (dataset.relative(path), sample.label, status.st_size, status.st_mtime_ns)
            digest.update(repr(line).encode())
    return digest.hexdigest()


class FeatureCache:
    """Rows of frozen results; `build` computes what is missing.

    Args:
        folder: where caches are; this one takes a folder in it named by a hash of all that decides its rows.
        dataset: whose samples the rows follow, sample-major.
        backbone: frozen.
        hed: frozen edge detector, or None for a cache without edges.
        views: rows a sample, without the one as a support.
        edge_size: E; default what the backbone's SCM is used with.
        seed: of the augmentation.
        precision: of autocast while encoding and training, "bf16" or "fp32"; see `compute.autocast_for`.
            A backbone without mixed precision computes in its own format, and what is trained in float32.
        support_crop: of `LookConfig`.

    Raises:
        InputError: a file of the data set is missing.
    """

    def __init__(
        self,
        folder: Path,
        dataset: FewShotDataset,
        backbone: Backbone,
        hed: HED | HedStudent | None,
        *,
        views: int,
        edge_size: int | None = None,
        seed: int = 0,
        precision: str = "bf16",
        support_crop: str = LookConfig.support_crop,
    ) -> None:
        self.dataset, self.backbone, self.hed = dataset, backbone, hed
        self.views, self.seed = views, seed
        self.precision = precision if backbone.mixed_precision else "fp32"
        self.crops, self.twice = support_crop != "whole", support_crop == "both"
        self.margin = backbone.support_margin if self.crops else None
        self.own_supports = self.margin is not None or backbone.masks_support
        self.stride = views + self.own_supports
        self.edge_size = edge_size or default_edge_size(backbone)
        parts = [LAYOUT, backbone.name, backbone.latents_fingerprint]
        parts += [backbone.image_size, self.margin]
        parts += [dataset_hash(dataset), views, self.edge_size, seed, type(hed).__name__]
        parts += [self.precision] if self.precision != "bf16" else []  # never rows of another precision
        parts += [support_crop] if not self.crops else []
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        self.folder = folder / key
        self.rows = len(dataset.samples) * self.stride
        self._arrays: dict[str, NDArray[Any]] = {}

    def row(self, sample: int, view: int = 0) -> int:
        """Of a view of a sample."""
        return sample * self.stride + view

    def support_row(self, sample: int) -> int:
        """Of a sample as the backbone sees supports."""
        return self.row(sample, self.views if self.own_supports else 0)

    def build(self) -> Iterator[tuple[int, int]]:
        """Compute the rows that are missing; yields (rows done, rows in all) and can be killed at any time.

        Raises:
            InputError: a picture or mask cannot be used, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            progress = self.folder / DONE
            done = int(progress.read_text()) if progress.is_file() else 0
            for start in range(done, self.rows, BATCH):
                rows = range(start, min(start + BATCH, self.rows))
                for name, values in self._compute(rows).items():
                    array = self._array(name, (values.shape[1:], values.dtype), anew=start == 0)
                    array[rows.start : rows.stop] = values
                for array in self._arrays.values():
                    array.flush()  # type: ignore[attr-defined]  # a memmap
                replace_file(progress, str(rows.stop).encode())  # after the rows: what is counted is there
                yield rows.stop, self.rows
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be written: {error.strerror}.", "Choose another folder with --cache."
            ) from error

    def _array(
        self, name: str, form: tuple[Sequence[int], Any] | None = None, *, anew: bool = False
    ) -> NDArray[Any]:
        """An array of this cache; made anew with a row's `form` (shape, dtype)."""
        if name not in self._arrays:
            path = self.folder / f"{name}.npy"
            if anew and form:  # a file left by a run that was killed in its first rows may lack its header
                array = np.lib.format.open_memmap(path, mode="w+", dtype=form[1], shape=(self.rows, *form[0]))
            else:
                array = np.lib.format.open_memmap(path, mode="r+" if form else "r")
            self._arrays[name] = array
        return self._arrays[name]

    def _load(self, row: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Picture (h w 3) and mask (h w) of a row, at their own size."""
        index, view = divmod(row, self.stride)
        sample, margin = self.dataset.samples[index], self.margin
        image, mask = read_image(sample.image), read_truth(self.dataset.name, sample).mask
        check_pair(image, mask, sample.image, sample.mask)
        if not mask.any():
            raise InputError(
                f"{sample.mask} marks nothing of {sample.class_name}.", "Mark it, or remove the pair."
            )
        if view == self.views:
            return (image, mask) if margin is None else crop_to_object(image, mask, margin)
        if view:
            generator = np.random.Generator(np.random.PCG64([self.seed, index, view]))
            image, mask = recoloured(zoomed_in((image, mask), generator), generator)
        return image, mask

    def load_view(self, row: int) -> tuple[Tensor, Tensor]:
        """Picture (3 S S) and mask (1 S S) of a row, in [0, 1].

        Raises:
            InputError: one of them cannot be used.
        """
        image, mask = self._load(row)
        return to_frame(image, self.backbone.image_size), mask_to_frame(mask, self.backbone.image_size)

    @torch.inference_mode()
    def _compute(self, rows: range) -> dict[str, NDArray[Any]]:
        backbone, size = self.backbone, self.backbone.image_size
        pairs = [self._load(row) for row in rows]
        images = stack_frames([image for image, _ in pairs], size).to(backbone.device)
        masks = torch.stack([mask_to_frame(mask, size) for _, mask in pairs]).to(backbone.device)
        as_support = torch.tensor([row % self.stride == self.views for row in rows], device=images.device)
        seen = images
        if backbone.masks_support:  # eq. 3
            seen = torch.where(as_support[:, None, None, None], images * masks, images)
        targets = _read_rows(~as_support)  # supports have none
        white = self._encode(masks[targets].expand(-1, 3, -1, -1))
        blocks = {"latents": self._encode(seen), "targets": [_spread(block, targets) for block in white]}
        latents = backbone.stack_blocks([block.float() for block in blocks["latents"]])
        prompts = _read_rows(as_support | (not backbone.masks_support))  # else only rows made for it
        embeds = backbone.embed_pairs([pairs[int(row)] for row in prompts.nonzero()], crop=self.crops)
        if embeds is None:
            embeds = backbone.embed(images[prompts], masks[prompts], latents[prompts])
        arrays = {
            "image_embeds": _spread(embeds, prompts).half().cpu().numpy(),
            "masks": _to_bytes(F.interpolate(masks, size=(size // 2, size // 2), mode="area")),
        }
        for name, values in blocks.items():
            arrays |= {f"{name}_{i}": block.half().cpu().numpy() for i, block in enumerate(values)}
        if self.hed is not None:
            shrunk = F.interpolate(images, size=(self.edge_size, self.edge_size), mode="area")
            edges = torch.zeros_like(shrunk[:, :1])
            if not as_support.all():  # supports need no edges
                edges[~as_support] = self.hed(shrunk[~as_support]).float()
            arrays["edges"] = _to_bytes(edges)
        return arrays

    def _encode(self, images: Tensor) -> list[Tensor]:
        """Latents as they are stored, in half precision."""
        with autocast_for(images.device, self.precision):
            return self.backbone.encode_blocks(images)

    def _gather(self, name: str, rows: Sequence[int]) -> Tensor:
        array = self._array(name)
        tensor = torch.from_numpy(np.stack([array[row] for row in rows])).to(self.backbone.device)
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()

    def _latents(self, name: str, rows: Sequence[int]) -> Tensor:
        indices = range(len(self.backbone.latent_groups))
        return self.backbone.stack_blocks([self._gather(f"{name}_{index}", rows) for index in indices])

    def read(self, rows: Sequence[int]) -> CachedBatch:
        """Rows as tensors on the backbone's device."""
        return CachedBatch(
            latents=self._latents("latents", rows),
            targets=self._latents("targets", rows),
            masks=self._gather("masks", rows),
            edges=self._gather("edges", rows) if self.hed is not None else torch.empty(0),
        )

    def read_targets(self, rows: Sequence[int]) -> Tensor:
        """`read(...).targets` alone."""
        return self._latents("targets", rows)

    def read_supports(self, rows: NDArray[np.int64]) -> SupportFeatures:
        """Supports of b episodes, rows (b k), as the segmenter reads them."""
        embeds = self._gather("image_embeds", rows.ravel().tolist()).unflatten(0, rows.shape)
        support = SupportFeatures.of(self.backbone, *self._view(rows), embeds)
        if self.margin is None or not self.twice:
            return support
        return support.seen_again(*self._view(rows // self.stride * self.stride))  # view 0 of each sample

    def _view(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Latents (b k c H W) of rows (b k), and the share of each cell that is object (b k 1 H W)."""
        flat = rows.ravel().tolist()
        latents, masks = self._latents("latents", flat), self._gather("masks", flat)
        grid = F.interpolate(masks, size=latents.shape[-2:], mode="area")
        return latents.unflatten(0, rows.shape), grid.unflatten(0, rows.shape)


def _read_rows(rows: Tensor) -> Tensor:
    """Rows (r) bool worth computing: those that are read, or the first one to know its shape by."""
    return rows if rows.any() else torch.arange(len(rows), device=rows.device) == 0


def _spread(values: Tensor, rows: Tensor) -> Tensor:
    """Values of the rows (r) that were computed, zero in the others."""
    spread = values.new_zeros(len(rows), *values.shape[1:])
    spread[rows] = values
    return spread


def _to_bytes(values: Tensor) -> NDArray[np.uint8]:
    """[0, 1] -> uint8."""
    stored: NDArray[np.uint8] = (values * 255).round().byte().cpu().numpy()
    return stored
