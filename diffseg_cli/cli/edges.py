"""diffseg edges."""

from pathlib import Path
from typing import Annotated

import typer

from diffseg_cli.choices import Device, Option
from diffseg_cli.cli import console, inputs, options

EXAMPLES = """Examples:

  diffseg edges scene.jpg

  diffseg edges photos/*.jpg --out edges/ --size 1024"""


def edges(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Images to trace.")],
    hed: Annotated[
        Path | None, Option("Other HED weights: safetensors or ControlNetHED.pth.", metavar="FILE")
    ] = None,
    size: Annotated[
        int,
        Option("Longest side the network sees; larger finds finer edges.", metavar="PX", least=16, most=4096),
    ] = 512,
    device: Device = "auto",
    out: options.Out = Path("diffseg_out"),
    json: options.Json = False,
) -> None:
    """Draw the edges of images, white on black, as HED finds them.

    The Spatial Control Module aligns attention maps with such edges.
    """
    plans = inputs.plan_outputs(images, out, {"edges": "*_edges.png"}, [hed] if hed else [])
    with console.working("Loading HED"):
        from diffseg_cli.compute import describe_device, resolve_device
        from diffseg_cli.edges import write_edges
        from diffseg_cli.weights.edge_detectors import load_hed

        place = resolve_device(device)
        network = load_hed(hed).to(place)
    console.say(f"Using HED on {describe_device(place)}.")
    for plan in console.track(plans, len(plans), "images"):
        write_edges(plan.query, plan.outputs["edges"], network, size)
        if json:
            row = {
                "image": str(plan.query),
                "edges": str(plan.outputs["edges"]),
                "size": size,
                "device": str(place),
            }
            console.result_json(row)
        else:
            console.result(str(plan.outputs["edges"]))
