"""How much device memory Kandinsky 2.2 needs, stage by stage, counted without a device.

    python -m tools.account_memory [--offload | --concept] [--batch-size 1] [--shots 1] [--dtype float16]

With `--concept` the supports come encoded from a file, so that CLIP is never read.
The networks are built at full size on meta tensors, which have shapes and no contents. Every tensor an
operation makes is counted while it is alive, attention in its plainest form, matrices and all. That is what
PyTorch allocates at most; a CUDA context, workspaces of libraries and gaps between blocks come on top.
"""

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffseg_cli.bench.subject import random_segmenter
from diffseg_cli.compute import DTYPES
from diffseg_cli.models.support import SupportFeatures
from diffseg_cli.segmenter import Segmenter

GB = 1e9
Row = tuple[str, int, int]
META = torch.device("meta")


class MemoryCounter(TorchDispatchMode):
    """Counts bytes of tensors made while it is on.

    Attributes:
        held: bytes alive now.
        peak: most bytes alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, id(storage), size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


def peak_of(work: Callable[[], Any]) -> tuple[Any, int]:
    """What a piece of work gives, and the most bytes its tensors took, its result included."""
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), MemoryCounter() as counter:
        result = work()
    return result, counter.peak


def parameter_bytes(*modules: nn.Module) -> int:
    """Bytes of the parameters and buffers of some modules."""
    return sum(
        tensor.numel() * tensor.element_size()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    )


def account(
    segmenter: Segmenter, *, batch_size: int, shots: int, offload: bool = False, concept: bool = False
) -> list[Row]:
    """Every stage from supports to masks: its name, bytes of parameters on the device, peak bytes of tensors.

    Args:
        segmenter: Kandinsky on meta tensors.
        batch_size: queries at once.
        shots: supports.
        offload: of CLIP and UNet only the one used last is on the device.
        concept: the supports are encoded already, and CLIP is nowhere.
    """
    backbone: Any = segmenter.backbone
    # What meta tensors cannot do: say where an object is, and be moved.
    backbone.offload, backbone.support_crop, backbone._bring = offload, None, id
    clip, unet = parameter_bytes(backbone.image_encoder), parameter_bytes(backbone.unet)
    small = parameter_bytes(
        backbone.movq, segmenter.trained.modules, *([segmenter.hed] if segmenter.hed else [])
    )
    size = backbone.image_size
    images, supports = (torch.empty(n, 3, size, size, device=META) for n in (batch_size, shots))
    rows: list[Row] = []

    def count(stage: str, last_used: int, work: Callable[[], Any]) -> Any:
        result, peak = peak_of(work)
        large = unet if concept else last_used if offload else clip + unet
        rows.append((stage, small + large, peak))
        return result

    latents = count("encode supports", unet, lambda: backbone.encode(supports))
    embeds = count("embed supports", clip, lambda: backbone.embed(supports, supports[:, :1]))
    if concept:
        rows.clear()
    edges = count("edges", clip, lambda: segmenter.find_edges(images))
    queries = count("encode queries", clip, lambda: backbone.encode(images))
    grid = torch.empty(1, shots, 1, *latents.shape[-2:], device=META, dtype=latents.dtype)
    support = SupportFeatures.of(backbone, latents[None], grid, embeds[None])

    def look() -> Any:
        return segmenter.find_scores(queries, edges, support, queries)[1].score_map

    score_map = count("look", unet, look)
    shared = (values.expand(batch_size, -1, -1, -1, -1) for values in (support.latents, support.masks))
    pam = segmenter.trained.modules["pam"]
    predicted = count("PAM", unet, lambda: pam(queries, *shared, score_map.to(queries)))
    count("decode", unet, lambda: backbone.decode_mask(predicted))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--shots", type=int, default=1)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float16")
    clip_is = parser.add_mutually_exclusive_group()
    clip_is.add_argument("--offload", action="store_true")
    clip_is.add_argument("--concept", action="store_true")
    options = parser.parse_args()
    segmenter = random_segmenter("kandinsky-2-2", device=META, dtype=DTYPES[options.dtype])
    rows = account(
        segmenter,
        batch_size=options.batch_size,
        shots=options.shots,
        offload=options.offload,
        concept=options.concept,
    )
    print(f"{'GB':<16} parameters  tensors      sum")
    for stage, parameters, tensors in rows:
        print(f"{stage:<16} {parameters / GB:10.2f} {tensors / GB:8.2f} {(parameters + tensors) / GB:8.2f}")
    print(f"peak {max(parameters + tensors for _, parameters, tensors in rows) / GB:.2f} GB")


if __name__ == "__main__":
    main()
