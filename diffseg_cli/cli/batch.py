"""diffseg batch."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffseg_cli.choices import ADVANCED, OUTPUT, Option
from diffseg_cli.cli import console, options
from diffseg_cli.cli.batch_job import RUN, describe_job, open_session, outcome_row, thread_count
from diffseg_cli.cli.batch_progress import GO_ON, Tally, shown, stop_gently
from diffseg_cli.cli.batch_ray import open_ray_session, ray_options
from diffseg_cli.errors import ExitCode, InputError, PartialFailure, UsageError

if TYPE_CHECKING:
    from diffseg_cli.batch.job import Job
    from diffseg_cli.batch.pipeline import Pipeline
    from diffseg_cli.batch.plan import Item, Part
    from diffseg_cli.batch.runner import Runner
    from diffseg_cli.batch.session import Engine, Loaded, Session

EXAMPLES = """Examples:

  diffseg batch --support dog.jpg --mask dog.png --queries photos/ --out out/

  diffseg batch -c dog.dsc -q 'photos/**/*.jpg' -f mask -f coco --out out/"""


def _place(name: str) -> Path:
    from diffseg_cli.remote import to_path

    options.check_named(name)
    return to_path(name)


def _batch_size(text: str) -> str:
    if text != "auto" and not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise ValueError(f"'{text}' is not auto or a number from 1 to 9999.")
    return text


def _part(text: str) -> str:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"'{text}' is not k/n such as 1/8, with k from 1 to n.")
    return text


def batch(
    queries: Annotated[
        list[str] | None,
        Option(
            "Images to search: a folder, a pattern in quotes, a text file with one path per line, or - "
            "for such a list on stdin; URLs such as s3://bucket/photos too. Repeat for several.",
            options.QUERY,
            flags=("--queries", "-q"),
            metavar="DIR|GLOB|LIST",
        ),
    ] = None,
    recursive: Annotated[bool, Option("Search subfolders too.", options.QUERY)] = False,
    exclude: Annotated[
        list[str] | None,
        Option(
            "Leave out images whose name or path matches, such as '*_mask.*'; repeat for several.",
            options.QUERY,
            metavar="PATTERN",
        ),
    ] = None,
    *,
    search: options.SearchChoice,
    out: Annotated[
        Path,
        Option("Folder for the results.", OUTPUT, flags=("--out", "-o"), metavar="DIR|URL", parse=_place),
    ] = Path("diffseg_out"),
    json: options.Json = False,
    batch_size: Annotated[
        str,
        Option(
            "Images the model takes at once, as long as that changes no result.",
            ADVANCED,
            metavar="auto|N",
            parse=_batch_size,
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        Option(
            "Threads that read, and as many that write; with --engine ray, processes with a model each.",
            RUN,
            metavar="N",
            least=1,
        ),
    ] = None,
    resume: Annotated[
        bool,
        Option(
            "Skip images whose results still fit image, settings and weights, or do all again.",
            RUN,
            flags=("--resume/--no-resume",),
        ),
    ] = True,
    part: Annotated[
        str | None,
        Option(
            "Do the K-th of N shares; all may run at once into one --out.",
            ADVANCED,
            metavar="K/N",
            parse=_part,
        ),
    ] = None,
    engine: Annotated[Literal["local", "ray"], Option("Work here, or on a Ray cluster.", ADVANCED)] = "local",
    address: Annotated[
        str | None,
        Option(
            "Ray cluster to join. Default: RAY_ADDRESS, else one on this machine.",
            ADVANCED,
            metavar="HOST:PORT",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        Option(
            "Share of a GPU per Ray worker; 0.5 puts two on each.", ADVANCED, metavar="X", least=0.01, most=1
        ),
    ] = None,
    on_error: Annotated[
        Literal["continue", "stop"], Option("Whether an image that fails ends the run.", RUN)
    ] = "continue",
    dry_run: Annotated[bool, Option("List what would be done, and do nothing.", RUN)] = False,
    verify: Annotated[bool, Option("Check the results in --out instead.", RUN)] = False,
) -> None:
    """Find an object in many images, given one or a few images of it with masks.

    Results mirror the folders of the images. A manifest in --out records what
    was done: the same command goes on where a run was stopped. index.html in
    --out shows all results. Prints the files of the whole run, or with --json
    one line per image as it is done.
    """
    if verify:
        _verify(out)
        return
    job = describe_job(search)
    items, share = _plan(queries or [], exclude or [], job, out, part, recursive=recursive)
    size = None if batch_size == "auto" else int(batch_size)
    stop = on_error == "stop"
    ray = ray_options(engine, address, gpus_per_worker, workers, size, stop_on_error=stop)
    from diffseg_cli.batch.store import check_place

    if dry_run:
        with open_session(job, items, share, out, resume=resume, dry=True) as looking:
            _list(looking, as_json=json)
        return
    check_place(out)
    if ray is None:
        with open_session(job, items, share, out, resume=resume) as session:
            pipeline = _pipeline(session, size, workers, stop_on_error=stop)
            tally = _work(session, pipeline, stop_on_error=stop, as_json=json)
    else:
        with open_ray_session(ray, address, job, items, share, out, resume=resume) as remote:
            tally = _work(remote, remote.runner, stop_on_error=stop, as_json=json)
    tally.raise_failures(stopped=stop)


# --- before --------------------------------------------------------------------------------------------


def _plan(
    queries: list[str], exclude: list[str], job: "Job", out: Path, part: str | None, *, recursive: bool
) -> "tuple[list[Item], Part]":
    """All images, checked against losing anything, and this run's share of them."""
    from diffseg_cli.batch.finish import INDEX
    from diffseg_cli.batch.manifest import NAME
    from diffseg_cli.batch.plan import MASK_ENDING, Part, check_outputs, masks_among, without
    from diffseg_cli.batch.search import STREAM, find_items

    if not queries:
        raise UsageError("There is nothing to search.", "Give --queries with a folder, a pattern or a list.")
    if STREAM in queries and sys.stdin.isatty():
        raise UsageError("--queries - reads a list from a pipe.", "For example: find . | diffseg batch ...")
    index, _, count = (part or "1/1").partition("/")
    share = Part(int(index), int(count))
    items = find_items(queries, recursive=recursive, out=out, read_stdin=lambda: sys.stdin.buffer.read())
    items = without(items, exclude)
    masks = masks_among(items)
    if masks:
        console.note(
            f"{len(masks)} of the images look like masks of others ({masks[0].path}); "
            f"leave them out with --exclude '*{MASK_ENDING}.*'."
        )
    taken = [*job.run_files.values(), INDEX, f"{NAME}{share.tag}.jsonl"]
    read = [path for each in job.concepts for path in each.files]
    check_outputs(items, job.patterns, out, taken=taken, read=read)
    return items, share


def _list(session: "Session[Runner]", *, as_json: bool) -> None:
    """What would be done."""
    from diffseg_cli.batch.outcome import Outcome

    for item in session.own:
        try:
            state = "skip" if isinstance(session.runner.fetch(item), Outcome) else "todo"
        except InputError as error:
            state = f"fail ({error.message})"
        outputs = {
            what: str(session.store.root / path) for what, path in item.outputs(session.job.patterns).items()
        }
        if as_json:
            console.result_json(
                {"query": str(item.path), "state": state.partition(" ")[0], "outputs": outputs}
            )
        else:
            console.result(f"{state}  {item.path} -> {', '.join(outputs.values())}")


def _verify(out: Path) -> None:
    """Check a finished folder.

    Raises:
        PartialFailure: something is wrong.
    """
    from diffseg_cli.batch.finish import verify

    right = wrong = 0
    for fault in verify(out):
        if fault is None:
            right += 1
        else:
            wrong += 1
            console.result(f"{fault.key}: {fault.reason}")
    if wrong:
        raise PartialFailure(
            f"{out}: {wrong} faults, {right} files are as they were written.",
            "Give the command of the batch again: it redoes what is wrong.",
        )
    console.say(f"{out}: all {right} files are as they were written.")


# --- during --------------------------------------------------------------------------------------------


def _pipeline(
    session: "Session[Runner]", size: int | None, workers: int | None, *, stop_on_error: bool
) -> "Pipeline":
    """The local engine."""
    from diffseg_cli.batch.pipeline import Pipeline
    from diffseg_cli.batch.sizing import choose_batch_size

    chosen = choose_batch_size(session.runner, size, len(session.own))
    if size and chosen < min(size, len(session.own)):
        console.note(f"Batches of {size} would change last bits of results; images go one by one.")
    return Pipeline(
        session.runner, workers=thread_count(workers), batch_size=chosen, stop_on_error=stop_on_error
    )


def _work(session: "Session[Loaded]", engine: "Engine", *, stop_on_error: bool, as_json: bool) -> Tally:
    """Do this run's share and finish it; every image is written down as it is done.

    Raises:
        Exit: it was interrupted.
    """
    tally = Tally(len(session.own))
    with stop_gently(engine.stop) as signals:
        for outcome in shown(engine.run(session.own), tally):
            session.record(outcome)
            if as_json:
                console.result_json(outcome_row(outcome, session.store.root))
    tally.tell()
    if signals:
        console.say(f"Interrupted; what is finished is kept. {GO_ON}")
        raise typer.Exit(ExitCode.INTERRUPTED)
    if not (tally.failed and stop_on_error):
        files = session.finish()
        if not as_json:
            console.result_paths(files)
    return tally
