"""Other few-shot methods through transformers, to run on the very same episodes.

Weights come from a local folder or from what is already in the Hugging Face cache; nothing is downloaded.

Letters: k supports, S image size, n patches a side, c feature channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.errors import WeightsError
from diffseg_cli.frames import from_frame, mask_to_frame, stack_frames

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of all three networks
SEGGPT, DINO, SAM = "BAAI/seggpt-vit-large", "facebook/dinov2-base", "facebook/sam-vit-base"
PEERS = ("seggpt", "matcher-lite")
NOTES = {
    "seggpt": "SegGPT was trained on the classes of PASCAL VOC, COCO and ADE20K: on those its figures are "
    "not few-shot figures.",
    "matcher-lite": "matcher-lite is a small relative of Matcher (ICLR 2024): DINOv2-B and SAM-B instead of "
    "DINOv2-L and SAM-H, and no merging of masks. It does not reproduce Matcher's figures.",
}
POINTS = 8  # matcher-lite: prompts for SAM
POINT_SPACING = 3  # in patches
DINO_PATCHES = 37  # a side: 518 px, the size DINOv2 was trained at last

Support = tuple[NDArray[np.uint8], NDArray[np.bool_]]


class SegGpt:
    """SegGPT (Wang et al., ICCV 2023): paints the query's mask in the manner of the supports'.

    `model` is a `SegGptForImageSegmentation`.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = device
        self.size = int(self.model.config.image_size[1])

    @property
    def weights_mib(self) -> float:
        return _size_mib(self.model)

    @torch.inference_mode()
    def predict(self, query: NDArray[np.uint8], supports: Sequence[Support]) -> NDArray[np.bool_]:
        """Mask (h w) of the query; several supports are averaged in their features, as its authors do."""
        frames = stack_frames([image for image, _ in supports], self.size)
        masks = torch.stack([mask_to_frame(mask, self.size).round() for _, mask in supports])
        wanted = stack_frames([query], self.size).expand(len(supports), -1, -1, -1)
        painted = self.model(
            pixel_values=_standardise(wanted).to(self.device),
            prompt_pixel_values=_standardise(frames).to(self.device),
            prompt_masks=_standardise(masks.expand(-1, 3, -1, -1)).to(self.device),
            feature_ensemble=len(supports) > 1,
            embedding_type="instance",
        ).pred_masks  # (k 3 2S S): the supports' masks above, the query's below
        predicted = painted[:, :, self.size :].mean(0).cpu()
        deviation, mean = (torch.tensor(values)[:, None, None] for values in (DEVIATION, MEAN))
        brightness = (predicted * deviation + mean).mean(0)
        return from_frame(brightness, (query.shape[0], query.shape[1])) > 0.5


class MatcherLite:
    """DINOv2 (a `Dinov2Model`) finds where the supports' object is, SAM (a `SamModel`) draws it.

    After Matcher (Liu et al., ICLR 2024): patches of the query whose nearest support patch is object and
    which a patch of the object has as its nearest, give point prompts. Of SAM's masks the one is kept that
    agrees best with the map of similarities. Images are resized to so many patches a side.
    """

    def __init__(self, dino: Any, sam: Any, device: torch.device, *, patches: int = DINO_PATCHES) -> None:
        self.dino = dino.to(device).eval().requires_grad_(False)
        self.sam = sam.to(device).eval().requires_grad_(False)
        self.device, self.patches = device, patches
        self.sam_size = int(self.sam.config.vision_config.image_size)

    @property
    def weights_mib(self) -> float:
        return _size_mib(self.dino) + _size_mib(self.sam)

    @torch.inference_mode()
    def predict(self, query: NDArray[np.uint8], supports: Sequence[Support]) -> NDArray[np.bool_]:
        """Mask (h w) of the query; empty when nothing matches."""
        score, points = self._match(query, supports)
        size_hw = (query.shape[0], query.shape[1])
        if not len(points):
            return np.zeros(size_hw, dtype=bool)
        masks = self._draw(query, points)
        where = from_frame(score, size_hw) > 0
        agreement = [(mask & where).sum() / max((mask | where).sum(), 1) for mask in masks]
        return masks[int(np.argmax(agreement))]

    def _match(self, query: NDArray[np.uint8], supports: Sequence[Support]) -> tuple[Tensor, Tensor]:
        """Similarity to the object less similarity to the rest (n n), and points (p 2) as x, y in [0, 1]."""
        n = self.patches
        theirs = self._features([image for image, _ in supports])
        cells = torch.stack([mask_to_frame(mask, n) for _, mask in supports]).flatten()
        inside = (cells >= min(0.5, float(cells.max()))).to(self.device)
        mine = self._features([query])
        similarity = mine @ theirs.T  # (n*n k*n*n)
        nearest = similarity.argmax(1)
        back = similarity.argmax(0)  # of each support patch, its nearest patch of the query
        led_to = torch.zeros(n * n, dtype=torch.bool, device=self.device)
        led_to[back[inside]] = True
        to_object = similarity[:, inside].amax(1)
        score = to_object - similarity[:, ~inside].amax(1) if (~inside).any() else to_object
        candidates = torch.where(inside[nearest] & led_to, to_object, torch.full_like(to_object, -1))
        chosen: list[int] = []
        for index in candidates.argsort(descending=True).tolist():
            if candidates[index] < 0 or len(chosen) == POINTS:
                break
            apart = [max(abs(index // n - c // n), abs(index % n - c % n)) >= POINT_SPACING for c in chosen]
            if all(apart):
                chosen.append(index)
        points = torch.tensor([[(i % n + 0.5) / n, (i // n + 0.5) / n] for i in chosen]).reshape(-1, 2)
        return score.reshape(n, n).float().cpu(), points

    def _features(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Unit features of all patches of all images, (k*n*n c)."""
        frames = stack_frames(images, self.patches * int(self.dino.config.patch_size))
        tokens = self.dino(pixel_values=_standardise(frames).to(self.device)).last_hidden_state
        return F.normalize(tokens[:, 1:].flatten(0, 1).float(), dim=-1)  # the first token is of the whole

    def _draw(self, query: NDArray[np.uint8], points: Tensor) -> list[NDArray[np.bool_]]:
        """SAM's masks (h w) for all points together and for each alone, three of each."""
        height, width = query.shape[:2]
        scale = self.sam_size / max(height, width)
        small_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = cv2.resize(query, (small_hw[1], small_hw[0]), interpolation=cv2.INTER_AREA)
        frame = torch.from_numpy(small).permute(2, 0, 1).float()[None] / 255
        padding = (0, self.sam_size - small_hw[1], 0, self.sam_size - small_hw[0])
        embeddings = self.sam.get_image_embeddings(F.pad(_standardise(frame), padding).to(self.device))
        places = (points * torch.tensor([small_hw[1], small_hw[0]])).to(self.device)
        masks = []
        for prompt in (places[None, None], places[None, :, None]):  # (1 prompts points 2)
            logits = self.sam(image_embeddings=embeddings, input_points=prompt).pred_masks[0]
            large = F.interpolate(logits.float(), size=(self.sam_size, self.sam_size), mode="bilinear")
            whole = large[..., : small_hw[0], : small_hw[1]]
            full = F.interpolate(whole, size=(height, width), mode="bilinear") > 0
            masks += list(full.flatten(0, 1).cpu().numpy())
        return masks


def load_peer(name: str, weights: str | Path | None, device: torch.device) -> SegGpt | MatcherLite:
    """A peer with its weights, from a folder or the local hub cache.

    Args:
        name: one of `PEERS`.
        weights: folder with `seggpt/`, or with `dinov2/` and `sam/`, each as transformers saves a model; None
            for what the Hugging Face cache holds.
        device: where to run it.

    Raises:
        WeightsError: they are not there; nothing is downloaded.
    """
    from transformers import Dinov2Model, SamModel, SegGptForImageSegmentation

    if name == "seggpt":
        return SegGpt(_load(SegGptForImageSegmentation, SEGGPT, weights, "seggpt"), device)
    dino = _load(Dinov2Model, DINO, weights, "dinov2")
    return MatcherLite(dino, _load(SamModel, SAM, weights, "sam"), device)


def _load(network: Any, hub_name: str, weights: str | Path | None, folder: str) -> Any:
    source = hub_name if weights is None else str(Path(weights) / folder)
    try:
        return network.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        where = "in the local Hugging Face cache" if weights is None else "on disk"
        raise WeightsError(
            f"{source} was not found {where}, and nothing is downloaded by itself.",
            f"Fetch it with `hf download {hub_name}`, or name the folder of {folder}/ with --peer-weights.",
        ) from error


def _standardise(frames: Tensor) -> Tensor:
    """(b 3 S S) in [0, 1] to ImageNet's mean and deviation."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return (frames - mean) / deviation


def _size_mib(module: Any) -> float:
    return float(sum(p.numel() * p.element_size() for p in module.parameters())) / 2**20
