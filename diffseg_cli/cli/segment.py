"""diffseg segment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffseg_cli.cli import console, inputs, options
from diffseg_cli.cli.things import Encoded, Thing, encode_things, find_things, read_pairs
from diffseg_cli.errors import UsageError
from diffseg_cli.timing import Watch

if TYPE_CHECKING:
    from diffseg_cli.prediction import Prediction
    from diffseg_cli.results.outputs import RunFiles, Scene
    from diffseg_cli.segmenter import Segmenter

EXAMPLES = """Examples:

  diffseg segment --support dog.jpg --mask dog.png --query scene.jpg

  diffseg segment -c dog.dsc -c sofa.dsc -q scene.jpg -f mask -f coco"""


def segment(
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
    support: options.Support = None,
    mask: options.Mask = None,
    concept: options.Concept = None,
    name: options.Name = None,
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
    file_format: options.Format = None,
    matting: options.Matting = False,
    out: options.Out = Path("diffseg_out"),
    json: options.Json = False,
) -> None:
    """Find a thing in pictures, given one or a few pictures of it with masks.

    Writes the mask (PNG, 0 and 255), the attention heatmap and an overlay of
    each query, or what --format says, at the size and orientation a viewer
    shows it in, and prints where they are. Several concepts share one label
    map: value 1 is the first, 2 the second. In a pipe, --query - --out - takes
    a picture and gives a mask.
    """
    inputs.check_streams(query, out, as_json=json)
    choice: dict[str, Any] = {"label": label, "color": color, "category": category, "annotation": annotation}
    things = find_things(support, mask, concept, name, invert=invert_mask, fit=fit_mask, **choice)
    plans, run_paths = _plan(query, out, file_format, things, matting=matting)
    pairs = read_pairs(things)
    watch = Watch()
    with console.working("Loading the model"):
        from diffseg_cli.results.outputs import RunFiles
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
        encoded = encode_things(segmenter, things, pairs)
        watch.mark("support")
    console.say(f"Using {segmenter.description}.")
    choices = {"threshold": threshold, "min_presence": min_presence, "refine": refine, "seed": seed}
    record = {**_settings(segmenter, choices), "things": [each.record for each in encoded]}
    run = RunFiles(run_paths, [each.name for each in encoded], record)
    for plan in console.track(plans, len(plans), "pictures"):
        row = _segment_one(segmenter, encoded, plan, choices, watch.seconds, run, matting=matting)
        if json:
            console.result_json(row)
        else:
            for output in plan.outputs.values():
                console.result(str(output))
    run.write()
    if not json:
        for path in run_paths.values():
            console.result(str(path))


def _plan(
    queries: list[Path], out: Path, formats: list[str] | None, things: list[Thing], *, matting: bool
) -> tuple[list[inputs.Plan], dict[str, Path]]:
    """The files of each picture and those of the run, checked as in `inputs.plan_outputs`."""
    from diffseg_cli.results.cutout import load_matting
    from diffseg_cli.results.outputs import DEFAULT_FORMATS, RUN_FILES, picture_files
    from diffseg_cli.results.render import check_folder

    chosen = list(dict.fromkeys(formats or DEFAULT_FORMATS))
    if matting and "cutout" not in chosen:
        raise UsageError("--matting is for cut-outs.", "Add --format cutout, or leave it out.")
    if matting:
        load_matting()
    read = [path for thing in things for path in thing.files]
    if out == inputs.STREAM:
        if formats and chosen != ["mask"]:
            raise UsageError("--out - writes the mask alone.", "Give a folder for other formats.")
        return inputs.plan_outputs(queries, out, {}, read), {}
    suffixes = picture_files(chosen, [thing.name for thing in things])
    plans = inputs.plan_outputs(queries, out, suffixes, read)
    run_paths = {what: out / RUN_FILES[what] for what in chosen if what in RUN_FILES}
    taken = {
        path.resolve() for path in [*queries, *read, *(p for plan in plans for p in plan.outputs.values())]
    }
    for path in run_paths.values():
        if path.resolve() in taken:
            raise UsageError(f"{path} would be written twice, or is read.", "Choose another --out.")
    if run_paths:
        check_folder(out)
    return plans, run_paths


def _segment_one(
    segmenter: "Segmenter",
    encoded: list[Encoded],
    plan: inputs.Plan,
    choices: dict[str, Any],
    shared_seconds: dict[str, float],
    run: "RunFiles",
    *,
    matting: bool,
) -> dict[str, Any]:
    """Segment one query, write its results; returns what JSON says of it."""
    from diffseg_cli.results.outputs import Found, Scene, mask_png, settle, write_result

    watch = Watch()
    image = inputs.read_query_image(plan.query)
    watch.mark("read")
    query = segmenter.encode_queries([image])
    predictions = [segmenter.segment_encoded(query, each.support, **choices)[0] for each in encoded]
    watch.mark("segment")
    found = [
        Found(each.name, p.mask, p.probability, p.score_map, p.presence)
        for each, p in zip(encoded, predictions, strict=True)
    ]
    tiles = [tile for each in encoded for tile in each.tiles]
    picture = Path("stdin") if plan.query == inputs.STREAM else plan.query
    scene = Scene(picture, image, settle(found), tiles)
    for what, path in plan.outputs.items():
        write_result(what, path, scene, matting=matting)
    if not plan.outputs and not run.paths:
        console.result_bytes(mask_png(scene.masks))
    watch.mark("write")
    for index, prediction in enumerate(predictions):
        if not prediction.mask.any():
            name = f"{encoded[index].name}: " if len(encoded) > 1 else ""
            console.note(f"{plan.query}: {name}{_why_empty(prediction)}; the mask is empty.")
    seconds = {**shared_seconds, **query.seconds, "read": watch.seconds["read"]}
    for stage in predictions[0].seconds.keys() - query.seconds.keys():
        seconds[stage] = sum(prediction.seconds[stage] for prediction in predictions)
    row = _row(scene, plan, run, {**seconds, "write": watch.seconds["write"]}, _settings(segmenter, choices))
    run.add(scene, row)
    return row


def _why_empty(prediction: "Prediction") -> str:
    if (prediction.probability > prediction.threshold).any():
        return f"the thing does not seem to be there (presence {prediction.presence:.2f})"
    return f"no pixel is above the threshold {prediction.threshold:g}"


def _settings(segmenter: "Segmenter", choices: dict[str, Any]) -> dict[str, Any]:
    """What decided a result."""
    refine = segmenter.settings.refine if choices["refine"] is None else choices["refine"]
    return {**choices, "refine": refine, **inputs.model_record(segmenter)}


def _row(
    scene: "Scene",
    plan: inputs.Plan,
    run: "RunFiles",
    seconds: dict[str, float],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """One picture as JSON; the seconds of "load" and "support" were spent once for the whole run."""
    things = [
        {
            "name": thing.name,
            "label": label,
            "mask_area": float(thing.mask.mean()),
            "presence": thing.presence,
            "score": round(thing.score, 4),
        }
        for label, thing in enumerate(scene.things, start=1)
    ]
    return {
        "query": str(plan.query),
        "outputs": {what: str(path) for what, path in {**run.paths, **plan.outputs}.items()},
        "size_hw": list(scene.image.shape[:2]),
        "mask_area": sum(float(thing.mask.mean()) for thing in scene.things),
        "presence": scene.things[0].presence if len(scene.things) == 1 else None,
        "things": things,
        **settings,
        "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
    }
