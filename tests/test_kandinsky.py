"""Kandinsky's own classes, tiny: the look against diffusers' forward pass, SCM's place, loading, memory."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_kandinsky as tiny
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffseg_cli.bench.random_kandinsky import random_networks
from diffseg_cli.errors import ExitCode, WeightsError
from diffseg_cli.models.attention import AttentionMaps, LayerAttention, split_joint_attention
from diffseg_cli.models.kandinsky import KandinskyBackbone, crop_supports
from diffseg_cli.models.kandinsky_attention import Recorder, recording
from diffseg_cli.models.spatial_control import SpatialControl
from diffseg_cli.weights import kandinsky as kandinsky_weights
from diffseg_cli.weights.hub import locate_kandinsky
from diffseg_cli.weights.kandinsky import check_networks, load_kandinsky

CPU = torch.device("cpu")
TIMESTEP = 50
LAST = "up_blocks.2.attentions.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("kandinsky"))


@pytest.fixture(scope="module")
def backbone(folder: Path) -> KandinskyBackbone:
    return load_kandinsky(folder, device=CPU, dtype=torch.float32)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 128, 128, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def latents(backbone: KandinskyBackbone) -> Tensor:
    return backbone.encode(pictures(4))


def look_at(
    backbone: KandinskyBackbone, latents: Tensor, embeds: Tensor, **more: Any
) -> tuple[AttentionMaps, dict[str, LayerAttention]]:
    """A look, and its layers by name."""
    layers: dict[str, LayerAttention] = {}
    maps = backbone.look(
        latents,
        embeds,
        timesteps=(TIMESTEP,),
        noise=drawn(*latents.shape, seed=1),
        on_layer=lambda layer: layers.__setitem__(layer.name, layer),
        **more,
    )
    return maps, layers


class Counted:
    """How often modules run."""

    def __init__(self, **modules: nn.Module) -> None:
        self.calls = dict.fromkeys(modules, 0)
        self.hooks = [
            module.register_forward_hook(lambda *_, name=name: self._count(name))
            for name, module in modules.items()
        ]

    def _count(self, name: str) -> None:
        self.calls[name] += 1

    def close(self) -> dict[str, int]:
        for hook in self.hooks:
            hook.remove()
        return self.calls


# --- the look is diffusers' forward pass


def stock_forward(
    folder: Path, noised: Tensor, embeds: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """diffusers' UNet with its explicit processor: probabilities and outputs of every attention layer."""
    from diffusers.models.attention_processor import AttnAddedKVProcessor
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "decoder" / "unet").eval()
    unet.set_attn_processor(AttnAddedKVProcessor())
    probabilities: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(name: str, attn: Any) -> None:
        original = attn.get_attention_scores

        def watched(*arguments: Any) -> Tensor:
            probabilities[name] = original(*arguments).unflatten(0, (-1, attn.heads))
            return probabilities[name].flatten(0, 1)

        attn.get_attention_scores = watched
        attn.register_forward_hook(lambda _module, _inputs, output: outputs.__setitem__(name, output))

    for name, module in unet.named_modules():
        if hasattr(module, "get_attention_scores"):
            watch(name, module)
    with torch.no_grad():
        unet(noised, TIMESTEP, None, added_cond_kwargs={"image_embeds": embeds})
    return probabilities, outputs


def test_every_layer_is_the_one_of_diffusers(
    folder: Path, backbone: KandinskyBackbone, latents: Tensor
) -> None:
    embeds = drawn(4, 40)
    noise = drawn(*latents.shape, seed=1)
    noised = backbone.scheduler.add_noise(latents, noise, torch.tensor([TIMESTEP]))
    expected, expected_outputs = stock_forward(folder, noised, embeds)
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: outputs.__setitem__(name, output))
        for name, module in backbone.unet.named_modules()
        if name in expected
    ]
    maps, layers = look_at(backbone, latents, embeds[:, None, None])
    for hook in hooks:
        hook.remove()

    assert list(layers) == list(expected) and len(layers) == 10  # in the order they run
    assert outputs.keys() == expected.keys() - {LAST}
    for name, layer in layers.items():
        assert layer.image_tokens == 32 and layer.timestep == TIMESTEP
        assert layer.probabilities.shape[-1] == 32 + layer.grid_hw[0] * layer.grid_hw[1]
        torch.testing.assert_close(layer.probabilities, expected[name], atol=2e-5, rtol=1e-4)
        if name != LAST:
            torch.testing.assert_close(outputs[name], expected_outputs[name], atol=2e-4, rtol=1e-4)
    assert maps.layers == {(8, 8): 3, (4, 4): 3, (2, 2): 4}
    for grid_hw in maps.layers:
        halves = [
            split_joint_attention(expected[name], 32)
            for name, layer in layers.items()
            if layer.grid_hw == grid_hw
        ]
        torch.testing.assert_close(
            maps.cross[grid_hw], torch.stack([c for c, _ in halves]).sum(0), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            maps.affinity[grid_hw], torch.stack([a for _, a in halves]).sum(0), atol=1e-4, rtol=0
        )


def test_attention_of_the_tiny_model_is_far_from_even(backbone: KandinskyBackbone, latents: Tensor) -> None:
    """Else the comparison above would pass with columns swapped."""
    layers = look_at(backbone, latents, drawn(4, 1, 1, 40))[1]
    for layer in layers.values():
        assert layer.probabilities.amax() > 5 / layer.probabilities.shape[-1]
        assert layer.probabilities.std(-1).mean() > 0.2 / layer.probabilities.shape[-1]


@pytest.mark.parametrize("group_size", [1, 20_000, 2**23])
def test_recording_changes_no_output_however_many_heads_at_once(
    folder: Path, backbone: KandinskyBackbone, latents: Tensor, group_size: int
) -> None:
    """One head, some heads, all heads; without the callback, which takes all of a layer."""
    embeds, maps = drawn(4, 40), AttentionMaps()
    arguments = {"added_cond_kwargs": {"image_embeds": embeds}}
    with torch.no_grad():
        plain = backbone.unet(latents, TIMESTEP, None, **arguments).sample
        with recording(backbone.unet, Recorder(maps, None, TIMESTEP, 32, group_size=group_size)):
            recorded = backbone.unet(latents, TIMESTEP, None, **arguments).sample
    torch.testing.assert_close(recorded, plain, atol=2e-4, rtol=1e-4)
    naive = AttentionMaps()
    for probabilities in stock_forward(folder, latents, embeds)[0].values():
        side = round((probabilities.shape[-1] - 32) ** 0.5)
        naive.add((side, side), *split_joint_attention(probabilities, 32))
    for grid_hw, cross in naive.cross.items():
        torch.testing.assert_close(maps.cross[grid_hw], cross, atol=1e-4, rtol=0)
        torch.testing.assert_close(maps.affinity[grid_hw], naive.affinity[grid_hw], atol=1e-4, rtol=0)


def test_nothing_after_the_last_attention_runs(backbone: KandinskyBackbone, latents: Tensor) -> None:
    unet = backbone.unet
    block, attn = unet.up_blocks[2], unet.get_submodule(LAST)
    counted = Counted(
        needed=block.resnets[-1],
        upsampler=block.upsamplers[0],
        last_block=unet.up_blocks[3],
        conv_out=unet.conv_out,
        conv_norm_out=unet.conv_norm_out,
        keys=attn.to_k,
        values=attn.to_v,
        image_values=attn.add_v_proj,
        projection=attn.to_out[0],
    )
    look_at(backbone, latents, drawn(4, 1, 1, 40))
    calls = counted.close()
    assert calls.pop("needed") == calls.pop("keys") == 1
    assert set(calls.values()) == {0}


def test_the_processors_come_back_even_after_an_error(backbone: KandinskyBackbone, latents: Tensor) -> None:
    before = backbone.unet.attn_processors
    look_at(backbone, latents, drawn(4, 1, 1, 40))
    assert backbone.unet.attn_processors == before and len(before) == 10

    def fail(layer: LayerAttention) -> None:
        if layer.name == LAST:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backbone.look(
            latents, drawn(4, 1, 1, 40), timesteps=(TIMESTEP,), noise=torch.zeros_like(latents), on_layer=fail
        )
    assert backbone.unet.attn_processors == before


def test_timesteps_are_summed(backbone: KandinskyBackbone, latents: Tensor) -> None:
    embeds, noise = drawn(1, 1, 1, 40), drawn(1, 4, 16, 16)
    both = backbone.look(latents[:1], embeds, timesteps=(20, 400), noise=noise)
    apart = [backbone.look(latents[:1], embeds, timesteps=(t,), noise=noise) for t in (20, 400)]
    assert both.layers[(8, 8)] == 6
    assert not torch.allclose(apart[0].cross[(8, 8)], apart[1].cross[(8, 8)], atol=1e-3)
    torch.testing.assert_close(both.cross[(8, 8)], apart[0].cross[(8, 8)] + apart[1].cross[(8, 8)])


def test_noise_is_needed_and_sizes_are_checked(backbone: KandinskyBackbone, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="noise is needed"):
        backbone.look(latents, drawn(1, 1, 1, 40), timesteps=(TIMESTEP,), noise=None)
    with pytest.raises(ValueError, match="multiples of 8"):
        look_at(backbone, latents[..., :12], drawn(1, 1, 1, 40))


# --- batches and shots


def test_a_batch_equals_its_pictures_one_by_one(backbone: KandinskyBackbone, latents: Tensor) -> None:
    embeds, noise = drawn(4, 1, 1, 40), drawn(*latents.shape, seed=2)
    together = backbone.look(latents, embeds, timesteps=(TIMESTEP,), noise=noise)
    for index in range(4):
        row = slice(index, index + 1)
        alone = backbone.look(latents[row], embeds[row], timesteps=(TIMESTEP,), noise=noise[row])
        for grid_hw, cross in alone.cross.items():
            torch.testing.assert_close(together.cross[grid_hw][row], cross, atol=1e-4, rtol=0)
            torch.testing.assert_close(
                together.affinity[grid_hw][row], alone.affinity[grid_hw], atol=1e-4, rtol=0
            )
    assert not torch.allclose(together.cross[(8, 8)][0], together.cross[(8, 8)][1], atol=1e-3)


def test_a_shared_prompt_is_computed_once(backbone: KandinskyBackbone, latents: Tensor) -> None:
    embeds = drawn(1, 2, 1, 40)
    rows: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
        for module in (
            backbone.unet.encoder_hid_proj,
            backbone.unet.add_embedding,
            backbone.unet.get_submodule(LAST).add_k_proj,
        )
    ]
    shared = look_at(backbone, latents, embeds.expand(4, -1, -1, -1))[0]
    copied = look_at(backbone, latents, embeds.repeat(4, 1, 1, 1))[0]
    for hook in hooks:
        hook.remove()
    assert rows == [2, 1, 1, 8, 4, 4]
    for grid_hw, cross in shared.cross.items():
        torch.testing.assert_close(copied.cross[grid_hw], cross, atol=1e-4, rtol=0)


def test_shots_stand_side_by_side(backbone: KandinskyBackbone, latents: Tensor) -> None:
    embeds = drawn(1, 2, 1, 40)
    layers = look_at(backbone, latents, embeds)[1]
    assert {layer.image_tokens for layer in layers.values()} == {64}
    swapped = look_at(backbone, latents, embeds.flip(1))[1]
    for name, layer in layers.items():
        rows = layer.probabilities.sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows))
        first, second, places = layer.probabilities.split([32, 32, layer.probabilities.shape[-1] - 64], -1)
        again = torch.cat([second, first, places], -1)
        torch.testing.assert_close(swapped[name].probabilities, again, atol=1e-4, rtol=0)


def test_a_support_given_twice_changes_nothing(backbone: KandinskyBackbone, latents: Tensor) -> None:
    embeds = drawn(1, 1, 1, 40)
    once = look_at(backbone, latents, embeds)[0]
    thrice = look_at(backbone, latents, embeds.repeat(1, 3, 1, 1))[0]
    for grid_hw, cross in once.cross.items():
        torch.testing.assert_close(thrice.cross[grid_hw], cross, atol=1e-4, rtol=0)
        torch.testing.assert_close(thrice.affinity[grid_hw], once.affinity[grid_hw], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shots", [1, 3])
def test_the_even_share_is_that_of_queries_that_prefer_no_key(
    folder: Path, latents: Tensor, shots: int
) -> None:
    even = load_kandinsky(folder, device=CPU, dtype=torch.float32)
    for name, parameter in even.unet.named_parameters():
        if ".to_q." in name:
            parameter.zero_()
    maps = look_at(even, latents, drawn(1, shots, 1, 40))[0]
    assert maps.even_share == pytest.approx({(h, h): 32 / (32 + h * h) for h in (8, 4, 2)})
    for cross in maps.balanced().cross.values():
        torch.testing.assert_close(cross / cross.round(), torch.ones_like(cross), atol=1e-4, rtol=0)


def test_nothing_is_embedded_as_in_the_pipeline_without_a_second_reading_of_clip(folder: Path) -> None:
    from diffseg_cli.assembly import load_segmenter

    segmenter = load_segmenter(str(folder), device="cpu", cross_map="contrast")
    backbone: Any = segmenter.backbone
    image, mask = np.full((90, 140, 3), 90, np.uint8), np.zeros((90, 140), bool)
    image[20:60, 30:90], mask[20:60, 30:90] = 200, True
    support = segmenter.encode_support([(image, mask)])
    seen = segmenter.look(image, support)
    assert next(backbone.image_encoder.parameters()).is_meta and segmenter.record()["cross_map"] == "contrast"
    again = segmenter.look(image, support)
    assert torch.equal(again.scores.score_map, seen.scores.score_map)
    assert next(backbone.image_encoder.parameters()).is_meta
    by_hand = load_kandinsky(folder, device=CPU, dtype=torch.float32)
    by_hand.embed(pictures(1), torch.ones(1, 1, 128, 128))  # CLIP is read
    expected = by_hand.image_encoder(torch.zeros(1, 3, 28, 28)).image_embeds
    torch.testing.assert_close(backbone.embed_nothing()[0], expected)
    for_nothing = replace(support, image_embeds=backbone.embed_nothing()[None])
    assert not segmenter.look(image, for_nothing).scores.cross_map.any()


# --- SCM's place


def test_control_reads_and_writes_one_state_a_scale(backbone: KandinskyBackbone, latents: Tensor) -> None:
    read: list[Tensor] = []

    def nudge(scale: int | None) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        def control(hidden_states: Sequence[Tensor]) -> list[Tensor]:
            read[:] = hidden_states
            return [
                torch.full_like(hidden, 0.5 if index == scale else 0.0)
                for index, hidden in enumerate(hidden_states)
            ]

        return control

    embeds = drawn(4, 1, 1, 40)
    untouched = look_at(backbone, latents, embeds)[1]
    zero = look_at(backbone, latents, embeds, control=nudge(None))[1]
    assert [tuple(hidden.shape) for hidden in read] == [(4, 32, 8, 8), (4, 48, 4, 4), (4, 64, 2, 2)]
    assert tuple(hidden.shape[1] for hidden in read) == backbone.scale_widths
    assert all(torch.equal(zero[name].probabilities, untouched[name].probabilities) for name in zero)
    up_blocks = {0: ("up_blocks.2",), 1: ("up_blocks.1", "up_blocks.2")}
    up_blocks[2] = ("up_blocks.0", *up_blocks[1])
    for scale, changed in up_blocks.items():
        layers = look_at(backbone, latents, embeds, control=nudge(scale))[1]
        moved = {
            name for name in layers if not torch.equal(layers[name].probabilities, zero[name].probabilities)
        }
        assert moved == {name for name in layers if name.startswith(changed)}


def test_what_control_reads_is_the_output_of_the_last_attention_of_its_scale(
    backbone: KandinskyBackbone, latents: Tensor
) -> None:
    outputs: list[Tensor] = []
    hooks = [
        block.attentions[-1].register_forward_hook(lambda _m, _i, output: outputs.append(output))
        for block in backbone.unet.down_blocks[1:]
    ]
    read: list[Tensor] = []

    def control(hidden_states: Sequence[Tensor]) -> list[Tensor]:
        read.extend(hidden_states)
        return [torch.zeros_like(hidden) for hidden in hidden_states]

    look_at(backbone, latents, drawn(4, 1, 1, 40), control=control)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(read, outputs, strict=True))


def test_an_untrained_scm_changes_no_bit_and_learns_from_the_maps(
    backbone: KandinskyBackbone, latents: Tensor
) -> None:
    torch.manual_seed(0)
    scm = SpatialControl(scale_widths=backbone.scale_widths, width=8)
    edge_features = scm.edge_features(torch.rand(4, 1, 128, 128), (16, 16)).detach()
    embeds = drawn(4, 1, 1, 40)
    plain = look_at(backbone, latents, embeds)[0]
    steered = look_at(backbone, latents, embeds, control=lambda hidden: scm(edge_features, hidden))[0]
    for grid_hw, cross in plain.cross.items():
        assert torch.equal(steered.cross[grid_hw], cross)
        assert torch.equal(steered.affinity[grid_hw], plain.affinity[grid_hw])
    assert steered.cross[(8, 8)].requires_grad and not plain.cross[(8, 8)].requires_grad
    steered.cross[(8, 8)].square().sum().backward()  # the finest scale sees the residuals of all three
    for output in scm.outputs:
        assert output.weight.grad is not None and output.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.unet.parameters())


# --- pictures in and out


def test_latents_and_pictures_are_those_of_diffusers_own_movq(
    folder: Path, backbone: KandinskyBackbone
) -> None:
    """Latents unscaled; the decoder's layers put another way give the same pictures, oblong ones too."""
    from diffusers.models.autoencoders.vq_model import VQModel

    movq = VQModel.from_pretrained(folder / "decoder" / "movq").eval()
    images = pictures(2)
    with torch.no_grad():
        expected = movq.encode(images * 2 - 1).latents
        torch.testing.assert_close(backbone.encode(images), expected)
        assert expected.shape == (2, 4, 16, 16)
        for latents in (expected, 3 * drawn(1, 4, 4, 6)):
            decoded = movq.decode(latents, force_not_quantize=True).sample / 2 + 0.5
            torch.testing.assert_close(backbone.decode(latents), decoded, atol=1e-5, rtol=1e-5)
            mask = decoded.mean(1, keepdim=True)
            torch.testing.assert_close(backbone.decode_mask(latents), mask, atol=1e-5, rtol=1e-5)


def test_decode_passes_gradients_to_the_latents(backbone: KandinskyBackbone, latents: Tensor) -> None:
    predicted = latents[:1].clone().requires_grad_()
    backbone.decode(predicted).mean().backward()
    assert predicted.grad is not None and predicted.grad.abs().sum() > 0


def preprocessed_by_clip(image: NDArray[np.uint8]) -> Tensor:
    """An image (h w 3) as transformers' own preprocessing on Pillow gives it, (1 3 28 28)."""
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    except ImportError:  # before transformers 5 the processor of this name is the one on Pillow
        from transformers import CLIPImageProcessor as CLIPImageProcessorPil
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    pixels: Tensor = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    return pixels


def test_a_whole_support_is_seen_as_clip_preprocessing_would_show_it(folder: Path) -> None:
    backbone = load_kandinsky(folder, device=CPU, dtype=torch.float32, support_crop=None)
    y, x = np.mgrid[:128, :128]
    smooth = np.stack([x * 2, y * 2, (x + y)], -1).clip(0, 255).astype(np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask[20:90, 40:110] = 1
    pixels = preprocessed_by_clip(smooth * mask[..., None])
    image = torch.from_numpy(smooth).permute(2, 0, 1)[None] / 255
    masks = torch.from_numpy(mask)[None, None].float()
    shown = crop_supports(image, masks, margin=None, size=28)
    expected = pixels * backbone.pixel_std + backbone.pixel_mean
    assert (shown - expected).abs().max() < 0.01
    embeds = backbone.embed(image, masks)
    with torch.no_grad():
        by_hand = backbone.image_encoder(pixels).image_embeds
    assert embeds.shape == (1, 1, 40)
    torch.testing.assert_close(embeds[:, 0], by_hand, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("margin", [None, 0.25])
def test_an_oblong_support_keeps_its_aspect_and_resolution(folder: Path, margin: float | None) -> None:
    """As CLIP's own preprocessing shows the whole image, or the square around its object."""
    backbone = load_kandinsky(folder, device=CPU, dtype=torch.float32)
    y, x = np.mgrid[:200, :300]
    image = np.stack([x * 0.7, y, 120 + 100 * np.sin(x / 9) * np.sin(y / 9)], -1).astype(np.uint8)
    mask = np.zeros((200, 300), bool)
    mask[60:140, 120:160] = True  # 80 high, 40 wide
    shown = image * mask[..., None]
    if margin is not None:
        shown = shown[40:160, 80:200]  # 120 = 80 * (1 + 2 * 0.25), around the object's middle
    pixels = preprocessed_by_clip(shown)
    seen: list[Tensor] = []
    hook = backbone.image_encoder.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    embeds = backbone.embed_pairs([(image, mask)], crop=margin is not None)
    hook.remove()
    assert embeds.shape == (1, 1, 40)
    assert ((seen[0] - pixels) * backbone.pixel_std).abs().max() < 0.02


def test_the_crop_is_square_around_the_object_and_black_beyond_the_edge() -> None:
    image, mask = torch.ones(1, 3, 100, 100), torch.zeros(1, 1, 100, 100)
    mask[..., 0:20, 30:70] = 1  # 20 high, 40 wide, at the upper edge
    crop = crop_supports(image, mask, margin=0.25, size=60)[0, 0]  # 60 pixels of the picture: not resized
    expected = torch.zeros(60, 60)
    expected[20:40, 10:50] = 1
    torch.testing.assert_close(crop, expected, atol=1e-5, rtol=0)
    assert crop_supports(image, torch.zeros_like(mask), margin=0.25, size=60).max() == 0
    assert crop_supports(image, torch.ones_like(mask), margin=0.0, size=60).min() > 0.9999


def test_what_is_outside_the_mask_does_not_reach_the_prompt(backbone: KandinskyBackbone) -> None:
    masks = torch.zeros(1, 1, 128, 128)
    masks[..., 40:90, 30:80] = 1
    first, second = pictures(1), pictures(1, seed=9)
    mixed = torch.where(masks > 0, first, second)
    torch.testing.assert_close(backbone.embed(first, masks), backbone.embed(mixed, masks))
    assert not torch.allclose(backbone.embed(first, masks), backbone.embed(second, masks), atol=1e-3)


# --- offload


def test_with_offload_clip_and_unet_are_never_on_the_device_together(
    folder: Path, backbone: KandinskyBackbone, latents: Tensor
) -> None:
    device = torch.device("cpu", 0)  # the same memory under another name, so that moves can be told
    small = load_kandinsky(folder, device=device, dtype=torch.float32, offload=True)
    places = {"unet": "cpu", "image_encoder": "cpu"}
    seen: list[tuple[str, dict[str, str]]] = []
    for name in places:
        network = getattr(small, name)

        def move(place: torch.device | str, name: str = name, network: nn.Module = network) -> None:
            places[name] = str(place)
            nn.Module.to(network, place)
            assert list(places.values()) != ["cpu:0", "cpu:0"]

        network.to = move
        entry = network.conv_in if name == "unet" else network
        entry.register_forward_pre_hook(lambda *_, name=name: seen.append((name, dict(places))))
    images, masks = pictures(1), torch.ones(1, 1, 128, 128)
    for _ in range(2):
        embeds = small.embed(images, masks)
        maps = look_at(small, latents, embeds[None])[0]
    assert [name for name, _ in seen] == ["image_encoder", "unet"] * 2
    assert all(places[name] == "cpu:0" for name, places in seen)
    expected = look_at(backbone, latents, backbone.embed(images, masks)[None])[0]
    for grid_hw, cross in expected.cross.items():
        torch.testing.assert_close(maps.cross[grid_hw], cross, atol=1e-4, rtol=0)


def test_with_offload_movq_takes_pictures_one_by_one(folder: Path, backbone: KandinskyBackbone) -> None:
    small = load_kandinsky(folder, device=CPU, dtype=torch.float32, offload=True)
    counted = Counted(encoder=small.movq.encoder, decoder=small.movq.decoder)
    latents = small.encode(pictures(3))
    masks = small.decode_mask(latents)
    assert counted.close() == {"encoder": 3, "decoder": 3}
    torch.testing.assert_close(latents, backbone.encode(pictures(3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masks, backbone.decode_mask(latents), atol=1e-5, rtol=1e-5)


def test_without_offload_nothing_moves(backbone: KandinskyBackbone, latents: Tensor) -> None:
    assert not backbone.offload
    backbone.unet.to = None  # moving would fail
    look_at(backbone, latents, drawn(1, 1, 1, 40))
    del backbone.unet.to


# --- full size, without memory


def test_the_full_configuration() -> None:
    networks = random_networks(device=torch.device("meta"))
    parts = (networks.unet, networks.movq, networks.image_encoder)
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in parts]
    assert [round(count, 2) for count in counts] == [1253.06, 67.83, 1844.91]
    full = KandinskyBackbone(networks, device=torch.device("meta"), support_crop=None)
    assert (full.image_size, full.latent_channels, full.latent_groups) == (512, 4, (4,))
    assert full.scale_widths == (768, 1152, 1536)

    def tera(work: Callable[[], Any]) -> tuple[Any, float]:
        with FlopCounterMode(display=False) as counter:
            result = work()
        return result, round(counter.get_total_flops() / 1e12, 2)

    images = torch.empty(1, 3, 512, 512, device="meta")
    latents, encode = tera(lambda: full.encode(images))
    embeds, embed = tera(lambda: full.embed(images, images[:, :1]))
    layers: list[LayerAttention] = []
    maps, look = tera(
        lambda: full.look(latents, embeds[None], timesteps=(TIMESTEP,), noise=latents, on_layer=layers.append)
    )
    pictures, decode = tera(lambda: full.decode(latents))
    assert latents.shape == (1, 4, 64, 64) and embeds.shape == (1, 1, 1280)
    assert pictures.shape == (1, 3, 512, 512)
    assert maps.layers == {(32, 32): 7, (16, 16): 7, (8, 8): 8}
    assert layers[0].probabilities.shape == (1, 12, 1024, 32 + 1024)
    assert layers[-1].name == "up_blocks.2.attentions.3"
    # TFLOP; the whole UNet costs 0.86 and diffusers' own decoder 2.00.
    assert [encode, embed, look, decode] == pytest.approx([0.98, 0.97, 0.61, 1.74], abs=0.02)


# --- files


def test_half_precision_is_computed_in_and_noised_in_full(folder: Path, backbone: KandinskyBackbone) -> None:
    half = load_kandinsky(folder, device=CPU, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.fingerprint == backbone.fingerprint
    assert {parameter.dtype for parameter in half.unet.parameters()} == {torch.bfloat16}
    latents = half.encode(pictures(1))
    assert latents.dtype == torch.bfloat16
    embeds = half.embed(pictures(1), torch.ones(1, 1, 128, 128))
    maps, layers = look_at(half, latents, embeds[None])
    assert all(layer.probabilities.dtype == torch.float32 for layer in layers.values())
    exact = look_at(backbone, latents.float(), embeds[None].float())[0]
    assert (maps.cross[(8, 8)] - exact.cross[(8, 8)]).abs().mean() < 0.05
    assert half.decode(latents).dtype == torch.bfloat16


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's figures")
@pytest.mark.parametrize(("dtype", "mapped"), [(torch.float32, True), (torch.float16, False)])
def test_weights_in_the_format_of_their_file_take_no_memory_of_their_own(
    tmp_path: Path, dtype: torch.dtype, mapped: bool
) -> None:
    loaded = load_kandinsky(tiny.build(tmp_path), device=CPU, dtype=dtype)
    assert loaded.dtype == dtype
    for part in ("unet", "movq"):
        file = tmp_path / "decoder" / part / "diffusion_pytorch_model.safetensors"
        assert (str(file) in Path("/proc/self/maps").read_text()) == mapped


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_gpu_gives_the_maps_of_float32(
    folder: Path, backbone: KandinskyBackbone, dtype: torch.dtype
) -> None:
    fast = load_kandinsky(folder, device=torch.device("cuda"), dtype=dtype)
    images, embeds = pictures(2), drawn(2, 1, 1, 40)
    latents, noise = backbone.encode(images), drawn(2, 4, 16, 16, seed=1)
    exact = backbone.look(latents, embeds, timesteps=(TIMESTEP,), noise=noise)
    maps = fast.look(latents.cuda(), embeds.cuda(), timesteps=(TIMESTEP,), noise=noise.cuda())
    for grid_hw, cross in exact.cross.items():
        assert (maps.cross[grid_hw].cpu() - cross).abs().mean() < 0.01 * exact.layers[grid_hw]
        difference = (maps.affinity[grid_hw].cpu() - exact.affinity[grid_hw]).abs().sum(-1).mean()
        assert difference < 0.1 * exact.layers[grid_hw]
    masks, decoded = fast.decode_mask(latents.cuda().to(dtype)), backbone.decode_mask(latents)
    assert (masks.cpu().float() - decoded).abs().mean() < 0.005


def copy_of(folder: Path, target: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(folder, target)
    change(target)
    return target


UNET_WEIGHTS = Path("decoder", "unet", "diffusion_pytorch_model.safetensors")
CLIP_WEIGHTS = Path("prior", "image_encoder", "model.safetensors")


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(source: Path) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        load_kandinsky(source, device=CPU, dtype=torch.float32)
    assert caught.value.exit_code == ExitCode.WEIGHTS and caught.value.hint
    return caught.value


def test_the_fingerprint_tells_weights_apart_and_not_their_precision(
    folder: Path, backbone: KandinskyBackbone, tmp_path: Path
) -> None:
    def halve(copy: Path) -> None:
        path = copy / UNET_WEIGHTS
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)

    def tune(copy: Path) -> None:
        rewrite(copy / CLIP_WEIGHTS, lambda tensors: tensors["visual_projection.weight"].mul_(1.01))

    halved = load_kandinsky(copy_of(folder, tmp_path / "half", halve), device=CPU, dtype=torch.float32)
    tuned = load_kandinsky(copy_of(folder, tmp_path / "tuned", tune), device=CPU, dtype=torch.float32)
    other = load_kandinsky(tiny.build(tmp_path / "other", seed=1), device=CPU, dtype=torch.float32)
    assert halved.fingerprint == backbone.fingerprint
    assert len({backbone.fingerprint, tuned.fingerprint, other.fingerprint}) == 3


def test_old_files_with_positions_and_shards_load_alike(
    folder: Path, backbone: KandinskyBackbone, tmp_path: Path
) -> None:
    def age(copy: Path) -> None:
        positions = torch.arange(5)[None]
        rewrite(copy / CLIP_WEIGHTS, lambda t: t.update({"vision_model.embeddings.position_ids": positions}))
        tensors = load_file(copy / UNET_WEIGHTS)
        names = sorted(tensors)
        home, stem = (copy / UNET_WEIGHTS).parent, "diffusion_pytorch_model"
        shards = {f"{stem}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
        for shard, held in shards.items():
            save_file({name: tensors[name] for name in held}, home / shard)
        weight_map = {name: shard for shard, held in shards.items() for name in held}
        (home / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (copy / UNET_WEIGHTS).unlink()

    aged = load_kandinsky(copy_of(folder, tmp_path / "aged", age), device=CPU, dtype=torch.float32)
    assert aged.fingerprint == backbone.fingerprint
    images, masks = pictures(1), torch.ones(1, 1, 128, 128)
    # Tensors of another file lie elsewhere in memory, and some processors then sum in another order.
    torch.testing.assert_close(aged.embed(images, masks), backbone.embed(images, masks))
    for name, parameter in backbone.unet.state_dict().items():
        assert torch.equal(aged.unet.state_dict()[name], parameter)


def test_files_are_checked_without_reading_a_tensor(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(copy: Path) -> None:
        rewrite(copy / UNET_WEIGHTS, lambda tensors: tensors.pop("conv_in.weight"))

    lost = copy_of(folder, tmp_path / "lost", lose)
    monkeypatch.setattr("safetensors.safe_open", lambda *_, **__: pytest.fail("a tensor was read"))
    check_networks(locate_kandinsky(folder))
    with pytest.raises(WeightsError, match=r"it lacks conv_in\.weight"):
        check_networks(locate_kandinsky(lost))


def test_old_names_of_the_attention_of_movq_load_alike(
    folder: Path, backbone: KandinskyBackbone, tmp_path: Path
) -> None:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(copy: Path) -> None:
        path = copy / "decoder" / "movq" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        for old in [name for name in tensors if ".attentions." in name]:
            new = old
            for now, then in names.items():
                new = new.replace(f".{now}.", f".{then}.")
            tensors[new] = tensors.pop(old)
        assert any(".proj_attn." in name for name in tensors)
        save_file(tensors, path)

    aged = load_kandinsky(copy_of(folder, tmp_path / "old", age), device=CPU, dtype=torch.float32)
    assert aged.fingerprint == backbone.fingerprint
    for name, value in backbone.movq.state_dict().items():
        assert torch.equal(aged.movq.state_dict()[name], value)


def test_damaged_and_foreign_files_are_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    def case(name: str, change: Callable[[Path], object]) -> str:
        copy = copy_of(folder, tmp_path / name, change)
        error = refused(copy)
        assert str(tmp_path / name) in error.message
        return error.message

    def cut(copy: Path) -> None:
        content = (copy / UNET_WEIGHTS).read_bytes()
        (copy / UNET_WEIGHTS).write_bytes(content[: len(content) // 2])

    def edit(path: Path, **changes: Any) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def lose(copy: Path) -> None:
        rewrite(copy / CLIP_WEIGHTS, lambda tensors: tensors.pop("visual_projection.weight"))

    unet_config, clip_config = Path("decoder/unet/config.json"), Path("prior/image_encoder/config.json")
    processor = Path("prior/image_processor/preprocessor_config.json")
    assert "is damaged" in case("cut", cut)
    assert "is damaged" in case("json", lambda copy: (copy / unet_config).write_text("{"))
    assert "no JSON object" in case("list", lambda copy: (copy / unet_config).write_text("[]"))
    assert "it lacks visual_projection.weight" in case("lost", lose)
    assert "another shape in" in case(
        "shape", lambda copy: edit(copy / unet_config, block_out_channels=[16, 32, 48, 96])
    )
    assert "is not the UNet of Kandinsky 2.2: addition_embed_type is image_hint" in case(
        "control", lambda copy: edit(copy / unet_config, addition_embed_type="image_hint")
    )
    assert "encoder_hid_dim_type is None" in case(
        "plain", lambda copy: edit(copy / unet_config, encoder_hid_dim_type=None)
    )
    assert "describes no network" in case(
        "types", lambda copy: edit(copy / unet_config, block_out_channels="wide")
    )
    assert "describes no network" in case("clip", lambda copy: edit(copy / clip_config, hidden_size="wide"))
    assert "40 wide in one and 48 in the other" in case(
        "width", lambda copy: edit(copy / unet_config, encoder_hid_dim=48)
    )
    assert "image_mean" in case("mean", lambda copy: edit(copy / processor, image_mean=[0.5]))


@pytest.mark.parametrize(
    "raised", [torch.OutOfMemoryError(), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate")]
)
def test_too_little_memory_is_said_with_what_helps(
    folder: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    def overflow(*_: Any) -> Iterator[tuple[str, Tensor]]:
        raise raised
        yield

    monkeypatch.setattr(kandinsky_weights, "_sample", lambda *_: b"")
    monkeypatch.setattr(kandinsky_weights, "_read_tensors", overflow)
    error = refused(folder)
    assert "does not fit into the memory of cpu" in error.message and "concept make" in str(error.hint)


def test_clip_is_there_while_supports_are_embedded_and_gone_after(folder: Path, latents: Tensor) -> None:
    fresh = load_kandinsky(folder, device=CPU, dtype=torch.float32)

    def held() -> set[str]:
        return {tensor.device.type for tensor in fresh.image_encoder.state_dict().values()}

    images, masks = pictures(1), torch.ones(1, 1, 128, 128)
    assert held() == {"meta"}
    with torch.inference_mode():
        first = fresh.embed(images, masks)
    assert held() == {"cpu"} and torch.equal(fresh.embed(images, masks), first)
    look_at(fresh, latents, drawn(1, 1, 1, 40))
    assert held() == {"meta"}
    assert torch.equal(fresh.embed(images, masks), first)
    look_at(fresh, latents, drawn(1, 1, 1, 40))
    assert held() == {"cpu"}  # who embeds again goes on doing so


def test_a_pickle_beside_is_never_read(folder: Path, tmp_path: Path) -> None:
    def swap(copy: Path) -> None:
        torch.save(load_file(copy / UNET_WEIGHTS), (copy / UNET_WEIGHTS).with_suffix(".bin"))
        (copy / UNET_WEIGHTS).unlink()

    error = refused(copy_of(folder, tmp_path / "pickled", swap))
    assert "it lacks unet/diffusion_pytorch_model.safetensors" in error.message


# --- the whole tool with it


def test_a_picture_is_segmented_through_the_public_door(folder: Path) -> None:
    from diffseg_cli.assembly import load_segmenter

    segmenter = load_segmenter(str(folder), device="cpu")
    assert (segmenter.model, segmenter.head) == ("kandinsky-2-2", "attention")
    rng = np.random.default_rng(0)
    support, query = rng.integers(0, 255, (2, 90, 140, 3), dtype=np.uint8)
    mask = np.zeros((90, 140), bool)
    mask[20:60, 30:90] = True
    features = segmenter.encode_support([(support, mask), (query, mask)])
    first, again = (segmenter.segment(query, features, seed=3) for _ in range(2))
    assert first.mask.shape == (90, 140) and np.array_equal(first.probability, again.probability)
    assert first.score_map.min() < 0.1 and first.score_map.max() > 0.9
    other = segmenter.segment(query, features, seed=4)
    assert not np.array_equal(first.score_map, other.score_map)
