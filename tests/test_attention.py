"""Running sums against the definition: the naive (HW)x(HW) product of eq. 11."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffseg_cli.models.attention import (
    AttentionMaps,
    affinity_of,
    cross_map,
    normalise,
    score_maps,
    smooth_by_affinity,
    split_joint_attention,
    upsampling_matrix,
)

OUTPUT_HW = (12, 16)
IMAGE_TOKENS = 3


def random_layers(seed: int, grids: list[tuple[int, int]], b: int = 2, heads: int = 2) -> list[tuple]:
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for h, w in grids:
        logits = 3 * torch.randn(b, heads, h * w, IMAGE_TOKENS + h * w, generator=generator)
        layers.append(((h, w), logits.softmax(-1)))
    return layers


def summed(layers: list[tuple]) -> AttentionMaps:
    maps = AttentionMaps()
    for grid_hw, probabilities in layers:
        maps.add(grid_hw, *split_joint_attention(probabilities, IMAGE_TOKENS))
    return maps


def naive_self_matrix(layers: list[tuple], output_hw: tuple[int, int]) -> torch.Tensor:
    """`M_self` written out, (b HW HW): both sides of every layer's affinity brought to the latents' size."""
    b, size = layers[0][1].shape[0], output_hw[0] * output_hw[1]
    total = torch.zeros(b, size, size)
    for (h, w), probabilities in layers:
        _, affinity = split_joint_attention(probabilities, IMAGE_TOKENS)
        like = torch.zeros(1)
        up = torch.kron(
            upsampling_matrix(output_hw[0], h, like=like), upsampling_matrix(output_hw[1], w, like=like)
        )  # (HW n)
        down = up.T / up.T.sum(1, keepdim=True)
        total += up @ affinity @ down
    return total / len(layers)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), output=st.sampled_from([(12, 16), (8, 8), (9, 5)]))
def test_running_sums_equal_the_naive_product(seed: int, output: tuple[int, int]) -> None:
    layers = random_layers(seed, [(4, 8), (4, 8), (2, 4), (3, 3)])
    maps = summed(layers)
    values = torch.rand(2, *output, generator=torch.Generator().manual_seed(seed))
    matrix = naive_self_matrix(layers, output)
    expected = (matrix @ values.flatten(1)[..., None])[..., 0].view_as(values)
    torch.testing.assert_close(smooth_by_affinity(maps, values), expected, atol=1e-5, rtol=1e-4)
    cross = cross_map(maps, output)
    raw = (matrix @ cross.flatten(1)[..., None])[..., 0].view_as(cross)
    torch.testing.assert_close(score_maps(maps, output).score_map[:, 0], normalise(raw), atol=1e-4, rtol=1e-3)


def test_the_cross_map_is_the_mean_of_all_layers() -> None:
    """Also where several share a grid: the mean prompt share, of which presence takes the level."""
    grid = OUTPUT_HW
    layers = random_layers(5, [grid, grid, grid])
    shares = [probabilities[..., :IMAGE_TOKENS].sum(-1).mean(1) for _, probabilities in layers]
    expected = torch.stack(shares).mean(0).view(-1, *grid)
    torch.testing.assert_close(cross_map(summed(layers), grid), expected)


def test_region_affinity_is_the_transposed_product() -> None:
    layers = random_layers(3, [(4, 8), (2, 4)])
    weights = torch.zeros(2, *OUTPUT_HW)
    weights[:, 3, 5] = 1
    weights[1, 7, 2] = 3
    matrix = naive_self_matrix(layers, OUTPUT_HW)
    share = weights / weights.sum((1, 2), keepdim=True)
    expected = (share.flatten(1)[:, None] @ matrix)[:, 0].view_as(weights)
    found = affinity_of(summed(layers), weights)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2), atol=1e-5, rtol=0)


def test_upsampling_matrix_is_bilinear_interpolation() -> None:
    values = torch.rand(1, 1, 5, 7)
    expected = torch.nn.functional.interpolate(values, size=(13, 20), mode="bilinear", align_corners=False)
    up_y, up_x = upsampling_matrix(13, 5, like=values), upsampling_matrix(20, 7, like=values)
    torch.testing.assert_close(up_y @ values[0, 0] @ up_x.T, expected[0, 0])


def test_split_gives_prompt_share_and_row_stochastic_affinity() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.1, 0.4, 0.2]).expand(1, 2, 2, 5)
    cross, affinity = split_joint_attention(probabilities, 3)
    torch.testing.assert_close(cross, torch.full((1, 2), 0.4))
    torch.testing.assert_close(affinity, torch.tensor([2 / 3, 1 / 3]).expand(1, 2, 2))


def test_constant_map_stays_constant_and_normalises_to_zero() -> None:
    maps = summed(random_layers(0, [(4, 4)]))
    flat = torch.full((2, *OUTPUT_HW), 0.7)
    torch.testing.assert_close(smooth_by_affinity(maps, flat), flat, atol=1e-5, rtol=0)
    assert normalise(flat).abs().max() == 0


def test_only_one_scale_and_sums_do_not_depend_on_order() -> None:
    layers = random_layers(5, [(4, 8), (2, 4), (4, 8)])
    there, back = summed(layers), summed(layers[::-1])
    assert there.layers == {(4, 8): 2, (2, 4): 1}
    torch.testing.assert_close(there.affinity[(4, 8)], back.affinity[(4, 8)])
    alone = score_maps(there.only((2, 4)), OUTPUT_HW).score_map
    torch.testing.assert_close(alone, score_maps(summed(layers[1:2]), OUTPUT_HW).score_map)


def test_balance_takes_out_what_a_coarse_grid_gives_anyway() -> None:
    maps = AttentionMaps()
    for (h, w), gain in {(2, 2): 1.0, (4, 4): 2.0, (8, 8): 3.0}.items():
        even, n = IMAGE_TOKENS / (IMAGE_TOKENS + h * w), h * w
        maps.add((h, w), torch.full((1, n), gain * even), torch.eye(n)[None], even)
    torch.testing.assert_close(cross_map(maps.balanced(), (8, 8)), torch.full((1, 8, 8), 2.0))
    assert cross_map(maps.balanced().only((8, 8)), (8, 8)).mean().item() == pytest.approx(3)
    assert maps.balanced().affinity is maps.affinity


def test_a_look_less_itself_is_nothing_and_less_another_their_difference() -> None:
    layers = random_layers(6, [(4, 8), (2, 4)])
    one, other = summed(layers), summed(random_layers(7, [(4, 8), (2, 4)]))
    assert not any(cross.any() for cross in one.less(one).cross.values())
    expected = cross_map(one, OUTPUT_HW) - cross_map(other, OUTPUT_HW)
    torch.testing.assert_close(cross_map(one.less(other), OUTPUT_HW), expected)


def test_gradient_reaches_probabilities() -> None:
    logits = torch.randn(1, 1, 16, IMAGE_TOKENS + 16, requires_grad=True)
    maps = AttentionMaps()
    maps.add((4, 4), *split_joint_attention(logits.softmax(-1), IMAGE_TOKENS))
    score_maps(maps, (8, 8)).score_map.square().mean().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("low_high", [(0.0, 1.0), (-3.0, 5.0)])
def test_normalise_spans_zero_to_one_per_picture(low_high: tuple[float, float]) -> None:
    low, high = low_high
    maps = torch.stack(
        [torch.linspace(low, high, 12).view(3, 4), torch.linspace(high, 10 * high, 12).view(3, 4)]
    )
    normal = normalise(maps)
    torch.testing.assert_close(normal.amin((1, 2)), torch.zeros(2))
    torch.testing.assert_close(normal.amax((1, 2)), torch.ones(2))
