"""The compact backbone's contract, with its real classes at random weights and a small picture size."""

import copy

import pytest
import torch
import torch.nn.functional as F

from diffseg_cli.config import CompactConfig
from diffseg_cli.loading import build_compact
from diffseg_cli.models.attention import score_maps
from diffseg_cli.models.compact import CompactBackbone, cluster_centres
from diffseg_cli.models.efficientnet import EfficientNetLite, InvertedBottleneck

SIZE = 128


@pytest.fixture(scope="module")
def backbone() -> CompactBackbone:
    torch.manual_seed(0)
    return build_compact(CompactConfig(variant=0, taps=(4, 7, 10, 14, 15), image_size=SIZE))


@pytest.mark.parametrize(
    ("variant", "taps", "widths", "millions"),
    [
        (0, (4, 7, 10, 14, 15), [40, 80, 112, 192, 320], 2.94),
        (1, (6, 10, 14, 19, 20), [40, 80, 112, 192, 320], 3.70),
    ],
)
def test_encoder_has_the_published_shape(variant: int, taps: tuple, widths: list, millions: float) -> None:
    encoder = EfficientNetLite(variant=variant, taps=taps)
    assert encoder.tap_widths == widths and encoder.tap_strides == [8, 16, 16, 32, 32]
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_latents_have_the_promised_size_and_length(backbone: CompactBackbone) -> None:
    images = torch.rand(2, 3, SIZE, SIZE)
    latents = backbone.encode(images)
    assert latents.shape == (2, backbone.latent_channels, SIZE // 8, SIZE // 8)
    for block in backbone.encode_blocks(images):
        torch.testing.assert_close(block.norm(dim=1), torch.ones(2, *block.shape[-2:]), atol=1e-4, rtol=0)
    assert backbone.decode(latents).shape == (2, 3, SIZE, SIZE)


def test_batch_does_not_change_a_picture(backbone: CompactBackbone) -> None:
    images = torch.rand(4, 3, SIZE, SIZE)
    together = backbone.encode(images)
    alone = torch.cat([backbone.encode(image[None]) for image in images.flip(0)]).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


def plain_block(block: InvertedBottleneck, x: torch.Tensor) -> torch.Tensor:
    """A block as its paper has it, with TensorFlow's padding written out and nothing done in place."""
    y = x if block.expand is None else F.relu6(block.expand(x))
    depthwise = block.depthwise
    total = depthwise.kernel_size[0] - block.stride  # sizes here are even
    y = F.pad(y, [total // 2, total - total // 2] * 2)
    y = F.relu6(F.conv2d(y, depthwise.weight, depthwise.bias, block.stride, groups=depthwise.groups))
    y = block.project(y)
    return x + y if block.residual else y


def test_the_encoder_is_the_plain_network(backbone: CompactBackbone) -> None:
    """The one that runs pads inside its convolutions, works in place and, on a CPU, picture by picture."""
    images = torch.rand(3, 3, SIZE, SIZE)
    x = (images * 255 - 127) / 128
    encoder, expected = backbone.encoder, []
    x = F.relu6(F.conv2d(F.pad(x, [0, 1, 0, 1]), encoder.stem.weight, encoder.stem.bias, 2))
    for index, block in enumerate(encoder.blocks):
        x = plain_block(block, x)
        expected += [x] if index in encoder.taps else []
    for got, wanted in zip(backbone.features(images), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_a_mask_is_the_mean_of_the_decoded_channels(backbone: CompactBackbone) -> None:
    latents = torch.randn(2, backbone.latent_channels, 6, 5, requires_grad=True)
    mask, pictures = backbone.decode_mask(latents), backbone.decode(latents)
    torch.testing.assert_close(mask, pictures.mean(1, keepdim=True), atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(mask.square().sum(), latents)
    assert gradient.abs().sum() > 0


def test_look_equals_one_explicit_softmax(backbone: CompactBackbone) -> None:
    latents = backbone.encode(torch.rand(2, 3, SIZE, SIZE))
    masks = torch.zeros(2, 1, SIZE, SIZE)
    masks[..., 30:90, 20:70] = 1
    prompts = backbone.embed(torch.empty(0), masks, latents)
    seen = []
    maps = backbone.look(latents, prompts[:, None], on_layer=seen.append)
    assert list(maps.layers) == [layer.grid_hw for layer in seen] == [(8, 8), (4, 4)]
    inside = CompactConfig.object_tokens
    for scale, layer in enumerate(seen):
        weights = torch.tensor(CompactConfig.depth_weights)
        weights = weights.repeat_interleave(torch.tensor(backbone.latent_groups))
        places = F.avg_pool2d(latents, backbone.look_strides[scale] // 8).flatten(2).transpose(1, 2) * weights
        keys = torch.cat([prompts * weights, places], dim=1)
        cosine = F.normalize(places, dim=-1) @ F.normalize(keys, dim=-1).transpose(1, 2)
        logits = cosine * CompactConfig.temperature
        tokens = prompts.shape[1]
        logits[..., :tokens] += CompactConfig.prompt_bias + torch.tensor(places.shape[1] / tokens).log()
        whole = logits.softmax(-1)
        expected = torch.cat([whole[..., :inside], whole[..., tokens:]], dim=-1)
        assert layer.image_tokens == inside
        torch.testing.assert_close(layer.probabilities[:, 0], expected, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(
            maps.cross[layer.grid_hw], expected[..., :inside].sum(-1), atol=1e-5, rtol=1e-3
        )


def test_prompt_of_the_object_lights_up_the_object(backbone: CompactBackbone) -> None:
    """Support and query are the same picture: a bright textured square on noise."""
    torch.manual_seed(1)
    image = 0.2 * torch.rand(1, 3, SIZE, SIZE)
    square = torch.zeros(1, 1, SIZE, SIZE)
    square[..., 32:96, 32:96] = 1
    image = image * (1 - square) + square * (0.5 + 0.5 * torch.rand(1, 3, 16, 16).repeat(1, 1, 8, 8))
    latents = backbone.encode(image)
    prompts = backbone.embed(image, square, latents)
    score = score_maps(backbone.look(latents, prompts[:, None]), (16, 16)).score_map[0, 0]
    inside = F.interpolate(square, size=(16, 16), mode="area")[0, 0] > 0.5
    assert score[inside].mean() > score[~inside].mean() + 0.3


def test_zero_control_is_exact_and_control_gets_gradient(backbone: CompactBackbone) -> None:
    latents = backbone.encode(torch.rand(1, 3, SIZE, SIZE))
    masks = torch.ones(1, 1, SIZE, SIZE).tril()
    prompts = backbone.embed(torch.empty(0), masks, latents)[:, None]
    free = backbone.look(latents, prompts)
    held = backbone.look(latents, prompts, control=lambda states: [torch.zeros_like(s) for s in states])
    for grid_hw in free.cross:
        assert torch.equal(free.cross[grid_hw], held.cross[grid_hw])
        assert torch.equal(free.affinity[grid_hw], held.affinity[grid_hw])
    push = [torch.zeros(1, backbone.latent_channels, n, n, requires_grad=True) for n in (8, 4)]
    maps = backbone.look(latents, prompts, control=lambda _: push)
    score_maps(maps, (16, 16)).score_map.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in push)


def test_even_attention_gives_the_prompt_the_same_share_at_every_scale(backbone: CompactBackbone) -> None:
    latents = backbone.encode(torch.rand(1, 3, SIZE, SIZE))
    prompts = backbone.embed(torch.empty(0), torch.ones(1, 1, SIZE, SIZE).tril(), latents)[:, None]
    even = copy.deepcopy(backbone)
    even.temperature = 0.0
    maps = even.look(latents, prompts.repeat(1, 2, 1, 1))
    fine, coarse = maps.even_share.values()
    assert fine == pytest.approx(coarse)
    for cross in maps.balanced().cross.values():
        torch.testing.assert_close(cross, torch.ones_like(cross), atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.5, 1.0])
def test_prompts_are_finite_for_any_mask(backbone: CompactBackbone, share: float) -> None:
    masks = (torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < share).float()
    prompts = backbone.embed(torch.rand(2, 3, SIZE, SIZE), masks)
    tokens = CompactConfig.object_tokens + CompactConfig.background_tokens
    assert prompts.shape == (2, tokens, backbone.latent_channels) and torch.isfinite(prompts).all()


def test_cluster_centres_find_separate_groups() -> None:
    directions = torch.eye(3)
    vectors = F.normalize(directions.repeat_interleave(20, 0) + 0.05 * torch.randn(60, 3), dim=1)
    centres = F.normalize(cluster_centres(vectors, torch.ones(60), 4)[1:], dim=1)
    assert sorted((centres @ directions.T).argmax(1).tolist()) == [0, 1, 2]
    assert torch.equal(
        cluster_centres(vectors, torch.ones(60), 4)[1:], cluster_centres(vectors, torch.ones(60), 4)[1:]
    )


def test_more_supports_do_not_shift_the_balance(backbone: CompactBackbone) -> None:
    """The same support twice prompts like once: the bias counts tokens."""
    latents = backbone.encode(torch.rand(1, 3, SIZE, SIZE))
    masks = torch.zeros(1, 1, SIZE, SIZE)
    masks[..., :64, :] = 1
    prompts = backbone.embed(torch.empty(0), masks, latents)[:, None]
    once, twice = (backbone.look(latents, p) for p in (prompts, prompts.expand(-1, 2, -1, -1)))
    for grid_hw in once.cross:
        torch.testing.assert_close(once.cross[grid_hw], twice.cross[grid_hw], atol=1e-5, rtol=1e-4)
