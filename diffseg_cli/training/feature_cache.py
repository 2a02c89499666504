"""Frozen results of training pictures on disk, so that an epoch costs no encoder.

A cache is a folder of memory-mapped arrays, one row a (sample, view). View 0 is the picture as it is; the
others are random crops with changed colours, a pure function of (seed, sample, view). Where the backbone
crops supports to their object, one more row a sample holds it as a support. Mirroring is done on
the latents when they are read.

Letters: r rows, v views, S picture size, H W = S/8, c latent channels, t prompt tokens.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.datasets.episode import FewShotDataset
from diffseg_cli.frames import crop_to_object, mask_to_frame, to_frame
from diffseg_cli.loading import edge_size as default_edge_size
from diffseg_cli.models.compact import CompactBackbone
from diffseg_cli.models.hed import HED
from diffseg_cli.reading.image_io import read_image, read_mask

BATCH = 8


@dataclass(frozen=True)
class CachedBatch:
    """Frozen results of some rows.

    Attributes:
        latents: (r c H W) of the pictures.
        targets: (r c H W) of the mask pictures (white object on black), the target of eq. 10.
        masks: (r 1 S/2 S/2) in [0, 1].
        edges: (r 1 E E) HED edges in [0, 1].
        image_embeds: (r t d).
    """

    latents: Tensor
    targets: Tensor
    masks: Tensor
    edges: Tensor
    image_embeds: Tensor


def augment(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A random crop that keeps at least 40 % of the object, and changed brightness, contrast, saturation."""
    height, width = mask.shape
    for _ in range(10):
        scale, stretch = generator.uniform(0.4, 1.0), generator.uniform(0.8, 1.25)
        crop_h, crop_w = (
            max(32, round(min(1.0, scale * s) * n)) for s, n in ((stretch, height), (1 / stretch, width))
        )
        top, left = (
            int(generator.integers(0, max(1, n - c + 1))) for n, c in ((height, crop_h), (width, crop_w))
        )
        cropped = mask[top : top + crop_h, left : left + crop_w]
        if cropped.sum() >= 0.4 * mask.sum():
            image, mask = image[top : top + crop_h, left : left + crop_w], cropped
            break
    pixels = image.astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * generator.uniform(0.5, 1.5)
    pixels = (
        (pixels - pixels.mean()) * generator.uniform(0.7, 1.3) + pixels.mean() + generator.uniform(-25, 25)
    )
    return np.clip(pixels, 0, 255).astype(np.uint8), mask


def latents_hash(backbone: CompactBackbone) -> str:
    """Of everything latents depend on, at the precision it is stored in; not of scalars or decoder."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.state_dict().items()):
        if name.startswith(("encoder.", "mean_", "std_", "basis_")):
            digest.update(value.half().cpu().numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Rows of frozen results; `open` builds what is missing.

    Args:
        folder: where the arrays are.
        dataset: whose samples the rows follow, sample-major.
        backbone: frozen, its fingerprint names the cache.
        hed: frozen edge detector, or None for a cache without edges.
        views: rows a sample, without the one as a support.
        edge_size: E; default what the backbone's SCM is used with.
        seed: of the augmentation.
    """

    def __init__(
        self,
        folder: Path,
        dataset: FewShotDataset,
        backbone: CompactBackbone,
        hed: HED | None,
        *,
        views: int,
        edge_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset, self.backbone, self.hed = dataset, backbone, hed
        self.views, self.seed = views, seed
        self.stride = views + (backbone.support_margin is not None)
        self.edge_size = edge_size or default_edge_size(backbone)
        listing = "\n".join(sample.image.as_posix() for sample in dataset.samples)
        parts = [
            latents_hash(backbone),
            backbone.image_size,
            backbone.support_margin,
            listing,
            views,
            self.edge_size,
            seed,
            hed is not None,
        ]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        self.folder = folder / key
        self.rows = len(dataset.samples) * self.stride
        self._arrays: dict[str, NDArray[Any]] = {}

    def row(self, sample: int, view: int = 0) -> int:
        """Of a view of a sample."""
        return sample * self.stride + view

    def support_row(self, sample: int) -> int:
        """Of a sample as the backbone sees supports."""
        return self.row(sample, self.views if self.backbone.support_margin is not None else 0)

    def build(self) -> Iterator[tuple[int, int]]:
        """Compute the rows that are missing; yields (rows done, rows in all) and can be interrupted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        progress = self.folder / "rows_done"
        done = int(progress.read_text()) if progress.is_file() else 0
        for start in range(done, self.rows, BATCH):
            rows = range(start, min(start + BATCH, self.rows))
            for name, values in self._compute(rows).items():
                self._array(name, values.shape[1:], values.dtype)[rows.start : rows.stop] = values
            progress.write_text(str(rows.stop))
            yield rows.stop, self.rows

    def _array(self, name: str, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        if name not in self._arrays:
            path = self.folder / f"{name}.npy"
            mode: Any = "r+" if path.is_file() else "w+"
            self._arrays[name] = np.lib.format.open_memmap(
                path, mode=mode, dtype=dtype, shape=None if mode == "r+" else (self.rows, *shape)
            )
        return self._arrays[name]

    def load_view(self, row: int) -> tuple[Tensor, Tensor]:
        """Picture (3 S S) and mask (1 S S) of a row, in [0, 1]."""
        index, view = divmod(row, self.stride)
        sample = self.dataset.samples[index]
        image, mask = read_image(sample.image), read_mask(sample.mask)
        if view == self.views and self.backbone.support_margin is not None:
            image, mask = crop_to_object(image, mask, self.backbone.support_margin)
        elif view:
            image, mask = augment(image, mask, np.random.Generator(np.random.PCG64([self.seed, index, view])))
        return to_frame(image, self.backbone.image_size), mask_to_frame(mask, self.backbone.image_size)

    @torch.inference_mode()
    def _compute(self, rows: range) -> dict[str, NDArray[Any]]:
        pairs = [self.load_view(row) for row in rows]
        images = torch.stack([image for image, _ in pairs]).to(self.backbone.device)
        masks = torch.stack([mask for _, mask in pairs]).to(self.backbone.device)
        with torch.autocast(
            self.backbone.device.type, torch.bfloat16
        ):  # twice as fast; the result is stored in half
            blocks = self.backbone.encode_blocks(images)
            targets = self.backbone.encode_blocks(masks.expand(-1, 3, -1, -1))
        embeds = self.backbone.embed(
            images, masks, self.backbone.stack_blocks([block.float() for block in blocks])
        )
        half = self.backbone.image_size // 2
        small_masks = torch.nn.functional.interpolate(masks, size=(half, half), mode="area")
        arrays = {
            "image_embeds": embeds.half().cpu().numpy(),
            "masks": (small_masks * 255).round().byte().cpu().numpy(),
        }
        for index, (block, target) in enumerate(zip(blocks, targets, strict=True)):
            arrays[f"block_{index}"] = block.half().cpu().numpy()
            arrays[f"target_{index}"] = target.half().cpu().numpy()
        if self.hed is not None:
            size = (self.edge_size, self.edge_size)
            shrunk = torch.nn.functional.interpolate(images, size=size, mode="area")
            queries = [row % self.stride < self.views for row in rows]  # supports need no edges
            edges = torch.zeros_like(shrunk[:, :1])
            if any(queries):
                edges[queries] = self.hed(shrunk[queries]).float()
            arrays["edges"] = (edges * 255).round().byte().cpu().numpy()
        return arrays

    def read(self, rows: Sequence[int], mirrored: Sequence[bool]) -> CachedBatch:
        """Rows as tensors on the backbone's device, some of them mirrored left to right."""

        def gather(name: str) -> Tensor:
            array = self._array(name, (), None)
            picked = np.stack(
                [
                    array[row][..., ::-1] if flip else array[row]
                    for row, flip in zip(rows, mirrored, strict=True)
                ]
            )
            tensor = torch.from_numpy(np.ascontiguousarray(picked)).to(self.backbone.device)
            return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()

        taps = range(len(self.backbone.latent_groups))
        embeds = self._array("image_embeds", (), None)
        return CachedBatch(
            latents=self.backbone.stack_blocks([gather(f"block_{index}") for index in taps]),
            targets=self.backbone.stack_blocks([gather(f"target_{index}") for index in taps]),
            masks=gather("masks"),
            edges=gather("edges") if self.hed is not None else torch.empty(0),
            image_embeds=torch.from_numpy(np.stack([embeds[row] for row in rows]))
            .to(self.backbone.device)
            .float(),
        )
