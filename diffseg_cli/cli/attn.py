"""diffseg attn."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from diffseg_cli.choices import (
    OUTPUT,
    AdaptChoice,
    MaskChoice,
    ModelChoice,
    Option,
    Seed,
    SupportChoice,
    Zoom,
)
from diffseg_cli.cli import console, inputs, options
from diffseg_cli.cli.adapting import follow_with_bar
from diffseg_cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffseg_cli.attention_dump import AttentionDump

EXAMPLES = """Examples:

  diffseg attn --support dog.jpg --mask dog.png --query scene.jpg --out maps/

  diffseg attn -s dog.jpg -m dog.png -q scene.jpg --point 320,200 --layers"""

DETAIL = "Detail"  # panel of the help


def attn(
    query: Annotated[
        Path, Option("Image to look at.", options.QUERY, flags=("--query", "-q"), metavar="IMAGE")
    ],
    *,
    supports: SupportChoice,
    point: Annotated[
        list[str] | None,
        Option("Show the affinity of this pixel; repeat for several.", options.QUERY, metavar="X,Y"),
    ] = None,
    region: Annotated[
        Path | None,
        Option(
            "Show the affinity of this area. Default: where the score map is above 0.5.",
            options.QUERY,
            metavar="MASK",
        ),
    ] = None,
    layers: Annotated[bool, Option("Also the maps of each layer and timestep.", DETAIL)] = False,
    heads: Annotated[bool, Option("Also the maps of each attention head.", DETAIL)] = False,
    tokens: Annotated[bool, Option("Also the attention to each image token.", DETAIL)] = False,
    matrices: Annotated[bool, Option("Also save the whole affinity matrix of each scale.", DETAIL)] = False,
    maps: Annotated[bool, Option("Also each map as a PNG of the image's size, in a folder.", DETAIL)] = False,
    masks: MaskChoice,
    adapt: AdaptChoice,
    model: ModelChoice,
    zoom: Zoom = "off",
    seed: Seed = 0,
    arrays: Annotated[Literal["npz", "safetensors"], Option("File format of the arrays.", OUTPUT)] = "npz",
    out: options.Out = Path("diffseg_out"),
    json: options.Json = False,
) -> None:
    """Show where the model looks in an image: attention maps as a sheet and as arrays.

    Shows the supports and the mask, the cross-attention to the supports, the
    score map, and the affinity of a region, for all layers and for each scale;
    with --zoom also the windows of closer looks and what was marked in each.
    docs/attention-maps.md lists every array with its name and shape.
    """
    details = {"layers": layers, "heads": heads, "tokens": tokens}
    patterns = {"sheet": "*_attn.png"} | {
        kind: f"*_attn_{kind}.png" for kind, wanted in details.items() if wanted
    }
    patterns["arrays"] = f"*_attn.{arrays}"
    if maps:
        patterns["maps"] = "*_attn_maps"
    concepts = inputs.read_concepts(supports, masks, adapt)
    if len(concepts) > 1:
        raise UsageError("`diffseg attn` looks for one concept.", "Give --concept once.")
    others = [*concepts[0].files, *([region] if region else [])]
    (plan,) = inputs.plan_outputs([query], out, patterns, others)
    image, area, points = inputs.read_query(query, point or [], region)
    with console.working("Looking") as stop:
        from diffseg_cli.assembly import load_chosen
        from diffseg_cli.attention_dump import dump_attention
        from diffseg_cli.finding import encode_concepts

        segmenter = load_chosen(model)
        (concept,) = encode_concepts(segmenter, concepts, follow_with_bar(stop))
        segmenter, support = concept.answering(segmenter), concept.support
        console.say(f"Using {segmenter.description}.")
        parts = inputs.point_masks(points, image) if len(points) > 1 else []
        dump = dump_attention(
            segmenter, image, support, region=area, parts=parts, seed=seed, **details, matrices=matrices
        )
        answer = segmenter.segment(image, support, seed=seed, zoom=zoom)
        places = " and ".join(f"{x},{y}" for x, y in points)
        chosen = f"point {places}" if places else str(region) if region else "M_a above 0.5"
        windows = [{"box_xywh": each.window.box_xywh, "presence": each.presence} for each in answer.looks]
        info = {"query": str(query), "region": chosen, "seed": seed, "windows": windows}
        info |= segmenter.record()
        shown = {"supports": concept.tiles, "mask": answer.mask, "looks": answer.looks}
        shown |= {"points": points if parts else []}
        _write(dump, image, area, plan, info, shown)
    _print(dump, plan, info, as_json=json)


def _write(
    dump: "AttentionDump",
    image: "NDArray[np.uint8]",
    area: "NDArray[np.bool_] | None",
    plan: inputs.QueryOutputs,
    info: dict[str, Any],
    shown: dict[str, Any],
) -> None:
    """Write the sheets, the arrays and the maps."""
    from diffseg_cli.attention_dump import detail_sheet, draw_maps, main_sheet, write_arrays
    from diffseg_cli.results.render import write_image

    for what, path in plan.outputs.items():
        heading = f"{plan.query.name} seen by {info['model']}, region: {info['region']}"
        heading += "" if info["cross_map"] == "paper" else f", {info['cross_map']} M_cross"
        if what == "arrays":
            write_arrays(path, dump.arrays, info)
        elif what == "sheet":
            write_image(path, main_sheet(dump, image, area, heading, **shown))
        elif what == "maps":
            for name, pixels in draw_maps(dump, image):
                write_image(path / f"{name}.png", pixels)
        else:
            write_image(path, detail_sheet(dump, image, what, f"{heading}, {what}"))


def _print(dump: "AttentionDump", plan: inputs.QueryOutputs, info: dict[str, Any], *, as_json: bool) -> None:
    """Say what was written where."""
    outputs = {what: str(path) for what, path in plan.outputs.items()}
    if as_json:
        shapes = {name: list(array.shape) for name, array in dump.arrays.items()}
        console.result_json({**info, "outputs": outputs, "arrays": shapes})
        return
    console.result_paths(outputs.values())
