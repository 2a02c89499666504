"""From joint attention to a score map: split, sum, smooth (paper section 4.2, eq. 7 and 11).

A layer of the frozen network attends over `[t image tokens | n spatial tokens]` under one softmax. The
image columns say how much of the prompt a place takes up (cross); the spatial columns, renormalised, say
which places belong together (affinity). The paper averages both over all layers at the size of the
latents and multiplies them. The (HW)x(HW) average is never built here: it is linear, so one running sum
of affinities per scale and two bilinear resizings give the same product in O(n^2) per scale.

Letters: b batch, a heads, l layer, h w grid of one scale, n = h*w, t image tokens, H W size of the latents.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

GridHW = tuple[int, int]


@dataclass(frozen=True)
class LayerAttention:
    """What one attention layer did, handed to the `on_layer` callback of a look.

    Attributes:
        name: path of the layer inside the network, e.g. "down_blocks.1.attentions.0".
        timestep: the noise level of this look.
        grid_hw: (h, w) of the layer.
        image_tokens: t, the number of leading key columns that belong to the prompt.
        probabilities: (b a n t+n) softmax over keys, rows sum to 1.
    """

    name: str
    timestep: int
    grid_hw: GridHW
    image_tokens: int
    probabilities: Tensor


OnLayer = Callable[[LayerAttention], None]


def split_joint_attention(probabilities: Tensor, image_tokens: int) -> tuple[Tensor, Tensor]:
    """Split joint attention into its two meanings, averaged over heads.

    Args:
        probabilities: (b a n t+n) softmax over `[image | spatial]` keys.
        image_tokens: t.

    Returns:
        cross: (b n) share of the prompt in each place, in [0, 1].
        affinity: (b n n) row-stochastic similarity between places.
    """
    return split_head_mean(probabilities.float().mean(dim=1), image_tokens)


def split_head_mean(mean: Tensor, image_tokens: int) -> tuple[Tensor, Tensor]:
    """`split_joint_attention` of what is already averaged over heads: mean (b n t+n)."""
    cross = mean[..., :image_tokens].sum(-1)
    spatial = mean[..., image_tokens:]
    return cross, spatial / spatial.sum(-1, keepdim=True).clamp_min(1e-12)


@dataclass
class AttentionMaps:
    """Running sums over the layers (and timesteps) of a look, one entry per scale.

    Attributes:
        cross: (h, w) -> (b n) sum of `cross` over the layers of that scale.
        affinity: (h, w) -> (b n n) sum of `affinity` over the layers of that scale.
        layers: (h, w) -> how many layers were summed.
        even_share: (h, w) -> what `cross` would be in a layer of that scale that preferred no key, in (0, 1]:
            t / (t + n) where the softmax has no bias. It falls as the grid grows finer.
    """

    cross: dict[GridHW, Tensor] = field(default_factory=dict)
    affinity: dict[GridHW, Tensor] = field(default_factory=dict)
    layers: dict[GridHW, int] = field(default_factory=dict)
    even_share: dict[GridHW, float] = field(default_factory=dict)

    def add(self, grid_hw: GridHW, cross: Tensor, affinity: Tensor, even_share: float = 1.0) -> None:
        """Add one layer, to the first one's own tensors. cross: (b n), affinity: (b n n)."""
        if grid_hw in self.cross:
            self.cross[grid_hw] += cross
            self.affinity[grid_hw] += affinity
        else:
            self.cross[grid_hw], self.affinity[grid_hw] = cross, affinity
        self.layers[grid_hw] = self.layers.get(grid_hw, 0) + 1
        self.even_share[grid_hw] = even_share

    def only(self, grid_hw: GridHW) -> "AttentionMaps":
        """The sums of one scale alone, to look at it by itself."""
        return AttentionMaps(
            {grid_hw: self.cross[grid_hw]},
            {grid_hw: self.affinity[grid_hw]},
            {grid_hw: self.layers[grid_hw]},
            {grid_hw: self.even_share[grid_hw]},
        )

    def balanced(self) -> "AttentionMaps":
        """`cross` as a multiple of its even share, so that coarse scales do not rule the mean of all."""
        return replace(
            self, cross={grid: cross / self.even_share[grid] for grid, cross in self.cross.items()}
        )

    def less(self, other: "AttentionMaps") -> "AttentionMaps":
        """`cross` less that of another look at the same queries, in as many layers; it may be negative."""
        return replace(self, cross={grid: cross - other.cross[grid] for grid, cross in self.cross.items()})


@dataclass(frozen=True)
class ScoreMaps:
    """The guidance a look gives (eq. 11), at the size of the latents.

    Attributes:
        score_map: (b 1 H W) `M_a`, min-max normalised per image, in [0, 1].
        cross_map: (b 1 H W) `M_cross` before smoothing, not normalised: mean prompt share, in [0, 1], or what
            `AttentionMaps.balanced` or `less` made of it.
        raw_map: (b 1 H W) `M_self vec(M_cross)` before normalisation; its level tells if anything matched.
    """

    score_map: Tensor
    cross_map: Tensor
    raw_map: Tensor


def upsampling_matrix(size_out: int, size_in: int, *, like: Tensor) -> Tensor:
    """(size_out size_in) matrix of linear interpolation, as `interpolate(align_corners=False)` does it."""
    identity = torch.eye(size_in, device=like.device, dtype=torch.float32)[None]
    return F.interpolate(identity, size=size_out, mode="linear", align_corners=False)[0].T.to(like.dtype)


def _upsample(values: Tensor, grid_hw: GridHW, output_hw: GridHW) -> Tensor:
    """U: (b n) on a grid -> (b H W), bilinear."""
    b = values.shape[0]
    return F.interpolate(values.view(b, 1, *grid_hw), size=output_hw, mode="bilinear", align_corners=False)[
        :, 0
    ]


def _gather(values: Tensor, grid_hw: GridHW) -> Tensor:
    """D: (b H W) -> (b n), the transpose of U with its rows made to sum to 1."""
    up_y = upsampling_matrix(values.shape[1], grid_hw[0], like=values)  # (H h)
    up_x = upsampling_matrix(values.shape[2], grid_hw[1], like=values)  # (W w)
    summed = up_y.T @ values @ up_x  # (b h w)
    return (summed / (up_y.sum(0)[:, None] * up_x.sum(0)[None, :])).flatten(1)


def normalise(maps: Tensor) -> Tensor:
    """Min-max per image over the last two axes; a flat map becomes all zeros."""
    low = maps.amin(dim=(-2, -1), keepdim=True)
    high = maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


def cross_map(maps: AttentionMaps, output_hw: GridHW) -> Tensor:
    """`M_cross`: mean over layers of the upsampled prompt share. Returns (b H W), in [0, 1]."""
    total = sum(maps.layers.values())
    ups = [_upsample(cross, grid_hw, output_hw) for grid_hw, cross in maps.cross.items()]
    return torch.stack(ups).sum(0) / total


def smooth_by_affinity(maps: AttentionMaps, values: Tensor) -> Tensor:
    """`M_self vec(values)` without `M_self`: each place takes the mean of the places it attends to.

    Args:
        maps: the sums of a look.
        values: (b H W) any map.

    Returns:
        (b H W).
    """
    total = sum(maps.layers.values())
    result = torch.zeros_like(values)
    for grid_hw, affinity in maps.affinity.items():
        on_grid = (affinity @ _gather(values, grid_hw)[..., None])[..., 0]  # (b n)
        result = result + _upsample(on_grid, grid_hw, (values.shape[1], values.shape[2]))
    return result / total


def affinity_of(maps: AttentionMaps, weights: Tensor) -> Tensor:
    """Where a place (or a region) looks: `M_self^T vec(weights)`, again without `M_self`.

    Args:
        maps: the sums of a look.
        weights: (b H W) non-negative, the point or region asked about; made to sum to 1.

    Returns:
        (b H W) attention the region pays to each place; sums to 1.
    """
    total = sum(maps.layers.values())
    weights = weights / weights.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    size_hw = (weights.shape[1], weights.shape[2])
    result = torch.zeros_like(weights)
    for (h, w), affinity in maps.affinity.items():
        up_y, up_x = (
            upsampling_matrix(size_hw[0], h, like=weights),
            upsampling_matrix(size_hw[1], w, like=weights),
        )
        rows = (up_y.T @ weights @ up_x).flatten(1)  # U^T v: (b n)
        paid = (rows[:, None] @ affinity)[:, 0].view(-1, h, w)  # (b h w)
        result = result + up_y @ (paid / (up_y.sum(0)[:, None] * up_x.sum(0)[None, :])) @ up_x.T
    return result / total


def score_maps(maps: AttentionMaps, output_hw: GridHW) -> ScoreMaps:
    """`M_a = norm(M_self vec(M_cross))` (eq. 11) at the size of the latents.

    Args:
        maps: the sums of one look.
        output_hw: (H, W) of the latents.
    """
    cross = cross_map(maps, output_hw)
    raw = smooth_by_affinity(maps, cross)
    return ScoreMaps(score_map=normalise(raw)[:, None], cross_map=cross[:, None], raw_map=raw[:, None])
