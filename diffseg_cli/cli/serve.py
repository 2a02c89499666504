"""diffseg serve."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffseg_cli import choices
from diffseg_cli.choices import ModelChoice, Option
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
    host: Annotated[str, Option("Address to listen on.", SERVER, metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[
        int, Option("Port to listen on; 0 picks a free one.", SERVER, metavar="N", least=0, most=65535)
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
    token_file: Annotated[Path | None, Option("File that holds the token.", SERVER, metavar="FILE")] = None,
    *,
    queries: Annotated[
        Path | None, Option("Folder of images to label.", LABELLING, flags=("--queries", "-q"), metavar="DIR")
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            "Folder for their masks and what was decided.", LABELLING, flags=("--out", "-o"), metavar="DIR"
        ),
    ] = None,
    classes: Annotated[
        list[str] | None,
        Option(
            "Class to label; repeat it for several. Default: the concepts' names.",
            LABELLING,
            flags=("--class",),
            metavar="NAME",
        ),
    ] = None,
    instances: Annotated[
        bool | None,
        Option(
            "Tell the objects of a class apart, here and in exports. Default: as before, at first not.",
            LABELLING,
            flags=("--instances/--no-instances",),
        ),
    ] = None,
    concept: choices.Concept = (),
    model: ModelChoice,
    batch_size: Annotated[
        int | None,
        Option("Images segmented at once. Default: 8 on a GPU, 1 on a CPU.", LIMITS, metavar="N", least=1),
    ] = None,
    max_mb: Annotated[float, Option("Largest request, in MB.", LIMITS, metavar="N", least=0.1)] = 64,
    max_megapixels: Annotated[
        float, Option("Largest image, in megapixels.", LIMITS, metavar="N", least=0.01, most=100)
    ] = 50,
    max_seconds: Annotated[
        float, Option("Longest time per request, in seconds.", LIMITS, metavar="N", least=0.1)
    ] = 60,
    max_requests: Annotated[
        int, Option("Most requests waiting or in progress.", LIMITS, metavar="N", least=1)
    ] = 32,
    max_concepts: Annotated[int, Option("Most concepts kept in memory.", LIMITS, metavar="N", least=1)] = 32,
    json: Annotated[bool, Option("Print the address as a JSON object.", SERVER)] = False,
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
