"""diffseg segment."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffseg_cli.choices import AnswerChoice, Option
from diffseg_cli.cli import console, inputs, options
from diffseg_cli.cli.adapting import follow_with_bar, say_adapted
from diffseg_cli.cli.found import say_found
from diffseg_cli.errors import UsageError
from diffseg_cli.timing import Stopwatch

if TYPE_CHECKING:
    from diffseg_cli.results.formats import RunContents
    from diffseg_cli.segmenter import Segmenter
    from diffseg_cli.supports.concept import Concept, SavedConcept, SupportSet

EXAMPLES = """Examples:

  diffseg segment --support dog.jpg --mask dog.png --query scene.jpg

  diffseg segment photos/*.jpg -c dog.dsc -c sofa.dsc -f mask -f coco"""


def segment(
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Images to search; - reads one from stdin.")
    ] = None,
    query: Annotated[
        list[Path] | None,
        Option(
            "The same as an option; repeat for several.",
            options.QUERY,
            flags=("--query", "-q"),
            metavar="IMAGE",
        ),
    ] = None,
    *,
    search: options.SearchChoice,
    out: options.Out = Path("diffseg_out"),
    json: options.Json = False,
) -> None:
    """Find an object in images, given one or a few images of it with masks.

    Writes the mask (PNG, 0 and 255), the attention heatmap and an overlay of
    each query, or what --format says, at the size and orientation a viewer
    shows it in, and prints where they are. Several concepts share one label
    map: value 1 is the first, 2 the second. In a pipe, --query - --out - takes
    an image and gives a mask.
    """
    queries = [*(query or []), *(images or [])]
    inputs.check_queries(queries)
    inputs.check_streams(queries, out, as_json=json)
    wanted = inputs.read_concepts(search.supports, search.masks, search.adapt)
    formats, plans = _plan(queries, out, search, wanted)
    run = _load(wanted, search, formats, out)
    for plan in console.track(plans, len(plans), "images"):
        row = run.segment(plan)
        if json:
            console.result_json(row)
        else:
            console.result_paths(plan.outputs.values())
    paths = run.finish()
    if not json:
        console.result_paths(paths)


def _plan(
    queries: list[Path], out: Path, search: options.SearchChoice, wanted: "list[SupportSet | SavedConcept]"
) -> tuple[list[str], list[inputs.QueryOutputs]]:
    """The formats of the run and the files of each image, checked as in `inputs.plan_outputs`."""
    from diffseg_cli.results.formats import image_patterns, run_files
    from diffseg_cli.results.outputs import choose_formats

    files = search.files
    chosen = choose_formats(files.formats, matting=files.matting, instances=search.answer.instances)
    read = [path for each in wanted for path in each.files]
    if out == inputs.STREAM:
        if files.formats and chosen != ["mask"]:
            raise UsageError("--out - writes the mask alone.", "Give a folder for other formats.")
        return [], inputs.plan_outputs(queries, out, {}, read)
    patterns = image_patterns(chosen, [each.name for each in wanted])
    return chosen, inputs.plan_outputs(queries, out, patterns, read, run_files(chosen).values())


@dataclass(frozen=True)
class Run:
    """What all images of a run share; `seconds` were spent once for all of them."""

    segmenter: "Segmenter"
    concepts: "list[Concept]"
    answer: AnswerChoice
    formats: list[str]
    matting: bool
    out: Path
    contents: "RunContents"
    settings: dict[str, Any]
    seconds: dict[str, float]

    def segment(self, plan: inputs.QueryOutputs) -> dict[str, Any]:
        """Segment one query, write its results, say what was found; returns what JSON says of it."""
        from diffseg_cli.files import write_whole
        from diffseg_cli.finding import find_in, scene_record
        from diffseg_cli.remote import relative_path
        from diffseg_cli.results.formats import encode_image, run_files, shapes_of
        from diffseg_cli.results.outputs import mask_png

        stopwatch = Stopwatch()
        image = inputs.read_query_image(plan.query)
        stopwatch.mark("read")
        path = Path("stdin") if plan.query == inputs.STREAM else plan.query
        queries = self.segmenter.encode_queries([image])
        (found,) = find_in(self.segmenter, queries, self.concepts, [path], self.answer)
        stopwatch.mark("segment")
        for what, output in plan.outputs.items():
            write_whole(output, encode_image(what, output, found.scene, matting=self.matting))
        if not self.formats:
            console.result_bytes(mask_png(found.scene.masks))
        stopwatch.mark("write")
        seconds = {**self.seconds, **found.seconds}
        seconds |= {what: stopwatch.seconds[what] for what in ("read", "write")}
        outputs = {what: self.out / name for what, name in run_files(self.formats).items()} | plan.outputs
        row = {
            "query": str(plan.query),
            **scene_record(found.scene),
            "outputs": {what: str(output) for what, output in outputs.items()},
            **self.settings,
            "seconds": {stage: round(spent, 4) for stage, spent in seconds.items()},
        }
        say_found(str(path), row, found.notes)
        place = {"key": plan.key, "image": relative_path(self.out, path)}
        self.contents.add(plan.key, row | place, shapes_of(self.formats, found.scene))
        return row

    def finish(self) -> list[Path]:
        """Write the files of the whole run; returns where they are."""
        from diffseg_cli.files import write_whole
        from diffseg_cli.results.formats import encode_run

        contents = encode_run(self.formats, self.contents)
        for name, content in contents.items():
            write_whole(self.out / name, content)
        return [self.out / name for name in contents]


def _load(
    wanted: "list[SupportSet | SavedConcept]", search: options.SearchChoice, formats: list[str], out: Path
) -> Run:
    """Load the model and encode the concepts."""
    stopwatch = Stopwatch()
    with console.working("Loading the model") as stop:
        from diffseg_cli.assembly import load_chosen
        from diffseg_cli.finding import encode_concepts, settings_record
        from diffseg_cli.results.formats import RunContents

        segmenter = load_chosen(search.model)
        stopwatch.mark("load")
        concepts = encode_concepts(segmenter, wanted, follow_with_bar(stop))
        stopwatch.mark("support")
    console.say(f"Using {segmenter.description}.")
    say_adapted(concepts)
    answer, matting = search.answer, search.files.matting
    adapted = {each.name: each.adapted.record() for each in concepts if each.adapted}
    settings = {**settings_record(segmenter, answer), "adapted": adapted}
    record = {**settings, "matting": matting, "concepts": [each.record for each in concepts]}
    contents = RunContents([each.name for each in concepts], record)
    return Run(segmenter, concepts, answer, formats, matting, out, contents, settings, stopwatch.seconds)
