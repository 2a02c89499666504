"""SCM and PAM: what the method promises of them before any training."""

import pytest
import torch

from diffseg_cli.models.perceptual_attention import (
    MODES,
    PerceptualAttention,
    SelfAttention,
    SupportAttention,
    sine_cosine_positions,
)
from diffseg_cli.models.spatial_control import SpatialControl

GROUPS = (6, 10)
CHANNELS = sum(GROUPS)


def make_pam(**changes: object) -> PerceptualAttention:
    torch.manual_seed(0)
    settings: dict = {"latent_channels": CHANNELS, "groups": GROUPS, "width": 16, "heads": 2}
    settings |= {"head_width": 8, "value_width": 2}
    return PerceptualAttention(**{**settings, **changes}).eval()


def episode(b: int = 2, k: int = 3, size_hw: tuple[int, int] = (8, 12)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(b, CHANNELS, *size_hw, generator=generator)
    support = torch.randn(b, k, CHANNELS, *size_hw, generator=generator)
    masks = (torch.rand(b, k, 1, *size_hw, generator=generator) > 0.5).float()
    return query, support, masks, torch.rand(b, 1, *size_hw, generator=generator)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("scales", [None, (1,), ()])
def test_untrained_scm_changes_nothing_bit_for_bit(shared: bool, scales: tuple[int, ...] | None) -> None:
    scm = SpatialControl(scale_widths=(12, 20, 28), width=16, shared=shared, scales=scales)
    hidden = [torch.randn(2, 12, 8, 8), torch.randn(2, 20, 4, 4), torch.randn(2, 28, 2, 2)]
    residuals = scm(scm.edge_features(torch.rand(2, 1, 50, 50), (16, 16)), hidden)
    for state, residual in zip(hidden, residuals, strict=True):
        assert residual.shape == state.shape
        assert torch.equal(state + residual, state)


def test_scm_gets_gradient_and_reacts_to_edges_once_trained() -> None:
    torch.manual_seed(0)
    scm = SpatialControl(scale_widths=(12, 20), width=16)
    hidden = [torch.randn(1, 12, 8, 8), torch.randn(1, 20, 4, 4)]
    edges = torch.zeros(1, 1, 64, 64)
    optimizer = torch.optim.SGD(scm.parameters(), lr=0.5)
    for _ in range(2):  # the zero outputs move first, then everything before them
        loss = sum((r - 1).square().mean() for r in scm(scm.edge_features(edges, (16, 16)), hidden))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in scm.adapters.parameters())
    quiet = scm(scm.edge_features(edges, (16, 16)), hidden)[0]
    edges[..., 20:30, 20:30] = 1
    loud = scm(scm.edge_features(edges, (16, 16)), hidden)[0]
    assert (quiet - loud).abs().max() > 0


def test_scm_shares_one_trunk_unless_told_otherwise() -> None:
    shared, separate = (SpatialControl(scale_widths=(8, 8, 8), shared=flag) for flag in (True, False))
    assert len(shared.trunks) == 1 and len(separate.trunks) == 3


def test_scm_leaves_uncontrolled_scales_alone() -> None:
    scm = SpatialControl(scale_widths=(8, 8), width=8, scales=(1,))
    for parameter in scm.outputs.parameters():
        torch.nn.init.ones_(parameter)
    residuals = scm(scm.edge_features(torch.rand(1, 1, 32, 32), (8, 8)), [torch.randn(1, 8, 4, 4)] * 2)
    assert residuals[0].abs().sum() == 0 and residuals[1].abs().sum() > 0


def test_moving_the_score_map_moves_what_attention_2_adds() -> None:
    """A blob in `M_a` must be felt at its own place: with positions, and not without them."""
    pam = make_pam()
    assert pam.attention_2 is not None
    query = torch.zeros(1, CHANNELS, 16, 16)
    maps = torch.zeros(2, 1, 16, 16)
    maps[0, :, 2:6, 2:6] = 1
    maps[1, :, 10:14, 10:14] = 1
    with torch.no_grad():
        flat = pam.attention_2(query, torch.zeros(1, 1, 16, 16))
        felt = [(pam.attention_2(query, m[None]) - flat).abs().sum(1)[0] for m in maps]
        for change, m in zip(felt, maps, strict=True):
            assert change[m[0] == 1].mean() > 3 * change[m[0] == 0].mean()
        pam.attention_2.position_q.weight.zero_()
        pam.attention_2.position_k.weight.zero_()
        blind = [pam.attention_2(query, m[None]) for m in maps]
    torch.testing.assert_close(blind[0], blind[1])


def test_moving_the_score_map_moves_the_output() -> None:
    pam = make_pam()
    query, support, masks, _ = episode(b=1, size_hw=(16, 16))
    maps = torch.zeros(2, 1, 16, 16)
    maps[0, :, 2:6, 2:6] = 1
    maps[1, :, 10:14, 10:14] = 1
    with torch.no_grad():
        first, second = (pam(query, support, masks, m[None]) for m in maps)
    change = (first - second).abs().sum(1)[0]
    either = maps.sum((0, 1)) > 0
    assert change[either].mean() > 2 * change[~either].mean()


@pytest.mark.parametrize("value_width", [2, 12])
def test_support_attention_equals_explicit_softmax(value_width: int) -> None:
    """Also with values wider than keys, as four latent channels make them."""
    torch.manual_seed(0)
    attention = SupportAttention(groups=GROUPS, width=16, head_width=8, value_width=value_width, key_stride=1)
    query, support, masks, _ = episode(b=2, k=2, size_hw=(4, 6))
    found = attention.relations(query, support, masks)
    keys = support.permute(0, 1, 3, 4, 2).flatten(1, 3)
    on_object = masks.permute(0, 1, 3, 4, 2).flatten(1, 3)
    queries = query.flatten(2).transpose(1, 2)
    for head in range(len(GROUPS)):
        attn_q, attn_k = (
            torch.nn.functional.normalize(x @ attention.metric[head].T, dim=-1) for x in (queries, keys)
        )
        logits = attn_q @ attn_k.transpose(1, 2)
        null = attention.null_cosine[head].expand(*logits.shape[:2], 1)
        share = (attention.log_temperature[head].exp() * torch.cat([logits, null], -1)).softmax(-1)[..., :-1]
        torch.testing.assert_close(found[:, head, :, 0], (share @ on_object)[..., 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[:, head, :, 1], share.sum(-1), atol=1e-5, rtol=1e-4)
        passed_on = attention.value(keys)[..., head * value_width : (head + 1) * value_width]
        torch.testing.assert_close(found[:, head, :, 2:], share @ passed_on, atol=1e-5, rtol=1e-4)


def test_self_attention_equals_explicit_softmax_over_tokens_with_positions() -> None:
    """Pooled keys and values; queries and keys know their places, values do not."""
    torch.manual_seed(0)
    width, heads, size_hw = 16, 2, (4, 6)
    attention = SelfAttention(width=width, heads=heads, key_stride=2)
    fused = torch.randn(2, width, *size_hw)
    normed = attention.norm(fused.permute(0, 2, 3, 1))
    pooled = torch.nn.functional.avg_pool2d(normed.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    tokens = normed.flatten(1, 2)
    queries = attention.to_q(tokens + sine_cosine_positions(size_hw, width, like=tokens))
    keys = attention.to_k(pooled + sine_cosine_positions((2, 3), width, like=tokens))
    values, found = attention.to_v(pooled), []
    for q, k, v in zip(*(each.split(width // heads, -1) for each in (queries, keys, values)), strict=True):
        found.append((q @ k.transpose(1, 2) / (width // heads) ** 0.5).softmax(-1) @ v)
    expected = attention.out(torch.cat(found, -1)).transpose(1, 2).unflatten(2, size_hw)
    torch.testing.assert_close(attention(fused), expected, atol=1e-5, rtol=1e-4)


def test_untrained_attention_1_finds_a_copied_object() -> None:
    """The metric starts at the identity: a query that repeats the support's features finds its mask."""
    attention = SupportAttention(groups=GROUPS, width=16, head_width=10, value_width=2, key_stride=1)
    _, support, masks, _ = episode(b=1, k=1, size_hw=(8, 8))
    share = attention.relations(support[:, 0], support, masks)[0, :, :, 0]  # (g n)
    inside = masks.flatten() > 0.5
    assert (share[:, inside].mean(1) > share[:, ~inside].mean(1) + 0.3).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_attention_can_be_left_out_or_replaced(mode: str, which: int) -> None:
    modes = ["attention"] * 3
    modes[which] = mode
    pam, name = make_pam(modes=modes), f"attention_{which + 1}"
    assert pam(*episode()).shape == (2, CHANNELS, 8, 12)
    query, support, masks, score_map = episode()
    once = pam(query, support, masks, score_map)
    views = torch.cat([support, support.flip(-1)], -2), torch.cat([masks, masks], -2)
    twice = pam(query, *views, score_map)  # supports in two views; a convolution has room for the first
    assert torch.allclose(once, twice, atol=1e-5) == (which == 0 and mode != "attention")
    if mode == "none":
        assert getattr(pam, name) is None
    if mode == "conv":  # the names of its tensors in checkpoints
        own = {key for key in pam.state_dict() if key.startswith(name)}
        assert own == {f"{name}.weight", f"{name}.bias"}


def test_batch_equals_single_and_support_order_does_not_matter() -> None:
    pam = make_pam()
    query, support, masks, score_map = episode()
    with torch.no_grad():
        both = pam(query, support, masks, score_map)
        alone = torch.cat(
            [pam(*(t[i : i + 1] for t in (query, support, masks, score_map))) for i in range(2)]
        )
        turned = pam(query, support.flip(1), masks.flip(1), score_map)
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both, turned, atol=1e-5, rtol=1e-4)


def test_output_latents_are_signed() -> None:
    latents = make_pam()(*episode())
    assert latents.min() < 0 < latents.max()


def test_dropout_only_when_training() -> None:
    for settings in (
        {"channel_dropout": 0.5, "query_dropout": 0.0},
        {"channel_dropout": 0.0, "query_dropout": 0.5},
    ):
        pam = make_pam(**settings)
        inputs = episode(b=16)
        torch.testing.assert_close(pam(*inputs), pam(*inputs))
        pam.train()
        assert not torch.equal(pam(*inputs), pam(*inputs))


def test_channels_that_stay_make_up_for_those_that_are_dropped() -> None:
    channels, query = make_pam(channel_dropout=0.2, query_dropout=0.5).draw_drops(400)
    assert channels.unique().tolist() == [0, 1.25] and query.unique().tolist() == [0, 1]
    assert float(channels.mean()) == pytest.approx(1, abs=0.05)


def test_query_dropout_leaves_out_whole_queries_and_nothing_else() -> None:
    pam = make_pam(channel_dropout=0.0, query_dropout=0.5).train()
    inputs = episode(b=16)
    with torch.no_grad():
        dropped, kept = pam(*inputs), pam.eval()(*inputs)
        torch.nn.init.zeros_(pam.query_in.weight)
        torch.nn.init.zeros_(pam.query_in.bias)
        without = pam(*inputs)
    same = [(dropped - other).abs().amax((1, 2, 3)) < 1e-5 for other in (kept, without)]
    assert torch.equal(same[0], ~same[1]) and 0 < same[0].sum() < 16


def test_wrong_groups_and_modes_are_programming_errors() -> None:
    with pytest.raises(ValueError, match="must sum"):
        make_pam(groups=(3, 4))
    with pytest.raises(ValueError, match="modes"):
        make_pam(modes=("attention", "mlp", "none"))


def test_positions_tell_places_apart() -> None:
    places = sine_cosine_positions((6, 9), 32, like=torch.zeros(1))
    assert places.shape == (54, 32)
    distances = torch.cdist(places, places) + 10 * torch.eye(54)
    assert distances.min() > 0.1
