"""What is compared: this tool, the method written down plainly, and other few-shot methods' networks.

All get tensors on their device and give masks there: reading, borders and writing files are left out. Weights
are random (but for compact and the prototype line): they decide what is found, not how long it takes.

Letters: b queries, S image size, H W = S/8, a heads, h w grid of a layer, n = h*w, t image tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.bench.random_kandinsky import FULL_SIZE, TINY, KandinskyNetworks, random_networks
from diffseg_cli.bench.subject import random_segmenter
from diffseg_cli.config import PamConfig, SegmentConfig
from diffseg_cli.models.attention import normalise, upsampling_matrix
from diffseg_cli.models.kandinsky import SUPPORT_CROP, crop_supports
from diffseg_cli.models.perceptual_attention import PerceptualAttention
from diffseg_cli.models.prototype import THRESHOLD, prototype_scores
from diffseg_cli.segmenter import Segmenter

SAM_POINTS = 8  # prompts a query, as many as the peer matcher-lite of `diffseg evaluate` sets
SEGGPT_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": [64, 32],
    "pretrain_image_size": 32,
    "decoder_hidden_size": 8,
    "merge_index": 0,
    "intermediate_hidden_state_indices": [0, 1, 2, 3],
}
DINO_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518}
DINO_TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56}
SAM_HUGE: dict[str, Any] = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "mlp_dim": 5120,
    "global_attn_indexes": [7, 15, 23, 31],
}
SAM_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "output_channels": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "mlp_dim": 64,
    "image_size": 64,
    "global_attn_indexes": [0],
    "window_size": 2,
    "num_pos_feats": 16,
}


@dataclass(frozen=True)
class Contender:
    """One method, ready to run.

    Attributes:
        what: in a few words, sizes included.
        support: encodes the supports; what it gives goes to `query`.
        query: masks of b queries.
        batch_size: b.
        weights_bytes: of all its networks.
    """

    what: str
    support: Callable[[], Any]
    query: Callable[[Any], Any]
    batch_size: int
    weights_bytes: int


@dataclass(frozen=True)
class Setting:
    """How contenders are built.

    Attributes:
        device: where they run; "meta" counts operations without memory.
        dtype: what they compute in.
        batch_size: b.
        tiny: the same classes, small enough for a test on a CPU.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int = 1
    tiny: bool = False

    def images(self, count: int, height: int, width: int | None = None) -> Tensor:
        """(count 3 height width) in [0, 1]."""
        if self.device.type == "meta":
            return torch.empty(count, 3, height, width or height, device="meta", dtype=self.dtype)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(count, 3, height, width or height, generator=generator)
        return drawn.to(self.device, self.dtype)

    def build(self, network: Any, config: Any) -> nn.Module:
        """A transformers model with random weights."""
        with torch.device(self.device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = network(config)
        return model.to(self.dtype).eval().requires_grad_(False)


def middle(images: Tensor) -> Tensor:
    """A mask (b 1 h w) of the middle of images (b 3 h w)."""
    mask = torch.zeros_like(images[:, :1])
    h, w = mask.shape[-2:]
    mask[..., h // 4 : 3 * h // 4, w // 4 : 3 * w // 4] = 1
    return mask


def size_of(*modules: Any) -> int:
    """Bytes of the weights."""
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


# --- this tool


def ours(segmenter: Segmenter, setting: Setting, what: str) -> Contender:
    """A segmenter with edges, SCM and PAM."""
    size = segmenter.backbone.image_size
    frames, queries = setting.images(1, size).float(), setting.images(setting.batch_size, size).float()

    def query(support: Any) -> Tensor:
        latents = segmenter.backbone.encode(queries)
        edges = segmenter.find_edges(queries)
        noise = None
        if segmenter.backbone.adds_noise:
            noise = torch.zeros_like(latents) if latents.is_meta else segmenter.make_noise(latents, seed=0)
        return segmenter.forward(latents, edges, support, noise).mask_image > 0.5

    backbone: Any = segmenter.backbone
    parts = [backbone] if isinstance(backbone, nn.Module) else networks_of(backbone)
    weights = size_of(*parts, segmenter.trained.modules, *([segmenter.hed] if segmenter.hed else []))
    return Contender(
        what,
        lambda: segmenter.encode_frames(frames, middle(frames)),
        query,
        setting.batch_size,
        weights,
    )


def networks_of(backbone: Any) -> list[nn.Module]:
    """The three networks of a Kandinsky backbone."""
    return [backbone.unet, backbone.movq, backbone.image_encoder]


def diffseg(setting: Setting) -> Contender:
    segmenter = random_segmenter(
        "kandinsky-2-2",
        device=setting.device,
        dtype=setting.dtype,
        configs=TINY if setting.tiny else FULL_SIZE,
    )
    if setting.device.type == "meta":
        segmenter.backbone.support_crop = None  # type: ignore[attr-defined] # the crop depends on values
    return ours(segmenter, setting, f"Kandinsky 2.2 as it runs here, {segmenter.backbone.image_size} px")


def compact(setting: Setting) -> Contender:
    segmenter = load_segmenter("compact", device=str(setting.device), dtype=_name(setting.dtype))
    return ours(segmenter, setting, f"the compact model, {segmenter.backbone.image_size} px")


# --- the training-free line on compact's encoder


def prototype(setting: Setting) -> Contender:
    segmenter = load_segmenter("compact", device=str(setting.device), dtype=_name(setting.dtype))
    backbone: Any = segmenter.backbone
    frames = setting.images(1, backbone.image_size).float()
    queries = setting.images(setting.batch_size, backbone.image_size).float()

    def query(support: Any) -> Tensor:
        scores = prototype_scores(
            backbone.encode(queries), support.latents, support.masks, backbone.channel_weights
        )
        return F.interpolate(scores, scale_factor=8, mode="bilinear") > THRESHOLD

    return Contender(
        f"prototype line on compact's encoder, {backbone.image_size} px",
        lambda: segmenter.encode_frames(frames, middle(frames)),
        query,
        setting.batch_size,
        size_of(backbone.encoder),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- the method as the paper writes it


class Straightforward:
    """Kandinsky with diffusers' explicit attention: all maps are kept, brought to (HW)x(HW), and averaged.

    The whole UNet runs, once for every image with its own copy of the prompt; SCM and its edges are left
    out, which favours it.
    """

    def __init__(self, networks: KandinskyNetworks, setting: Setting) -> None:
        from diffusers.models.attention_processor import AttnAddedKVProcessor

        self.unet, self.movq, self.clip = networks.unet, networks.movq, networks.image_encoder
        self.scheduler: Any = networks.scheduler
        self.mean, self.std = (
            torch.tensor(v, device=setting.device, dtype=setting.dtype)[:, None, None]
            for v in (networks.pixel_mean, networks.pixel_std)
        )
        config = PamConfig()
        pam = PerceptualAttention(
            latent_channels=4,
            groups=(4,),
            width=config.width,
            head_width=config.head_width,
            heads=config.heads,
        )
        self.pam = pam.eval().requires_grad_(False).to(setting.device, setting.dtype)
        for network in (self.unet, self.movq, self.clip):
            network.eval().requires_grad_(False)
        self.unet.set_attn_processor(AttnAddedKVProcessor())
        self.kept: list[Tensor] = []  # (b*a n t+n) a layer
        for module in self.unet.modules():
            if hasattr(module, "get_attention_scores"):
                self._keep(module)

    def _keep(self, attn: Any) -> None:
        explicit = attn.get_attention_scores

        def kept(*arguments: Any) -> Tensor:
            probabilities: Tensor = explicit(*arguments)
            self.kept.append(probabilities.unflatten(0, (-1, attn.heads)))
            return probabilities

        attn.get_attention_scores = kept

    def support(self, frames: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, masks at their size, and CLIP's embedding."""
        latents = self.movq.encode(frames * masks * 2 - 1).latents
        margin = None if frames.is_meta else SUPPORT_CROP  # the crop depends on values
        size = self.clip.config.image_size
        crops = crop_supports(frames.float(), masks.float(), margin=margin, size=size).to(frames)
        embeds = self.clip((crops - self.mean) / self.std).image_embeds
        return latents, F.interpolate(masks, size=latents.shape[-2:], mode="area"), embeds

    def query(self, images: Tensor, encoded: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Masks (b 1 S S)."""
        support_latents, masks, embeds = encoded
        b = images.shape[0]
        latents = self.movq.encode(images * 2 - 1).latents
        level = torch.tensor(SegmentConfig.timesteps, device=images.device)
        noised = self.scheduler.add_noise(latents, torch.ones_like(latents), level)
        self.kept.clear()
        self.unet(noised, level, None, added_cond_kwargs={"image_embeds": embeds.expand(b, -1)})
        score_map = self._score_map((latents.shape[2], latents.shape[3]))
        support_latents, masks = (v[None].expand(b, -1, -1, -1, -1) for v in (support_latents, masks))
        predicted = self.pam(latents, support_latents, masks, score_map.to(latents))
        decoded: Tensor = self.movq.decode(predicted, force_not_quantize=True).sample
        return (decoded.mean(1, keepdim=True) + 1) / 2 > 0.5

    def _score_map(self, size_hw: tuple[int, int]) -> Tensor:
        """Eq. 7 and 11 with the matrices written out: (b 1 H W)."""
        crosses, selves = [], []
        for probabilities in self.kept:
            b, _, n, keys = probabilities.shape
            grid = round(n**0.5)
            mean = probabilities.mean(1)  # (b n t+n)
            cross = mean[..., : keys - n].sum(-1).view(b, 1, grid, grid)
            crosses.append(F.interpolate(cross, size=size_hw, mode="bilinear"))
            affinity = mean[..., keys - n :]
            affinity = affinity / affinity.sum(-1, keepdim=True)
            along = upsampling_matrix(size_hw[0], grid, like=affinity).sum(0)
            affinity = affinity / torch.outer(along, along).flatten()  # so that rows go on summing to 1
            columns = F.interpolate(affinity.view(b, n, grid, grid), size=size_hw, mode="bilinear").flatten(2)
            rows = columns.transpose(1, 2).reshape(b, -1, grid, grid)  # (b HW h w)
            large = F.interpolate(rows, size=size_hw, mode="bilinear").flatten(2).transpose(1, 2)
            selves.append(large)  # (b HW HW)
        cross_map = torch.stack(crosses).mean(0)  # (b 1 H W)
        smoothed = torch.stack(selves).mean(0) @ cross_map.flatten(2).transpose(1, 2)  # (b HW 1)
        return normalise(smoothed.transpose(1, 2).reshape(cross_map.shape))


def straightforward(setting: Setting) -> Contender:
    networks = random_networks(
        TINY if setting.tiny else FULL_SIZE, device=setting.device, dtype=setting.dtype
    )
    method = Straightforward(networks, setting)
    size = networks.unet.config.sample_size * 8
    frames, queries = setting.images(1, size), setting.images(setting.batch_size, size)
    return Contender(
        f"the same written plainly: diffusers' UNet, all maps at {size // 8 * size // 8} places, {size} px",
        lambda: method.support(frames, middle(frames)),
        partial(method.query, queries),
        setting.batch_size,
        size_of(method.unet, method.movq, method.clip, method.pam),
    )


# --- other methods' networks


def seggpt(setting: Setting) -> Contender:
    """SegGPT paints the query's mask with the support beside it, so that nothing of it can be kept."""
    from transformers import SegGptConfig, SegGptForImageSegmentation

    model = setting.build(SegGptForImageSegmentation, SegGptConfig(**(SEGGPT_TINY if setting.tiny else {})))
    config: Any = model.config
    height, width = config.image_size[0] // 2, config.image_size[1]
    queries = setting.images(setting.batch_size, height, width)
    prompts = setting.images(1, height, width).expand(setting.batch_size, -1, -1, -1)
    painted = middle(prompts).expand(-1, 3, -1, -1).contiguous()

    def query(_: Any) -> Tensor:
        masks: Tensor = model(
            pixel_values=queries,
            prompt_pixel_values=prompts,
            prompt_masks=painted,
            embedding_type="instance",
        ).pred_masks
        return masks[:, :, height:].mean(1, keepdim=True) > 0.5

    what = f"SegGPT, ViT-L, {width} px"
    return Contender(what, lambda: None, query, setting.batch_size, size_of(model))


def matcher(setting: Setting) -> Contender:
    """The networks of Matcher: DINOv2 finds places by similarity, SAM draws a mask at points.

    With random weights nothing matches, so the points are a fixed grid.
    """
    from transformers import Dinov2Config, Dinov2Model, SamConfig, SamModel, SamVisionConfig

    dino = setting.build(
        Dinov2Model, Dinov2Config(patch_size=14, **(DINO_TINY if setting.tiny else DINO_LARGE))
    )
    vision = SamVisionConfig(**(SAM_TINY if setting.tiny else SAM_HUGE))
    prompt: dict[str, Any] = {"image_size": vision.image_size}
    decoder: dict[str, Any] = {}
    if setting.tiny:
        prompt["hidden_size"] = 32
        decoder = {"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        decoder |= {"iou_head_hidden_dim": 16}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    sam: Any = setting.build(SamModel, config)
    side, b = dino.config.image_size, setting.batch_size  # type: ignore[union-attr]
    small, large = setting.images(b, side), setting.images(b, vision.image_size)
    prompts = setting.images(1, side)
    places = torch.linspace(0.2, 0.8, SAM_POINTS, device=setting.device, dtype=setting.dtype)
    points = (places * vision.image_size)[None, :, None, None].expand(b, -1, 1, 2)

    def features(images: Tensor) -> Tensor:
        tokens: Tensor = dino(pixel_values=images).last_hidden_state[:, 1:]
        return F.normalize(tokens, dim=-1)

    def query(support: Tensor) -> Tensor:
        nearest = (features(small) @ support.transpose(1, 2)).argmax(-1)
        embeddings = sam.get_image_embeddings(large)
        logits = sam(image_embeddings=embeddings, input_points=points).pred_masks.flatten(1, 2)
        masks = F.interpolate(logits, size=vision.image_size, mode="bilinear") > 0
        return masks & (nearest.amin() >= 0)  # so that the matching is waited for

    what = f"DINOv2-L at {side} px and SAM ViT-H at {vision.image_size} px, Matcher's networks"
    return Contender(what, lambda: features(prompts), query, b, size_of(dino, sam))


CONTENDERS: dict[str, Callable[[Setting], Contender]] = {
    "diffseg": diffseg,
    "straightforward": straightforward,
    "seggpt-l": seggpt,
    "dinov2-l+sam-h": matcher,
    "compact": compact,
    "prototype": prototype,
}
REFERENCES = {"prototype": "compact"}  # beside which a contender is put; "diffseg" for the others
