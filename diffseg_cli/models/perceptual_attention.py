"""Perceptual Attention Module (paper section 4.3, figure 3, eq. 12).

Three attentions turn query latents, support latents and the score map into the latents of a mask image:
query to support (what is it), query to score map (where did the frozen network look), and self-attention
over their mean (settle it). Two additions of ours, with their measurements in docs/notebook.md:

- Eq. 12 has no positions; without them attention to `M_a` sees values and no places. Queries and keys of
  attention 2 and 3 carry 2-D sine-cosine positions.
- What carries over to unseen classes is similarity, not features. Attention 1 compares query and support
  under one metric (query and key share their projection, started at the identity on each group of latent
  channels), and its values carry the support mask, so that every head reports how much of its attention
  fell on the object. A learned null key takes what matches nothing.

Keys and values may be pooled (`key_stride`): deep features hold no more places than that, and attention
costs a quarter.

Letters: b batch, k supports, c latent channels, H W latent size, n = H*W queries, m keys, g heads, d width.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MODES = ("attention", "conv", "none")


def sine_cosine_positions(grid_hw: tuple[int, int], channels: int, *, like: Tensor) -> Tensor:
    """(h*w channels) positions of a grid over the unit square, half the channels per axis, in [-1, 1]."""
    # From half a wave to eight across the image: finer ones would alias on the coarser grid of the keys.
    frequencies = math.pi * 2.0 ** torch.linspace(0, 4, channels // 4, device=like.device)
    axes = []
    for size in grid_hw:
        centres = (torch.arange(size, device=like.device, dtype=torch.float32) + 0.5) / size
        phases = centres[:, None] * frequencies  # (size channels/4)
        axes.append(torch.cat([phases.sin(), phases.cos()], dim=1))
    rows = axes[0][:, None].expand(*grid_hw, -1)  # (h w channels/2)
    columns = axes[1][None].expand(*grid_hw, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).to(like.dtype)  # (h*w channels)


def to_tokens(grid: Tensor) -> Tensor:
    """(b c h w) -> (b h*w c)."""
    return grid.flatten(2).transpose(1, 2)


def to_grid(tokens: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """(b h*w c) -> (b c h w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid_hw)


def pool(grid: Tensor, stride: int) -> Tensor:
    """(b c h w) -> (b c h/stride w/stride); small grids are left as they are."""
    pooled: Tensor = F.avg_pool2d(grid, stride) if stride > 1 and min(grid.shape[-2:]) >= 2 * stride else grid
    return pooled


class SupportAttention(nn.Module):
    """Attention 1: query latents against support latents, under one learned metric a head.

    Args:
        groups: widths of the groups of latent channels, one head each.
        width: d of the output.
        head_width: most channels a head compares; a group's channels are ordered by importance.
        value_width: support channels a head passes on beside its shares.
        key_stride: pooling of keys and values.
    """

    def __init__(
        self, *, groups: Sequence[int], width: int, head_width: int, value_width: int, key_stride: int
    ) -> None:
        super().__init__()
        self.key_stride = key_stride
        head_width = min(head_width, max(groups))
        metric = torch.zeros(len(groups), head_width, sum(groups))
        start = 0
        for head, size in enumerate(groups):
            metric[head, :, start : start + size] = torch.eye(head_width, size)
            start += size
        self.metric = nn.Parameter(metric)  # (g d_g c)
        self.log_temperature = nn.Parameter(torch.full((len(groups),), math.log(20.0)))
        self.null_cosine = nn.Parameter(torch.full((len(groups),), 0.5))
        self.value = nn.Linear(sum(groups), len(groups) * value_width)
        self.out = nn.Linear(len(groups) * (value_width + 2), width)

    def _project(self, tokens: Tensor, last: Tensor) -> Tensor:
        """tokens (b m c), last (g) -> (b g m d_g+1): unit under each head's metric, and one more entry."""
        projected = F.normalize(torch.einsum("bmc,gdc->bgmd", tokens, self.metric), dim=-1)
        return torch.cat([projected, last[None, :, None, None].expand(*projected.shape[:3], 1)], dim=-1)

    def _pooled_tokens(self, grids: Tensor) -> Tensor:
        """(b k c H W) -> (b m c): pooled, and the places of all supports side by side, m = k*h*w."""
        each = [to_tokens(pool(grids[:, index], self.key_stride)) for index in range(grids.shape[1])]
        return torch.stack(each, 1).flatten(1, 2)  # (b k h*w c) -> (b k*h*w c)

    def relations(self, query: Tensor, support: Tensor, masks: Tensor) -> Tensor:
        """Where each head's attention falls.

        Args:
            query: (b c H W) query latents.
            support: (b k c H W) support latents.
            masks: (b k 1 H W) support masks in [0, 1].

        Returns:
            (b g n 2+v): share on the object, share on anything at all, and the values passed on.
        """
        keys_in, on_object = self._pooled_tokens(support), self._pooled_tokens(masks)  # (b m c), (b m 1)
        temperature = self.log_temperature.exp()
        # One softmax takes queries, keys and the null key. A unit query with a 1 appended and a unit key with
        # a 0 appended have their cosine as product; the null key is all zeros but for its last entry, so that
        # its product with every query is `null_cosine`, whatever the query holds.
        attn_q = self._project(to_tokens(query), torch.ones_like(temperature))  # (b g n d_g+1)
        attn_q = attn_q * temperature[None, :, None, None]
        attn_k = self._project(keys_in, torch.zeros_like(temperature))  # (b g m d_g+1)
        zeros = torch.zeros_like(attn_k[:, :, :1, :-1])
        null_cosine = self.null_cosine[None, :, None, None].expand(len(query), -1, 1, 1)
        null = torch.cat([zeros, null_cosine.to(zeros)], -1)  # (b g 1 d_g+1)
        heads = attn_k.shape[1]
        passed_on = self.value(keys_in).unflatten(-1, (heads, -1)).transpose(1, 2)  # (b m g*v) -> (b g m v)
        # Attention to a mask is the share that falls on the object; to ones, the share the null key leaves.
        shares = torch.cat([on_object, torch.ones_like(on_object)], -1)  # (b m 2)
        shares = shares[:, None].expand(-1, heads, -1, -1).to(passed_on)  # (b g m 2)
        values = torch.cat([shares, passed_on], dim=-1)  # (b g m 2+v)
        # Fused kernels want values as wide as keys, and the null key's value is zero.
        width, spare = values.shape[-1], attn_k.shape[-1] - values.shape[-1]
        values = F.pad(values, (0, max(spare, 0), 0, 1))  # (b g m+1 w)
        keys = torch.cat([attn_k, null], dim=2)  # (b g m+1 w)
        if spare < 0:  # few latent channels, as MoVQ's four
            attn_q, keys = F.pad(attn_q, (0, -spare)), F.pad(keys, (0, -spare))
        attended = F.scaled_dot_product_attention(attn_q.to(values), keys.to(values), values, scale=1.0)
        return attended[..., :width]  # (b g n 2+v)

    def forward(self, query: Tensor, support: Tensor, masks: Tensor) -> Tensor:
        """As `relations`, with queries pooled like the keys; returns L_1 (b d H W)."""
        pooled = pool(query, self.key_stride)
        relations = self.relations(pooled, support, masks).transpose(1, 2).flatten(2)  # (b n g*(2+v))
        grid = to_grid(self.out(relations), (pooled.shape[2], pooled.shape[3]))
        return F.interpolate(grid, size=query.shape[-2:], mode="bilinear", align_corners=False)


class SupportConvolution(nn.Conv2d):
    """In the place of attention 1: a convolution over the query and the mean of its supports (table 5)."""

    def __init__(self, *, latent_channels: int, width: int) -> None:
        super().__init__(2 * latent_channels + 1, width, 3, padding=1)

    def forward(self, query: Tensor, support: Tensor, masks: Tensor) -> Tensor:  # type: ignore[override]
        """As `SupportAttention.forward`, of the first view of each support."""
        h = query.shape[-2]
        means = support[..., :h, :].mean(1), masks[..., :h, :].mean(1)
        return super().forward(torch.cat([query, *means], dim=1))


class MapAttention(nn.Module):
    """Attention 2: query latents against the score map, found by position."""

    def __init__(self, *, latent_channels: int, width: int, key_stride: int) -> None:
        super().__init__()
        self.key_stride = key_stride
        self.to_q = nn.Linear(latent_channels, width)
        self.to_k = nn.Linear(1, width)
        self.to_v = nn.Linear(1, width)
        self.position_q = nn.Linear(width, width, bias=False)
        self.position_k = nn.Linear(width, width, bias=False)
        # Started equal and small, so that attention begins as a soft look around the place itself.
        nn.init.normal_(self.position_q.weight, std=1.5 / math.sqrt(width))
        self.position_k.weight.data.copy_(self.position_q.weight.data)
        nn.init.normal_(self.to_q.weight, std=0.02)

    def forward(self, query: Tensor, score_map: Tensor) -> Tensor:
        """query (b c H W), score_map (b 1 H W) in [0, 1] -> L_2 (b d H W)."""
        query_hw = (query.shape[2], query.shape[3])
        pooled = pool(score_map, self.key_stride)
        width = self.to_k.out_features
        places_q = sine_cosine_positions(query_hw, width, like=query)
        places_k = sine_cosine_positions((pooled.shape[2], pooled.shape[3]), width, like=query)
        attn_q = self.to_q(to_tokens(query)) + self.position_q(places_q)  # (b n d)
        attn_k = self.to_k(to_tokens(pooled)) + self.position_k(places_k)  # (b m d)
        attn_v = self.to_v(to_tokens(pooled))  # (b m d)
        attended = F.scaled_dot_product_attention(  # one head: (b 1 n d)
            attn_q[:, None], attn_k[:, None].to(attn_q), attn_v[:, None]
        )
        return to_grid(attended[:, 0], query_hw)


class MapConvolution(nn.Conv2d):
    """In the place of attention 2: a convolution over the query and the score map (table 5)."""

    def __init__(self, *, latent_channels: int, width: int) -> None:
        super().__init__(latent_channels + 1, width, 3, padding=1)

    def forward(self, query: Tensor, score_map: Tensor) -> Tensor:  # type: ignore[override]
        """As `MapAttention.forward`."""
        return super().forward(torch.cat([query, score_map], dim=1))


class SelfAttention(nn.Module):
    """Attention 3: the mean of all three sources against itself, with positions."""

    def __init__(self, *, width: int, heads: int, key_stride: int) -> None:
        super().__init__()
        self.heads, self.key_stride = heads, key_stride
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, fused: Tensor) -> Tensor:
        """L_3 (b d H W) -> what to add to it, (b d H W)."""
        query_hw = (fused.shape[2], fused.shape[3])
        # LayerNorm reads the last axis: (b d H W) -> (b H W d) and back.
        normed = self.norm(fused.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        pooled = pool(normed, self.key_stride)
        key_hw = (pooled.shape[2], pooled.shape[3])
        width = fused.shape[1]
        tokens_q = to_tokens(normed)  # (b n d)
        tokens_k = to_tokens(pooled)  # (b m d)
        places_q = sine_cosine_positions(query_hw, width, like=tokens_q)
        places_k = sine_cosine_positions(key_hw, width, like=tokens_k)
        attn_q, attn_k, attn_v = (
            tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (b n d) -> (b g n d/g)
            for tokens in (
                self.to_q(tokens_q + places_q),
                self.to_k(tokens_k + places_k),
                self.to_v(tokens_k),  # positions say where to look, not what is passed on
            )
        )
        attended = F.scaled_dot_product_attention(attn_q, attn_k, attn_v)
        return to_grid(self.out(attended.transpose(1, 2).flatten(2)), query_hw)  # (b g n d/g) -> (b n d)


class PerceptualAttention(nn.Module):
    """The trained module that turns latents and the score map into a mask's latents.

    Args:
        latent_channels: c.
        groups: widths of the groups of latent channels attention 1 compares apart; they sum to c.
        width: d.
        head_width: most channels a head of attention 1 compares.
        heads: of attention 3; d must divide by it.
        value_width: support channels a head of attention 1 passes on.
        key_stride: pooling of keys and values.
        modes: of attention 1, 2 and 3, each "attention", "conv" (a convolution in its place) or "none"
            (its source is left out of the mean; the paper's table 5).
        channel_dropout: share of latent channels dropped, the same in query and support, when training.
        query_dropout: share of episodes whose L_q is left out of L_3 when training, so that the answer rests
            on comparison and not on what the training classes look like.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        groups: Sequence[int],
        width: int = 64,
        head_width: int = 48,
        heads: int = 4,
        value_width: int = 6,
        key_stride: int = 2,
        modes: Sequence[str] = ("attention", "attention", "attention"),
        channel_dropout: float = 0.3,
        query_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if sum(groups) != latent_channels or not set(modes) <= set(MODES):
            raise ValueError(f"groups {tuple(groups)} must sum to {latent_channels} and modes be of {MODES}")
        self.modes = tuple(modes)
        self.channel_dropout, self.query_dropout = channel_dropout, query_dropout
        self.query_in = nn.Linear(latent_channels, width)
        self.attention_1: nn.Module | None = None
        self.attention_2: nn.Module | None = None
        self.attention_3: nn.Module | None = None
        if modes[0] == "attention":
            self.attention_1 = SupportAttention(
                groups=groups,
                width=width,
                head_width=head_width,
                value_width=value_width,
                key_stride=key_stride,
            )
        elif modes[0] == "conv":
            self.attention_1 = SupportConvolution(latent_channels=latent_channels, width=width)
        if modes[1] == "attention":
            self.attention_2 = MapAttention(
                latent_channels=latent_channels, width=width, key_stride=key_stride
            )
        elif modes[1] == "conv":
            self.attention_2 = MapConvolution(latent_channels=latent_channels, width=width)
        if modes[2] == "attention":
            self.attention_3 = SelfAttention(width=width, heads=heads, key_stride=key_stride)
        elif modes[2] == "conv":
            self.attention_3 = nn.Conv2d(width, width, 3, padding=1)
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, latent_channels, 1),  # linear: latents are signed
        )

    def draw_drops(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """What is left out in each of `count` episodes when training.

        Returns:
            (count c) factors of the latent channels of query and support, 0 or 1 / (1 - share); (count)
            factors of the query's own latents in L_3, 0 or 1. On the CPU.
        """
        kept = 1 - self.channel_dropout
        channels = torch.rand(count, self.query_in.in_features, generator=generator) < kept
        query = torch.rand(count, generator=generator) >= self.query_dropout
        return channels.float() / kept, query.float()

    def forward(
        self,
        query: Tensor,
        support: Tensor,
        masks: Tensor,
        score_map: Tensor,
        drops: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Predict the latents of the query's mask image.

        Args:
            query: (b c H W) latents of the queries.
            support: (b k c H W) latents of their supports (k = 1 after fusion by mean).
            masks: (b k 1 H W) support masks at the size of the latents, in [0, 1].
            score_map: (b 1 H W) `M_a` in [0, 1].
            drops: what `draw_drops` gave; None draws when training and leaves nothing out otherwise.

        Returns:
            (b c H W) `L_pre`.
        """
        if drops is None and self.training:
            drops = self.draw_drops(len(query))
        if drops is not None:
            channels = drops[0].to(query)
            query, support = query * channels[:, :, None, None], support * channels[:, None, :, None, None]
        grid_hw = (query.shape[2], query.shape[3])
        itself = self.query_in(to_tokens(query))  # (b n d)
        if drops is not None:
            itself = itself * drops[1].to(itself)[:, None, None]
        sources = [to_grid(itself, grid_hw)]  # L_q, and L_1 and L_2 unless left out: (b d H W) each
        if self.attention_1 is not None:
            sources.append(self.attention_1(query, support, masks))
        if self.attention_2 is not None:
            sources.append(self.attention_2(query, score_map))
        fused = torch.stack(sources).mean(0)  # L_3: (b d H W)
        if self.attention_3 is not None:
            fused = fused + self.attention_3(fused)
        latents: Tensor = self.conv(fused)
        return latents
