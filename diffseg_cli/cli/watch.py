"""diffseg watch."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffseg_cli.choices import Option
from diffseg_cli.cli import console, options
from diffseg_cli.cli.batch_job import RUN, describe_job, open_session, outcome_row, thread_count
from diffseg_cli.cli.batch_progress import GO_ON, stop_gently
from diffseg_cli.cli.found import say_found
from diffseg_cli.errors import ExitCode, InputError, UsageError

if TYPE_CHECKING:
    from diffseg_cli.batch.job import Job
    from diffseg_cli.batch.outcome import Outcome
    from diffseg_cli.files import Claims

EXAMPLES = """Examples:

  diffseg watch inbox/ --concept dog.dsc --out results/

  diffseg watch inbox/ -c dog.dsc --recursive -f mask --out results/ --json"""


def watch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder in which images arrive.")],
    recursive: Annotated[bool, Option("Watch subfolders too.", options.QUERY)] = False,
    *,
    search: options.SearchChoice,
    out: options.Out = Path("diffseg_out"),
    json: options.Json = False,
    settle: Annotated[
        float,
        Option(
            "Seconds without a change after which a file counts as complete.", RUN, metavar="S", least=0.05
        ),
    ] = 2.0,
    rescan: Annotated[
        float,
        Option(
            "Seconds between two listings of the folder, for changes the system did not report.",
            RUN,
            metavar="S",
            least=0.1,
        ),
    ] = 30.0,
    workers: Annotated[
        int | None, Option("Threads that read, and as many that write.", RUN, metavar="N", least=1)
    ] = None,
) -> None:
    """Segment images as they arrive in a folder, until Ctrl-C.

    Images that are there already come first. --out holds the same files as
    that of `diffseg batch`, so either verb goes on with what the other did.
    Prints the files of each image, or with --json one line per image.
    """
    job = describe_job(search)
    claims = _claims(folder, job, out)
    from diffseg_cli.batch.arrivals import Arrivals
    from diffseg_cli.batch.plan import Part

    arriving = Arrivals(folder, recursive=recursive, out=out, settle=settle, rescan=rescan)
    with arriving as arrivals, open_session(job, [], Part(), out) as session:
        from diffseg_cli.batch.folder_watcher import FolderWatcher

        if not arrivals.listens:
            console.note(f"The system does not report changes here; listing the folder every {rescan:g} s.")
        watcher = FolderWatcher(session, arrivals, claims, thread_count(workers))
        console.say(f"Watching {folder}; Ctrl-C ends it.")
        with stop_gently(watcher.stop) as signals:
            for outcome in watcher.run():
                _show(outcome, out, as_json=json)
            watcher.finish()
    console.say(f"Stopped; what is finished is kept. {GO_ON}")
    if signal.SIGINT in signals:
        raise typer.Exit(ExitCode.INTERRUPTED)


def _claims(folder: Path, job: "Job", out: Path) -> "Claims":
    """Names the run itself takes; refuses a folder that cannot be watched.

    Raises:
        InputError: there is no such folder, or results cannot be written.
        UsageError: results would arrive in it as images.
    """
    from diffseg_cli.batch.finish import INDEX
    from diffseg_cli.batch.manifest import NAME
    from diffseg_cli.files import Claims, check_folder

    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.", "Name the folder in which images arrive.")
    if folder.resolve() == out.resolve():
        raise UsageError(
            f"{out} is the watched folder itself.", f"Choose another --out, such as {out}/found."
        )
    check_folder(out)
    taken = [*job.run_files.values(), INDEX, f"{NAME}.jsonl"]
    claims = Claims(out, [path for each in job.concepts for path in each.files])
    claims.claim(taken, "the run itself")
    return claims


def _show(outcome: "Outcome", out: Path, *, as_json: bool) -> None:
    row = outcome.row
    if as_json:
        console.result_json(outcome_row(outcome, out))
    elif row.error is None and not outcome.skipped:
        for what, file in row.outputs.items():
            if what != "thumbnail":
                console.result(str(out / file["path"]))
    if row.error is not None:
        console.say(f"failed: {outcome.item.path}: {row.error}")
    elif not outcome.skipped:
        say_found(str(outcome.item.path), row.found, outcome.notes)
