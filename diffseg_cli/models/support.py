"""Encoded supports: what a backbone makes of the labelled images of a class, once for any number of queries.

Letters: b queries, k supports, c latent channels, H W latent size, t prompt tokens, d their width.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffseg_cli.errors import WeightsError
from diffseg_cli.models.backbone import Backbone

TENSORS = ("latents", "masks", "image_embeds")  # in the order of the digest


@dataclass(frozen=True, eq=False, repr=False)
class SupportFeatures:
    """Encoded supports of one class.

    Attributes:
        backbone: name of the backbone that encoded them.
        fingerprint: of its weights.
        latents: (b k c vH W), v views of each support one below the other; b is 1 when the same supports
            serve every query.
        masks: (b k 1 vH W) share of each latent's cell that is object, in [0, 1].
        image_embeds: (b k t d) prompt.
    """

    backbone: str
    fingerprint: str
    latents: Tensor
    masks: Tensor
    image_embeds: Tensor

    def __repr__(self) -> str:
        h, w = self.latents.shape[-2:]
        return f"SupportFeatures({self.shots} of {self.backbone}, latents {h} x {w})"

    @classmethod
    def of(
        cls, backbone: Backbone, latents: Tensor, masks: Tensor, image_embeds: Tensor
    ) -> "SupportFeatures":
        """What this backbone encoded; shapes as of the attributes."""
        return cls(backbone.name, backbone.fingerprint, latents, masks, image_embeds)

    @classmethod
    def join(cls, parts: Sequence["SupportFeatures"]) -> "SupportFeatures":
        """Supports that were encoded apart, as one set of all of them in this order.

        Raises:
            ValueError: there are none, or not all were encoded by the same backbone.
        """
        if len({(part.backbone, part.fingerprint) for part in parts}) != 1:
            raise ValueError("supports to join must be encoded by one backbone")
        joined = [torch.cat([getattr(part, name) for part in parts], dim=1) for name in TENSORS]
        return SupportFeatures(parts[0].backbone, parts[0].fingerprint, *joined)

    @classmethod
    def stack(cls, rows: Sequence["SupportFeatures"]) -> "SupportFeatures":
        """Supports of several queries, each with one row and as many supports as the others, as (b k ...)."""
        stacked = [torch.cat([getattr(row, name) for row in rows]) for name in TENSORS]
        return cls(rows[0].backbone, rows[0].fingerprint, *stacked)

    @property
    def shots(self) -> int:
        """k."""
        return self.latents.shape[1]

    @property
    def digest(self) -> str:
        """SHA-256 of the tensors' bytes. Their shapes follow from backbone and k, so they are left out."""
        digest = hashlib.sha256()
        for name in TENSORS:
            tensor: Tensor = getattr(self, name)
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def choose(self, indices: Sequence[int]) -> "SupportFeatures":
        """Some of the supports, in the given order."""
        chosen = list(indices)
        return self._each(lambda values: values[:, chosen])

    def seen_again(self, latents: Tensor, masks: Tensor) -> "SupportFeatures":
        """With one more view of each support below the others: latents (b k c H W), masks (b k 1 H W)."""
        below = torch.cat([self.latents, latents], -2), torch.cat([self.masks, masks], -2)
        return SupportFeatures(self.backbone, self.fingerprint, *below, self.image_embeds)

    def fused(self, fusion: str) -> "SupportFeatures":
        """Supports as the modules read them: all of them ("concat") or their mean as one ("mean")."""
        return self if fusion == "concat" else self._each(lambda values: values.mean(1, keepdim=True))

    def to(
        self, device: torch.device | None = None, dtype: torch.dtype | None = None, *, copy: bool = False
    ) -> "SupportFeatures":
        """On a device and in a number format, as `Tensor.to`; None leaves it as it is."""
        return self._each(lambda values: values.to(device=device, dtype=dtype, copy=copy))

    def check_made_by(self, backbone: Backbone) -> None:
        """Raise WeightsError unless this backbone, with these weights, encoded them."""
        if (self.backbone, self.fingerprint) != (backbone.name, backbone.fingerprint):
            raise WeightsError(
                f"The supports were encoded by {self.backbone} ({self.fingerprint}), and this is "
                f"{backbone.name} ({backbone.fingerprint}).",
                "Encode them again with this model.",
            )

    def _each(self, change: Callable[[Tensor], Tensor]) -> "SupportFeatures":
        changed = [change(getattr(self, name)) for name in TENSORS]
        return SupportFeatures(self.backbone, self.fingerprint, *changed)
