"""Spatial Control Module (paper section 4.4, figure 4): edges of the query steer its attention maps.

Hidden states of the down path are merged with edge features at the size of the latents, pass one trunk
shared by all scales, and come back as residuals for the same scales. The last linear of every scale starts
at zero, so an untrained module changes nothing, bit for bit.

Letters: b batch, S image size, H W = S/8, e trunk width, s scale, h_s w_s its grid.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Trunk(nn.Module):
    """linear -> LayerNorm -> MLP, plus the linear's output -> linear; (... 2e) -> (... e)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        merged = self.merge(tokens)
        out: Tensor = self.out(merged + self.mlp(self.norm(merged)))
        return out


class SpatialControl(nn.Module):
    """Turn an edge map and the hidden states of a look into residuals for its attention layers.

    Args:
        scale_widths: channels of the hidden states, finest scale first.
        width: e, of the trunk.
        shared: one trunk for all scales (the paper's choice) or one each (its table 6).
        scales: indices of the scales that are controlled; the others get no residual (table 6).
    """

    def __init__(
        self,
        *,
        scale_widths: Sequence[int],
        width: int = 48,
        shared: bool = True,
        scales: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.scales = tuple(range(len(scale_widths)) if scales is None else scales)
        self.edge_blocks = nn.Sequential(
            nn.Conv2d(1, width // 4, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width // 4, width // 2, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, 1, 1),
            nn.ReLU(),
        )
        self.adapters = nn.ModuleList(nn.Linear(channels, width) for channels in scale_widths)
        self.trunks = nn.ModuleList(Trunk(width) for _ in (scale_widths[:1] if shared else scale_widths))
        self.outputs = nn.ModuleList(nn.Linear(width, channels) for channels in scale_widths)
        for parameter in self.outputs.parameters():
            nn.init.zeros_(parameter)

    def edge_features(self, edges: Tensor, latent_hw: tuple[int, int]) -> Tensor:
        """Edge maps of any size -> features at the size of the latents.

        Args:
            edges: (b 1 h w) in [0, 1]; brought to four times the latents, where edges are still thin.
            latent_hw: (H, W).

        Returns:
            (b e H W).
        """
        size_hw = (4 * latent_hw[0], 4 * latent_hw[1])
        features: Tensor = self.edge_blocks(
            F.interpolate(edges, size=size_hw, mode="bilinear", align_corners=False)
        )
        return features

    def bind(self, edges: Tensor, latents: Tensor) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
        """The `Control` of a look at latents (b c H W) whose images have edges (b 1 h w)."""
        edge_features = self.edge_features(edges.to(latents), (latents.shape[2], latents.shape[3]))
        return lambda hidden_states: self(edge_features, hidden_states)

    def forward(self, edge_features: Tensor, hidden_states: Sequence[Tensor]) -> list[Tensor]:
        """One residual per scale.

        Args:
            edge_features: (b e H W), computed once a query.
            hidden_states: (b width_s h_s w_s) each, finest scale first.

        Returns:
            Tensors of the same shapes, to be added to the hidden states that enter the attention layers.
        """
        residuals = []
        for index, hidden in enumerate(hidden_states):
            if index not in self.scales:
                residuals.append(hidden.new_zeros(hidden.shape))
                continue
            # Linears and the trunk read the last axis, resizing the last two: channels go back and forth.
            tokens = self.adapters[index](hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (b e h_s w_s)
            tokens = F.interpolate(  # (b e H W)
                tokens, size=edge_features.shape[-2:], mode="bilinear", align_corners=False
            )
            both = torch.cat([tokens, edge_features], dim=1).permute(0, 2, 3, 1)  # (b H W 2e)
            trunk = self.trunks[index if len(self.trunks) > 1 else 0]
            controlled = trunk(both).permute(0, 3, 1, 2)  # (b e H W)
            back = F.adaptive_avg_pool2d(controlled, (hidden.shape[2], hidden.shape[3]))  # (b e h_s w_s)
            residual = self.outputs[index](back.permute(0, 2, 3, 1))  # (b h_s w_s width_s)
            residuals.append(residual.permute(0, 3, 1, 2))  # (b width_s h_s w_s)
        return residuals
