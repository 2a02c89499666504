"""What `batch` and `watch` have in common: the job, its session, and what is said of an image."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg_cli.cli import console, inputs, options
from diffseg_cli.cli.adapting import follow_with_bar, say_adapted

if TYPE_CHECKING:
    from diffseg_cli.batch.job import Job
    from diffseg_cli.batch.outcome import Outcome
    from diffseg_cli.batch.plan import Item, Part
    from diffseg_cli.batch.runner import Runner
    from diffseg_cli.batch.session import Session

RUN = "Run"  # panel of the help
MOST_WORKERS = 8


def describe_job(search: options.SearchChoice) -> "Job":
    from diffseg_cli.batch.job import Job
    from diffseg_cli.results.outputs import choose_formats

    concepts = inputs.read_concepts(search.supports, search.masks, search.adapt)
    answer, files = search.answer, search.files
    formats = choose_formats(files.formats, matting=files.matting, instances=answer.instances)
    return Job(concepts, answer, formats, files.matting, search.model)


def open_session(
    job: "Job", items: "list[Item]", share: "Part", out: Path, *, resume: bool = True, dry: bool = False
) -> "Session[Runner]":
    with console.working("Loading the model") as stop:
        from diffseg_cli.batch.runner import load_runner
        from diffseg_cli.batch.session import Session

        load = partial(load_runner, follow=follow_with_bar(stop))
        session = Session(job, items, share, out, load, resume=resume, dry=dry)
    console.say(f"Using {session.runner.segmenter.description}.")
    say_adapted(session.runner.concepts)
    return session


def thread_count(wanted: int | None) -> int:
    """Threads that read, and that write."""
    return wanted or min(os.cpu_count() or 1, MOST_WORKERS)


def outcome_row(outcome: "Outcome", out: Path) -> dict[str, Any]:
    """One image as JSON."""
    row = outcome.row
    return {
        "query": str(outcome.item.path),
        "state": "failed" if row.error is not None else "skipped" if outcome.skipped else "done",
        "outputs": {what: str(out / file["path"]) for what, file in row.outputs.items()},
        **row.found,
        "seconds": row.seconds,
        "error": row.error,
    }
