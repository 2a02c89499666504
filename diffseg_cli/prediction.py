"""The values the segmenter takes and gives.

Letters: b queries, k supports, S picture size, H W = S/8, c latent channels, t prompt tokens, d their width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffseg_cli.errors import WeightsError
from diffseg_cli.models.attention import AttentionMaps, ScoreMaps


@dataclass(frozen=True)
class SupportFeatures:
    """Encoded supports, reusable for any number of queries.

    Attributes:
        backbone: name of the backbone that encoded them.
        fingerprint: of its weights.
        latents: (b k c H W); b is 1 when the same supports serve every query.
        masks: (b k 1 H W) share of each latent's cell that is object, in [0, 1].
        image_embeds: (b k t d) prompt.
    """

    backbone: str
    fingerprint: str
    latents: Tensor
    masks: Tensor
    image_embeds: Tensor

    def check_made_by(self, backbone: str, fingerprint: str) -> None:
        """Raise WeightsError unless this backbone, with these weights, encoded them."""
        if (self.backbone, self.fingerprint) != (backbone, fingerprint):
            raise WeightsError(
                f"The supports were encoded by {self.backbone} ({self.fingerprint}), and this is "
                f"{backbone} ({fingerprint}).",
                "Encode them again with this model.",
            )

    def fused(self, fusion: str) -> "SupportFeatures":
        """Supports as the modules read them: all of them ("concat") or their mean as one ("mean")."""
        if fusion == "concat":
            return self
        mean = [values.mean(1, keepdim=True) for values in (self.latents, self.masks, self.image_embeds)]
        return SupportFeatures(self.backbone, self.fingerprint, *mean)


@dataclass(frozen=True)
class QueryFeatures:
    """Read and encoded queries, in which any number of things can be looked for.

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
        picture: (b 1 S S) the predicted mask picture, channel mean of the decoded latents, about [0, 1] and
            not clipped; for the attention head the score map brought to S.
    """

    maps: AttentionMaps
    scores: ScoreMaps
    latents: Tensor | None
    picture: Tensor


@dataclass(frozen=True)
class Prediction:
    """One segmented query, in its own size and orientation.

    Attributes:
        mask: bool (h w).
        probability: float32 (h w) in [0, 1], borders refined if that was asked for.
        score_map: float32 (h w) `M_a` in [0, 1], before PAM.
        presence: in [0, 1], how sure it is that the thing is in the picture; None without calibration.
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
