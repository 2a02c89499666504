"""diffseg segment."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffseg_cli.choices import AnswerChoice, FormatChoice, MaskChoice, ModelChoice, SupportChoice
from diffseg_cli.cli import console, inputs, options
from diffseg_cli.cli.found import say_found
from diffseg_cli.errors import UsageError
from diffseg_cli.timing import Watch

if TYPE_CHECKING:
    from diffseg_cli.concept import Concept, SavedConcept, SupportSet
    from diffseg_cli.results.outputs import RunFiles
    from diffseg_cli.segmenter import Segmenter

EXAMPLES = """Examples:

  diffseg segment --support dog.jpg --mask dog.png --query scene.jpg

  diffseg segment photos/*.jpg -c dog.dsc -c sofa.dsc -f mask -f coco"""


def segment(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE", help="Images to search; - reads one from stdin."),
    ] = None,
    query: Annotated[
        list[Path] | None,
        typer.Option(
            "--query",
            "-q",
            metavar="IMAGE",
            help="The same as an option; repeat for several.",
            rich_help_panel=options.QUERY,
        ),
    ] = None,
    *,
    supports: SupportChoice,
    masks: MaskChoice,
    model: ModelChoice,
    answer: AnswerChoice,
    files: FormatChoice,
    out: options.Out = Path("diffseg_out"),
    json: options.Json = False,
) -> None:
    """Find an object in images, given one or a few images of it with masks.

    Writes the mask (PNG, 0 and 255), the attention heatmap and an overlay of
    each query, or what --format says, at the size and orientation a viewer
    shows it in, and prints where they are. Several concepts share one label
    map: value 1 is the first, 2 the second. In a pipe,
    --query - --out - takes an image and gives a mask.
    """
    queries = [*(query or []), *(images or [])]
    inputs.check_queries(queries)
    inputs.check_streams(queries, out, as_json=json)
    wanted = inputs.read_concepts(supports, masks)
    plans, run_paths = _plan(queries, out, files, wanted)
    watch = Watch()
    with console.working("Loading the model"):
        from diffseg_cli.assembly import load_chosen
        from diffseg_cli.files import write_whole
        from diffseg_cli.finding import settings_record
        from diffseg_cli.results.outputs import RunFiles

        segmenter = load_chosen(model)
        watch.mark("load")
        concepts = [each.concept(segmenter) for each in wanted]
        watch.mark("support")
    console.say(f"Using {segmenter.description}.")
    settings = settings_record(segmenter, answer)
    record = {**settings, "concepts": [each.record for each in concepts]}
    run = RunFiles(run_paths, [each.name for each in concepts], record)
    shared = {"outputs": {what: str(path) for what, path in run_paths.items()}, **settings}
    for plan in console.track(plans, len(plans), "images"):
        row = _segment_one(
            segmenter, concepts, plan, answer, run, shared, watch.seconds, matting=files.matting
        )
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
    queries: list[Path], out: Path, files: FormatChoice, wanted: "list[SupportSet | SavedConcept]"
) -> tuple[list[inputs.Plan], dict[str, Path]]:
    """The files of each image and those of the run, checked as in `inputs.plan_outputs`."""
    from diffseg_cli.results.outputs import RUN_FILES, choose_formats, picture_files

    chosen = choose_formats(files.formats, matting=files.matting)
    read = [path for each in wanted for path in each.files]
    if out == inputs.STREAM:
        if files.formats and chosen != ["mask"]:
            raise UsageError("--out - writes the mask alone.", "Give a folder for other formats.")
        return inputs.plan_outputs(queries, out, {}, read), {}
    suffixes = picture_files(chosen, [each.name for each in wanted])
    run_files = {what: RUN_FILES[what] for what in chosen if what in RUN_FILES}
    plans = inputs.plan_outputs(queries, out, suffixes, read, list(run_files.values()))
    return plans, {what: out / name for what, name in run_files.items()}


def _segment_one(
    segmenter: "Segmenter",
    concepts: "list[Concept]",
    plan: inputs.Plan,
    answer: AnswerChoice,
    run: "RunFiles",
    shared: dict[str, Any],
    shared_seconds: dict[str, float],
    *,
    matting: bool,
) -> dict[str, Any]:
    """Segment one query, write its results; returns what JSON says of it."""
    from diffseg_cli.files import write_whole
    from diffseg_cli.finding import find_in, scene_record
    from diffseg_cli.results.outputs import mask_png, result_bytes, run_shapes

    watch = Watch()
    image = inputs.read_query_image(plan.query)
    watch.mark("read")
    picture = Path("stdin") if plan.query == inputs.STREAM else plan.query
    (found,) = find_in(segmenter, segmenter.encode_queries([image]), concepts, [picture], answer)
    watch.mark("segment")
    for what, path in plan.outputs.items():
        write_whole(path, result_bytes(what, path, found.scene, matting=matting))
    if not plan.outputs and not run.formats:
        console.result_bytes(mask_png(found.scene.masks))
    watch.mark("write")
    # The seconds of "load" and "support" were spent once for the whole run.
    seconds = {
        **shared_seconds,
        **found.seconds,
        **{what: watch.seconds[what] for what in ("read", "write")},
    }
    row = {
        "query": str(plan.query),
        **scene_record(found.scene),
        **shared,
        "outputs": shared["outputs"] | {what: str(path) for what, path in plan.outputs.items()},
        "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
    }
    say_found(str(picture), row, found.notes)
    run.add(picture.name, row, run_shapes(found.scene, run.formats))
    return row
