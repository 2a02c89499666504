"""What is measured: a segmenter, loaded or with random weights, and images to give it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffseg_cli.assembly import choose_look, load_chosen
from diffseg_cli.bench.random_kandinsky import FULL_SIZE, KandinskyConfigs, random_networks
from diffseg_cli.choices import ModelChoice
from diffseg_cli.compute import limit_threads, resolve_device, resolve_dtype
from diffseg_cli.config import PamConfig, ScmConfig, SegmentConfig
from diffseg_cli.errors import UsageError
from diffseg_cli.loading import backbone_kind, build_compact, build_edge_detector, build_modules
from diffseg_cli.models.backbone import Backbone
from diffseg_cli.models.compact import CompactBackbone
from diffseg_cli.models.kandinsky import KandinskyBackbone
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.trained import Trained

IMAGE_HW = (480, 640)  # most images of COCO
SIZE_STEP = 64  # what the size of the model frame must divide by


def prepare_segmenter(
    choice: ModelChoice, *, random_weights: bool = False, image_size: int | None = None
) -> Segmenter:
    """The segmenter to measure.

    Args:
        choice: the model.
        random_weights: build it at full size without its files; SCM, PAM and HED are random too.
        image_size: of the model frame in pixels; None for the model's own.

    Raises:
        UsageError: options that do not go together, or a size that is no multiple of 64.
        WeightsError: weights are missing or damaged.
    """
    if image_size is not None and (image_size < SIZE_STEP or image_size % SIZE_STEP):
        raise UsageError(f"--image-size {image_size} is no multiple of {SIZE_STEP}.", "Try 256, 384 or 512.")
    if random_weights and choice.checkpoint is not None:
        raise UsageError("--random-weights and --checkpoint contradict each other.", "Give one of them.")
    if random_weights:
        limit_threads()
        place = resolve_device(choice.device)
        dtype = resolve_dtype(choice.dtype, place, backbone_kind(choice.model).network.cuda_dtype)
        segmenter = random_segmenter(choice.model, device=place, dtype=dtype, offload=choice.offload)
        look = choose_look(choice.timesteps, choice.cross_map, choice.support_crop)
        settings = SegmentConfig(**vars(look), fusion=choice.fusion or SegmentConfig.fusion)
        segmenter = replace(segmenter, head=choice.head or segmenter.head, settings=settings)
    else:
        segmenter = load_chosen(choice)
    if image_size is not None:
        segmenter.backbone.image_size = image_size
    return segmenter


def random_segmenter(
    model: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    offload: bool = False,
    configs: KandinskyConfigs = FULL_SIZE,
    seed: int = 0,
) -> Segmenter:
    """A whole segmenter with random weights, SCM, PAM and HED included.

    Args:
        model: "compact" or "kandinsky-2-2".
        device: where to compute; "meta" to count operations alone.
        dtype: what to compute in.
        offload: see `KandinskyBackbone`.
        configs: sizes of Kandinsky's networks.
        seed: of the weights.

    Raises:
        UsageError: another model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _random_backbone(model, device, dtype, offload, configs, seed)
        modules = build_modules(backbone, ScmConfig(), PamConfig())
        hed = build_edge_detector(backbone)
    for module in (modules, hed):
        module.eval().requires_grad_(False).to(device=device, dtype=dtype)
    trained = Trained(modules, source="random")
    return Segmenter(backbone=backbone, trained=trained, hed=hed, head="pam")


def _random_backbone(
    model: str,
    device: torch.device,
    dtype: torch.dtype,
    offload: bool,
    configs: KandinskyConfigs,
    seed: int,
) -> Backbone:
    if model == CompactBackbone.name:
        compact = build_compact()
        compact.fingerprint = f"random-{seed}"
        return compact.to(device=device, dtype=dtype)
    if model != KandinskyBackbone.name:
        raise UsageError(
            f"There are no random weights for '{model}'.", "Use --model compact or kandinsky-2-2."
        )
    networks = random_networks(
        configs,
        device=device,
        large_device=torch.device("cpu") if offload else device,
        dtype=dtype,
        seed=seed,
    )
    return KandinskyBackbone(networks, device=device, offload=offload)


def draw_images(folder: Path, *, shots: int, batch_size: int) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Write images that take as long to read, refine and write as photographs: soft shapes and noise.

    Returns:
        Support images with their masks, and queries; JPEG and PNG files of `IMAGE_HW`.
    """
    pairs, queries = [], []
    for index in range(shots + batch_size):
        image, mask = _draw_image(seed=index)
        path = folder / f"image_{index}.jpg"
        Image.fromarray(image).save(path, quality=92)
        if index >= shots:
            queries.append(path)
            continue
        Image.fromarray(mask).save(folder / f"mask_{index}.png")
        pairs.append((path, folder / f"mask_{index}.png"))
    return pairs, queries


def _draw_image(seed: int) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.uint8]], ...]:
    """An image uint8 (h w 3) with an ellipse of another colour and grain, and its mask uint8 (h w)."""
    generator = np.random.default_rng(seed)
    h, w = IMAGE_HW
    coarse = generator.integers(60, 196, (6, 8, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC), dtype=np.float32)
    y, x = np.mgrid[:h, :w]
    centre_y, centre_x = generator.uniform(0.35, 0.65, 2) * (h, w)
    inside = ((y - centre_y) / (0.22 * h)) ** 2 + ((x - centre_x) / (0.2 * w)) ** 2 < 1
    image[inside] = 0.4 * image[inside] + 0.6 * np.array((200, 120, 40), dtype=np.float32)
    image += generator.normal(0, 5, image.shape)
    return image.clip(0, 255).astype(np.uint8), np.where(inside, np.uint8(255), np.uint8(0))
