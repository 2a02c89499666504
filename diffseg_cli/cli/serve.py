"""diffseg serve."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffseg_cli import choices
from diffseg_cli.choices import ModelChoice
from diffseg_cli.cli import console, inputs
from diffseg_cli.errors import ExitCode, MissingDependency, UsageError

if TYPE_CHECKING:
    from diffseg_cli.labelling.project import Project

EXAMPLES = """Examples:

  diffseg serve --port 8080 --concept dog.dsc --concept sofa.dsc

  diffseg serve --queries photos/ --out labels/ --class dog"""

SERVER, LABELLING, LIMITS = "Server", "Labelling", "Limits"  # panels of the help
TOKEN_VARIABLE = "DIFFSEG_TOKEN"
SHORTEST_TOKEN = 16
GPU_BATCH = 8


def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.", rich_help_panel=SERVER)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            metavar="N",
            help="Port to listen on; 0 picks a free one.",
            rich_help_panel=SERVER,
        ),
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=TOKEN_VARIABLE,
            metavar="TEXT",
            help="Token that requests must carry; required beyond this machine.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File that holds the token.", rich_help_panel=SERVER),
    ] = None,
    *,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries", "-q", metavar="DIR", help="Folder of images to label.", rich_help_panel=LABELLING
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for their masks and what was decided.",
            rich_help_panel=LABELLING,
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="Class to label; repeat it for several. Default: the concepts' names.",
            rich_help_panel=LABELLING,
        ),
    ] = None,
    instances: Annotated[
        bool | None,
        typer.Option(
            "--instances/--no-instances",
            help="Tell the objects of a class apart, here and in exports. Default: as before, at first not.",
            rich_help_panel=LABELLING,
        ),
    ] = None,
    concept: choices.Concept = (),
    model: ModelChoice,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Images segmented at once. Default: 8 on a GPU, 1 on a CPU.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_mb: Annotated[
        float, typer.Option(min=0.1, metavar="N", help="Largest request, in MB.", rich_help_panel=LIMITS)
    ] = 64,
    max_megapixels: Annotated[
        float,
        typer.Option(
            min=0.01, max=100, metavar="N", help="Largest image, in megapixels.", rich_help_panel=LIMITS
        ),
    ] = 50,
    max_seconds: Annotated[
        float,
        typer.Option(
            min=0.1, metavar="N", help="Longest time per request, in seconds.", rich_help_panel=LIMITS
        ),
    ] = 60,
    max_requests: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Most requests waiting or in progress.", rich_help_panel=LIMITS
        ),
    ] = 32,
    max_concepts: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most concepts kept in memory.", rich_help_panel=LIMITS)
    ] = 32,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print the address as a JSON object.", rich_help_panel=SERVER),
    ] = False,
) -> None:
    """Serve over HTTP, with a web page to try it: open the address it prints.

    Keeps the model and concepts in memory. POST /v1/segment takes an image
    with a concept, or with supports and masks, and answers with a mask or
    JSON; see docs/serve.md. Ctrl-C finishes running requests, then ends.
    """
    try:
        from diffseg_cli.serve.guard import is_loopback
        from diffseg_cli.serve.server import address_of, open_socket, run_server
    except ImportError as error:
        raise MissingDependency(
            f"Serving needs a package that is not installed ({error.name}).",
            "Install it with: pip install 'diffseg[serve]'",
        ) from error
    token = _read_token(token_file) if token_file is not None else token
    _check_token(token, None if is_loopback(host) else host)
    saved = inputs.open_concepts(concept)
    project = _open_project(queries, out, classes or [each.name for each in saved], instances)
    opened = open_socket(host, port)
    with console.working("Loading the model"):
        from diffseg_cli.assembly import load_chosen
        from diffseg_cli.serve.app import create_app
        from diffseg_cli.serve.limits import Limits

        segmenter = load_chosen(model)
        concepts = [each.concept(segmenter) for each in saved]
    console.say(f"Using {segmenter.description}.")
    limits = Limits(
        body_bytes=round(max_mb * 10**6),
        pixels=round(max_megapixels * 10**6),
        seconds=max_seconds,
        requests=max_requests,
        concepts=max(max_concepts, len(concepts)),
        batch_size=batch_size or (GPU_BATCH if segmenter.device.type == "cuda" else 1),
    )
    app = create_app(segmenter, concepts, limits, token, project)
    names = [each.name for each in saved]
    ready = {"url": address_of(opened), "model": segmenter.model, "concepts": names}
    if run_server(app, opened, max_seconds, partial(_say_ready, ready, as_json=json)):
        console.say("Stopped; every request in hand was answered.")
        raise typer.Exit(ExitCode.INTERRUPTED)


def _say_ready(ready: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.result_json(ready)
    else:
        console.result(ready["url"])
    console.say("Ready; Ctrl-C ends it.")


def _open_project(
    queries: Path | None, out: Path | None, classes: list[str], instances: bool | None
) -> "Project | None":
    """The folder to be labelled, where one is named."""
    if queries is None and out is None:
        return None
    if queries is None or out is None:
        raise UsageError("--queries and --out go together.", "Name the folder of images and one for masks.")
    from diffseg_cli.labelling.project import Project

    return Project(queries, out, classes or None, instances)


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(
            f"{path} cannot be read: {reason}.", "Put the token on a line of its own."
        ) from error


def _check_token(token: str | None, wide_host: str | None) -> None:
    """A server others can reach asks for a token, and for one that cannot be guessed."""
    make_one = "Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
    if token is None:
        if wide_host is not None:
            raise UsageError(
                f"Anyone who reaches {wide_host} could use this server.",
                f"Set {TOKEN_VARIABLE} to a token that requests must carry. {make_one}",
            )
        return
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"A token has {SHORTEST_TOKEN} characters or more, letters, digits and signs.", make_one
        )
