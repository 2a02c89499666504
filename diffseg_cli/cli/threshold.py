"""diffseg threshold."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffseg_cli.choices import OUTPUT, Option, parse_threshold
from diffseg_cli.cli import console, options
from diffseg_cli.cli.batch_job import outcome_row
from diffseg_cli.cli.batch_progress import GO_ON, Tally, shown, stop_gently
from diffseg_cli.errors import ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from diffseg_cli.batch.recut import Results

EXAMPLES = """Examples:

  diffseg threshold out/ --at 0.4

  diffseg threshold out/ --cuts cuts.json"""


def threshold(
    results: Annotated[
        str, typer.Argument(metavar="RESULTS", help="The --out folder of `diffseg batch` or `segment`.")
    ],
    at: Annotated[
        float | None,
        Option(
            "Probability above which a pixel belongs to the mask, in steps of 0.005.",
            OUTPUT,
            metavar="T",
            parse=parse_threshold,
        ),
    ] = None,
    cuts: Annotated[
        Path | None,
        Option(
            "Images with a cut of their own, as the index.html of a batch saves them: "
            '{"day1/a.jpg": 0.35}. Others keep theirs, or get that of --at.',
            OUTPUT,
            metavar="FILE",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Cut finished results at another threshold, without the model.

    Rewrites masks, overlays and every other output from the probabilities that
    --format probability (or score) has saved. Heatmaps do not depend on the
    cut; sheets stay as they were.
    """
    from diffseg_cli.batch.recut import open_results
    from diffseg_cli.remote import to_path

    if at is None and cuts is None:
        raise UsageError("No cut is given.", "Give --at, for example 0.4, or --cuts.")
    folder = open_results(to_path(results))
    wanted = _wanted(folder, at, cuts)
    tally = Tally(len(wanted))
    with folder, stop_gently(folder.stop) as signals:
        for outcome in shown(folder.cut(wanted), tally):
            if json:
                console.result_json(outcome_row(outcome, folder.store.root))
        files = [] if signals else folder.finish()
    tally.tell()
    if signals:
        console.say(f"Interrupted; what is finished is kept. {GO_ON}")
        raise typer.Exit(ExitCode.INTERRUPTED)
    if not json:
        console.result_paths(files)
    tally.raise_failures(stopped=False)


def _wanted(folder: "Results", at: float | None, cuts: Path | None) -> dict[str, float]:
    """Key -> cut of the images that are to be cut.

    Raises:
        InputError: the file of cuts is none, or names an image that is not among the results.
    """
    wanted = {} if at is None else dict.fromkeys(folder.rows, at)
    if cuts is None:
        return wanted
    from json import loads

    try:
        own = {key: parse_threshold(str(cut)) for key, cut in loads(cuts.read_bytes()).items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{cuts} holds no cuts: {error}.", 'It should look like {"day1/a.jpg": 0.35}.'
        ) from error
    unknown = sorted(own.keys() - folder.rows)
    if unknown:
        raise InputError(
            f"{cuts} names {unknown[0]}, which is not among the results in {folder.store.root}.",
            "Save the cuts again from its index.html.",
        )
    return wanted | own
