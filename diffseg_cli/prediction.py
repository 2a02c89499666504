"""The values the segmenter takes and gives.

Letters: b queries, S image size, H W = S/8, c latent channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.errors import DiffsegError
from diffseg_cli.models.attention import AttentionMaps, ScoreMaps


@dataclass(frozen=True)
class QueryFeatures:
    """Read and encoded queries, in which any number of concepts can be looked for.

    Attributes:
        images: uint8 (h w 3) of each, its own size.
        latents: (b c H W).
        edges: (b 1 E E) in [0, 1], or None when nothing reads them.
        seconds: wall time of each stage, of all of them together.
    """

    images: list[NDArray[np.uint8]]
    latents: Tensor
    edges: Tensor | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class SegmenterOutput:
    """What `Segmenter.forward` gives, in the model frame.

    Attributes:
        maps: the running sums of the look.
        scores: score map and its raw forms, (b 1 H W).
        latents: (b c H W) `L_pre`, or None for the attention head.
        mask_image: (b 1 S S) channel mean of the decoded latents, the predicted mask, about [0, 1] and
            not clipped; for the attention head the score map brought to S.
    """

    maps: AttentionMaps
    scores: ScoreMaps
    latents: Tensor | None
    mask_image: Tensor

    @property
    def probability(self) -> Tensor:
        """(b 1 S S) float32 in [0, 1]: `mask_image` clipped, on its device."""
        return self.mask_image.float().clamp(0, 1)

    def check_finite(self) -> None:
        """Raise as `check_finite` for score map, latents and image."""
        parts = [self.scores.score_map, self.mask_image]
        check_finite(*parts, *([] if self.latents is None else [self.latents]))


def check_finite(*values: Tensor) -> None:
    """An answer made of NaN would read as "nothing found".

    Raises:
        DiffsegError: one of them holds NaN or infinity.
    """
    if not bool(torch.stack([each.isfinite().all() for each in values]).all()):
        dtype = str(values[0].dtype).removeprefix("torch.")
        raise DiffsegError(
            f"The model's answer is not finite (NaN or infinity, in {dtype}); numbers that overflowed in "
            "half precision are the likely cause.",
            "Use --dtype float32; if that is what you have, look for damage with `diffseg models verify`.",
        )


@dataclass(frozen=True)
class Prediction:
    """One segmented query, in its own size and orientation.

    Attributes:
        mask: bool (h w).
        probability: float32 (h w) in [0, 1], borders refined if that was asked for.
        score_map: float32 (h w) `M_a` in [0, 1], before PAM.
        presence: in [0, 1], how sure it is that the concept is in the image; None without calibration.
        threshold: what `mask` was cut at.
        seconds: wall time of each stage; shared stages of a batch are divided by its size.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    score_map: NDArray[np.float32]
    presence: float | None
    threshold: float
    seconds: dict[str, float]


@dataclass(frozen=True)
class Look:
    """A look at one query, for `diffseg attn`.

    Attributes:
        maps: running sums, batch of one.
        scores: maps of eq. 11, (1 1 H W).
        image_hw: the query's own size.
    """

    maps: AttentionMaps
    scores: ScoreMaps
    image_hw: tuple[int, int]
