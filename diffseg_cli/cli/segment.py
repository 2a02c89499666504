"""diffseg segment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffseg_cli.cli import console, inputs, options
from diffseg_cli.timing import Watch

if TYPE_CHECKING:
    from diffseg_cli.prediction import Prediction, SupportFeatures
    from diffseg_cli.segmenter import Segmenter

EXAMPLES = """Examples:

  diffseg segment --support dog.jpg --mask dog.png --query scene.jpg

  diffseg segment -s a.jpg -m a.png -s b.jpg -m b.png -q c.jpg -q d.jpg -o out"""

RESULTS = {"mask": "_mask.png", "heatmap": "_heatmap.png", "overlay": "_overlay.png"}


def segment(
    support: options.Support,
    mask: options.Mask,
    query: Annotated[
        list[Path],
        typer.Option(
            "--query",
            "-q",
            metavar="IMAGE",
            help="Picture to search; repeat it for several; - reads one from stdin.",
            rich_help_panel=options.QUERY,
        ),
    ],
    label: options.Label = None,
    color: options.Color = None,
    category: options.Category = None,
    annotation: options.Annotation = None,
    invert_mask: options.InvertMask = False,
    fit_mask: options.FitMask = False,
    model: options.Model = "compact",
    checkpoint: options.Checkpoint = None,
    head: options.Head = None,
    fusion: options.Fusion = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    offload: options.Offload = False,
    timesteps: options.Timesteps = None,
    seed: options.Seed = 0,
    threshold: options.Threshold = 0.5,
    min_presence: options.MinPresence = 0.0,
    refine: options.Refine = None,
    out: options.Out = Path("diffseg_out"),
    json: options.Json = False,
) -> None:
    """Find a thing in pictures, given one or a few pictures of it with masks.

    Writes the mask (PNG, 0 and 255), the attention heatmap and an overlay of
    each query, at the size and orientation a viewer shows it in, and prints
    where they are. In a pipe, --query - --out - takes a picture and gives a mask.
    """
    inputs.check_streams(query, out, as_json=json)
    results = {} if out == inputs.STREAM else RESULTS
    plans = inputs.plan_outputs(query, out, results, [*support, *mask])
    pairs = inputs.read_supports(
        support,
        mask,
        label=label,
        color=color,
        category=category,
        annotation=annotation,
        invert=invert_mask,
        fit=fit_mask,
    )
    watch = Watch()
    with console.working("Loading the model"):
        from diffseg_cli.segmenter import load_segmenter

        segmenter = load_segmenter(
            model,
            checkpoint,
            device,
            dtype,
            head=head,
            fusion=fusion,
            offload=offload,
            timesteps=options.split_timesteps(timesteps),
        )
        watch.mark("load")
        features = segmenter.encode_support(pairs)
        watch.mark("support")
    console.say(f"Using {segmenter.description}.")
    for plan in console.track(plans, len(plans), "pictures"):
        choices = {"threshold": threshold, "min_presence": min_presence, "refine": refine, "seed": seed}
        _segment_one(segmenter, features, plan, choices, watch.seconds, as_json=json)


def _why_empty(prediction: "Prediction") -> str:
    if (prediction.probability > prediction.threshold).any():
        return f"the thing does not seem to be there (presence {prediction.presence:.2f})"
    return f"no pixel is above the threshold {prediction.threshold:g}"


def _segment_one(
    segmenter: "Segmenter",
    features: "SupportFeatures",
    plan: inputs.Plan,
    choices: dict[str, Any],
    shared_seconds: dict[str, float],
    *,
    as_json: bool,
) -> None:
    """Segment one query, write its results, say where they are."""
    from diffseg_cli.render import mask_pixels, png_bytes, write_heatmap, write_mask, write_overlay

    watch = Watch()
    image = inputs.read_query_image(plan.query)
    watch.mark("read")
    prediction = segmenter.segment(image, features, **choices)
    watch.mark("segment")
    if plan.outputs:
        write_mask(plan.outputs["mask"], prediction.mask)
        write_heatmap(plan.outputs["heatmap"], prediction.score_map, image)
        write_overlay(plan.outputs["overlay"], image, prediction.mask)
    else:
        console.result_bytes(png_bytes(mask_pixels(prediction.mask)))
    watch.mark("write")
    if not prediction.mask.any():
        console.note(f"{plan.query}: {_why_empty(prediction)}; the mask is empty.")
    if not as_json:
        for output in plan.outputs.values():
            console.result(str(output))
        return
    seconds = {
        **shared_seconds,
        **prediction.seconds,
        "read": watch.seconds["read"],
        "write": watch.seconds["write"],
    }
    console.result_json(_row(segmenter, prediction, plan, choices, seconds))


def _row(
    segmenter: "Segmenter",
    prediction: "Prediction",
    plan: inputs.Plan,
    choices: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """One picture as JSON; the seconds of "load" and "support" were spent once for the whole run."""
    return {
        "query": str(plan.query),
        "outputs": {what: str(path) for what, path in plan.outputs.items()},
        "size_hw": list(prediction.mask.shape),
        "mask_area": float(prediction.mask.mean()),
        "presence": prediction.presence,
        **choices,
        "refine": segmenter.settings.refine if choices["refine"] is None else choices["refine"],
        **inputs.model_record(segmenter),
        "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
    }
