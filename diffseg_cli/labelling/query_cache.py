"""Encoded images of a project, kept on disk: what is proposed again, or clicked on, is not encoded again."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffseg_cli.frames import stack_frames
from diffseg_cli.labelling.disk_cache import DiskCache, name_of, stamp_of
from diffseg_cli.prediction import QueryFeatures
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.weights.files import tensors_digest

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter

MOST_BYTES = 2_000_000_000  # some 7000 images of the compact model


class QueryCache:
    """Encodes the images of a project, each once. `encode` is for the thread that owns the model.

    Latents are kept in half precision and used in it also when they are new, so that an answer does not
    depend on what is cached.

    Args:
        segmenter: that encodes; segmenters with other modules on the same backbone may use the queries.
        folder: of the files; it may be deleted at any time.
        most_bytes: on disk.
    """

    def __init__(self, segmenter: "Segmenter", folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._segmenter, self._cache = segmenter, DiskCache(folder, most_bytes)
        backbone, hed = segmenter.backbone, segmenter.hed
        edges = tensors_digest(hed.state_dict()) if hed and "scm" in segmenter.trained.modules else None
        self._made_by = (backbone.name, backbone.latents_fingerprint, backbone.image_size, edges)

    def name(self, path: Path) -> str:
        """What changes with an image file, and with the model."""
        return f"{name_of(str(path.resolve()), stamp_of(path), self._made_by)}.safetensors"

    @torch.inference_mode()
    def encode(self, path: Path) -> QueryFeatures:
        """An image, read and encoded as a batch of one.

        Raises:
            InputError: it cannot be used.
        """
        name, image, backbone = self.name(path), read_image(path), self._segmenter.backbone
        tensors = self._kept(name)
        if tensors is None:
            frames = stack_frames([image], backbone.image_size).to(backbone.device)
            with self._segmenter.stage("edges"):
                edges = self._segmenter.find_edges(frames)
            with self._segmenter.stage("encode"):
                blocks = backbone.encode_blocks(frames)
            tensors = {f"latents.{i}": block.half() for i, block in enumerate(blocks)}
            tensors |= {} if edges is None else {"edges": edges.half()}
            self._cache.put(name, save({key: value.cpu().contiguous() for key, value in tensors.items()}))
        tensors = {key: value.to(backbone.device, backbone.dtype) for key, value in tensors.items()}
        edges = tensors.pop("edges", None)
        latents = backbone.stack_blocks([tensors[f"latents.{i}"] for i in range(len(tensors))])
        return QueryFeatures([image], latents, edges, {})

    def _kept(self, name: str) -> dict[str, Tensor] | None:
        content = self._cache.get(name)
        try:
            return None if content is None else load(content)
        except SafetensorError:  # damaged, so it is made again
            return None
