"""What contenders compute at full size, and how far this tool is from what must be computed. Needs no GPU.

    python -m benchmarks.flop

Everything is counted on meta tensors: shapes without numbers, so nothing is allocated. The floor is what
diffusers' and transformers' own networks take for the parts the method needs: MoVQ's encoder and decoder,
and the UNet as far as the probabilities of its last attention layer; for a support MoVQ's encoder and CLIP.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.contenders import CONTENDERS, Setting, middle
from diffseg_cli.bench.chart import form_flop
from diffseg_cli.bench.meters import FlopCounter, count_flop
from diffseg_cli.bench.random_kandinsky import FULL_SIZE, TINY, KandinskyConfigs, random_networks
from diffseg_cli.bench.subject import random_segmenter
from diffseg_cli.timing import Stages
from tools.account_memory import peak_of

META = torch.device("meta")
ON_META = ("diffseg", "straightforward", "seggpt-l", "dinov2-l+sam-h")
MEASURED = ON_META[:2]  # whose memory is counted too


def floor_of_unet(configs: KandinskyConfigs) -> dict[str, int]:
    """FLOP of diffusers' UNet for one image: all of it, and what follows the last probabilities."""
    from diffusers.models.attention_processor import AttnAddedKVProcessor

    unet: Any = random_networks(configs, device=META).unet
    unet.set_attn_processor(AttnAddedKVProcessor())
    last = max(i for i, block in enumerate(unet.up_blocks) if getattr(block, "attentions", None))
    attentions = unet.up_blocks[last].attentions
    layer = f"up_blocks.{last}.attentions.{len(attentions) - 1}"
    side = unet.config.sample_size
    latents = torch.empty(1, 4, side, side, device=META)
    embeds = torch.empty(1, unet.config.encoder_hid_dim, device=META)
    seen: dict[str, tuple[int, ...]] = {}
    attentions[-1].register_forward_pre_hook(lambda _, inputs: seen.update(hidden=tuple(inputs[0].shape)))
    with FlopCounter() as counter:
        unet(latents, torch.tensor([50], device=META), None, added_cond_kwargs={"image_embeds": embeds})
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    _, width, h, w = seen["hidden"]
    keys = h * w + unet.encoder_hid_proj.num_image_text_embeds
    after = {f"UNet2DConditionModel.{layer}.{part}" for part in ("to_v", "add_v_proj", "to_out.0")} | {
        "UNet2DConditionModel.conv_out",
        f"UNet2DConditionModel.up_blocks.{last}.upsamplers.0",
    }
    after |= {f"UNet2DConditionModel.up_blocks.{i}" for i in range(last + 1, len(unet.up_blocks))}
    spared = sum(by_module.get(name, 0) for name in after) + 2 * h * w * keys * width
    return {"whole": counter.get_total_flops(), "after the last probabilities": int(spared)}


def floor(configs: KandinskyConfigs = FULL_SIZE) -> dict[str, int]:
    """FLOP the parts must take, by the networks' own classes, one image each."""
    networks = random_networks(configs, device=META)
    movq: Any = networks.movq
    clip: Any = networks.image_encoder
    unet = floor_of_unet(configs)
    side = networks.unet.config.sample_size
    images = torch.empty(1, 3, side * 8, side * 8, device=META)
    latents = torch.empty(1, 4, side, side, device=META)
    crop = torch.empty(1, 3, clip.config.image_size, clip.config.image_size, device=META)
    return {
        "encode": count_flop(lambda: movq.encode(images)),
        "look": unet["whole"] - unet["after the last probabilities"],
        "decode": count_flop(lambda: movq.decode(latents, force_not_quantize=True)),
        "support: encode": count_flop(lambda: movq.encode(images)),
        "support: embed": count_flop(lambda: clip(crop)),
        "(the whole UNet)": unet["whole"],
    }


@torch.inference_mode()
def computed(configs: KandinskyConfigs = FULL_SIZE, batch_size: int = 1) -> dict[str, float]:
    """FLOP this tool takes, stage by stage, one image each."""
    segmenter = random_segmenter("kandinsky-2-2", device=META, dtype=torch.float32, configs=configs)
    backbone: Any = segmenter.backbone
    backbone.support_crop = None  # the crop depends on values; its cost is no matrix product
    size = backbone.image_size
    frames, queries = (torch.empty(n, 3, size, size, device=META) for n in (1, batch_size))
    spent: dict[str, float] = {}
    with FlopCounter() as counter:
        stages = Stages(counter.read)
        with stages("support: encode"):
            latents = backbone.encode(frames)
        with stages("support: embed"):
            backbone.embed(frames, middle(frames), latents)
    spent |= stages.spent
    support = segmenter.encode_frames(frames, middle(frames))
    with FlopCounter() as counter:
        stages = Stages(counter.read)
        with stages("edges"):
            edges = segmenter.find_edges(queries)
        with stages("encode"):
            latents = backbone.encode(queries)
        noise = segmenter.make_noise(latents, seed=0)
        replace(segmenter, stage=stages).forward(latents, edges, support, noise)
    return spent | {name: value / batch_size for name, value in stages.spent.items()}


def floor_table(batch_size: int = 1, configs: KandinskyConfigs = FULL_SIZE) -> list[dict[str, Any]]:
    """A row per part: what it must take, what it takes, and their ratio; parts beside the floor have none."""
    must, takes = floor(configs), computed(configs, batch_size)
    query = ("encode", "look", "decode")
    beside = [name for name in takes if name not in must]
    rows: list[dict[str, Any]] = [
        {"part": name, "floor": must.get(name, 0), "computed": takes[name]} for name in (*query, *beside)
    ]
    rows.append(
        {
            "part": "one query",
            "floor": sum(must[name] for name in query),
            "computed": sum(row["computed"] for row in rows),
        }
    )
    supports = ("support: encode", "support: embed")
    return rows + [{"part": name, "floor": must[name], "computed": takes[name]} for name in supports]


def contender_costs(batch_size: int = 1, *, tiny: bool = False) -> dict[str, dict[str, Any]]:
    """FLOP of one support and one query of every contender that runs on meta tensors.

    Of both ways to run Kandinsky also the bytes its weights take in float16, and those the tensors of a batch
    take at most; the others' fused attention needs less than can be counted here.
    """
    rows = {}
    for name in ON_META:
        contender = CONTENDERS[name](Setting(META, torch.float16, batch_size, tiny))
        with torch.inference_mode():
            support = contender.support()
            rows[name] = {
                "what": contender.what,
                "parameters": contender.weights_bytes // 2,
                "support": count_flop(contender.support),
                "query": count_flop(partial(contender.query, support)) / batch_size,
            }
        if name in MEASURED:
            rows[name]["weights_bytes"] = contender.weights_bytes
            rows[name]["tensor_bytes"] = peak_of(partial(contender.query, support))[1]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=1, help="queries at once")
    parser.add_argument("--tiny", action="store_true", help="small networks of the same classes, for a try")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    configs = TINY if chosen.tiny else FULL_SIZE
    record = {
        "floor": floor_table(chosen.batch_size, configs),
        "unet": floor_of_unet(configs),
        "contenders": contender_costs(chosen.batch_size, tiny=chosen.tiny),
    }
    if chosen.json:
        print(json.dumps(record, indent=2))
        return
    print("| part | floor | computed | ratio |\n|---|---|---|---|")
    for row in record["floor"]:
        ratio = f"{row['computed'] / row['floor']:.3f}" if row["floor"] else ""
        print(f"| {row['part']} | {form_flop(row['floor'])} | {form_flop(row['computed'])} | {ratio} |")
    print("\n| | parameters | a support | a query | ratio |\n|---|---|---|---|---|")
    own = record["contenders"]["diffseg"]["query"]
    for name, row in record["contenders"].items():
        print(
            f"| {name}: {row['what']} | {row['parameters'] / 1e6:.0f} M | {form_flop(row['support'])} "
            f"| {form_flop(row['query'])} | {row['query'] / own:.2f} |"
        )
    print("\n| float16, GB | weights | tensors | together |\n|---|---|---|---|")
    for name in MEASURED:
        row = record["contenders"][name]
        weights, tensors = row["weights_bytes"] / 1e9, row["tensor_bytes"] / 1e9
        print(f"| {name} | {weights:.2f} | {tensors:.2f} | {weights + tensors:.2f} |")


if __name__ == "__main__":
    main()
