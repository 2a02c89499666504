"""diffseg segment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffseg_cli.cli import console, inputs, options
from diffseg_cli.cli.things import find_things, read_pairs
from diffseg_cli.errors import UsageError
from diffseg_cli.timing import Watch

if TYPE_CHECKING:
    from diffseg_cli.finding import Encoded, Thing
    from diffseg_cli.results.outputs import RunFiles
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
        from diffseg_cli.finding import encode_things, settings_record
        from diffseg_cli.results.outputs import RunFiles
        from diffseg_cli.results.render import write_whole
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
    settings = settings_record(segmenter, choices)
    record = {**settings, "things": [each.record for each in encoded]}
    run = RunFiles(run_paths, [each.name for each in encoded], record)
    shared = {"outputs": {what: str(path) for what, path in run_paths.items()}, **settings}
    for plan in console.track(plans, len(plans), "pictures"):
        row = _segment_one(segmenter, encoded, plan, choices, run, shared, watch.seconds, matting=matting)
        if json:
            console.result_json(row)
        else:
            for output in plan.outputs.values():
                console.result(str(output))
    for what, content in run.contents().items():
        write_whole(run_paths[what], content)
    if not json:
        for path in run_paths.values():
            console.result(str(path))


def _plan(
    queries: list[Path], out: Path, formats: list[str] | None, things: "list[Thing]", *, matting: bool
) -> tuple[list[inputs.Plan], dict[str, Path]]:
    """The files of each picture and those of the run, checked as in `inputs.plan_outputs`."""
    from diffseg_cli.results.outputs import RUN_FILES, choose_formats, picture_files
    from diffseg_cli.results.render import check_folder

    chosen = choose_formats(formats, matting=matting)
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
    encoded: "list[Encoded]",
    plan: inputs.Plan,
    choices: dict[str, Any],
    run: "RunFiles",
    shared: dict[str, Any],
    shared_seconds: dict[str, float],
    *,
    matting: bool,
) -> dict[str, Any]:
    """Segment one query, write its results; returns what JSON says of it."""
    from diffseg_cli.finding import find_in, scene_record
    from diffseg_cli.results.outputs import mask_png, result_bytes, run_shapes
    from diffseg_cli.results.render import write_whole

    watch = Watch()
    image = inputs.read_query_image(plan.query)
    watch.mark("read")
    picture = Path("stdin") if plan.query == inputs.STREAM else plan.query
    (answer,) = find_in(segmenter, segmenter.encode_queries([image]), encoded, [picture], choices)
    watch.mark("segment")
    for what, path in plan.outputs.items():
        write_whole(path, result_bytes(what, path, answer.scene, matting=matting))
    if not plan.outputs and not run.formats:
        console.result_bytes(mask_png(answer.scene.masks))
    watch.mark("write")
    for reason in answer.empty:
        console.note(f"{plan.query}: {reason}; the mask is empty.")
    # The seconds of "load" and "support" were spent once for the whole run.
    seconds = {
        **shared_seconds,
        **answer.seconds,
        **{what: watch.seconds[what] for what in ("read", "write")},
    }
    row = {
        "query": str(plan.query),
        **scene_record(answer.scene),
        **shared,
        "outputs": shared["outputs"] | {what: str(path) for what, path in plan.outputs.items()},
        "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
    }
    run.add(picture.name, row, run_shapes(answer.scene, run.formats))
    return row
