"""diffseg models: what is installed, under which licence, whether it is whole, and how to get the rest."""

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffseg_cli.cli import console
from diffseg_cli.cli.options import Verb, Verbs
from diffseg_cli.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from diffseg_cli.weights.files import Installed


def _examples(*commands: str) -> str:
    return "\n\n".join(["Examples:", *commands])


models_app = typer.Typer(
    no_args_is_help=True,
    cls=Verbs,
    help="List, inspect, check and fetch the weights.",
    epilog=_examples("diffseg models list", "diffseg models verify --json"),
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


@models_app.command(
    "list", cls=Verb, epilog=_examples("diffseg models list", "diffseg models list --json | jq .name")
)
def list_models(as_json: JsonOption = False) -> None:
    """List every weight file: status, size, licence and purpose.

    Sizes are compared with the manifest, Kandinsky's with its files' headers;
    `diffseg models verify` compares the contents too.
    """
    from diffseg_cli.weights.files import survey

    rows = [_row(item) for item in survey(quick=True)] + [_kandinsky_row()]
    _print_rows(rows, ("name", "status", "size", "licence", "what"), as_json)


@models_app.command(
    cls=Verb, epilog=_examples("diffseg models show compact", "diffseg models show dog.safetensors")
)
def show(
    target: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE|DIR",
            help="A name from `list`, a safetensors file, or a folder that holds Kandinsky 2.2.",
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what is known of a model or a file: source, licence, training data, hash, content.

    "compact" shows all its files; a checkpoint also shows its backbone,
    training and metrics.
    """
    for row in _describe(target):
        if as_json:
            console.result_json(row)
        else:
            console.result("\n".join(_lines(row)) + "\n")


@models_app.command(
    cls=Verb, epilog=_examples("diffseg models verify", "DIFFSEG_WEIGHTS=mine diffseg models verify --json")
)
def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A folder that holds Kandinsky 2.2. Default: all installed."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every weight file against the manifest, and Kandinsky 2.2 against its networks.

    Shipped files: size and SHA-256. Kandinsky: length of every file, name and
    shape of every tensor. Exit code 4 if a file is missing, damaged or
    unreadable. A file that the manifest does not list is "unlisted", which is
    not an error.
    """
    from diffseg_cli.weights.files import REFETCH, survey
    from diffseg_cli.weights.hub import KANDINSKY

    found = [] if folder else survey()
    kandinsky = _verified_kandinsky(str(folder or KANDINSKY))
    expected = folder is not None or kandinsky["status"] != "not installed"
    rows = [_row(item) for item in found] + ([kandinsky] if expected else [])
    _print_rows(rows, ("name", "status", "path"), as_json)
    bad = [f"{item.entry.file} is {item.status}" for item in found if item.status not in ("ok", "unlisted")]
    if bad:
        hint = "Check who may read them; install diffseg again, or fetch its weights folder again."
        raise WeightsError(f"{', '.join(bad)}.", hint)
    if expected and kandinsky["status"] != "ok":
        raise WeightsError(f"{kandinsky['name']} is {kandinsky['status']}.", kandinsky["what"])
    if folder:
        return
    if not found:
        raise WeightsError("No weights were found.", REFETCH)


@models_app.command(
    cls=Verb,
    epilog=_examples("diffseg models pull kandinsky-2-2", "diffseg models pull kandinsky-2-2 --variant fp16"),
)
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to fetch: kandinsky-2-2.")],
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit on the hub. Default: main.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="fp16 fetches half the bytes, where the hub has it.")
    ] = None,
) -> None:
    """Fetch a model that does not ship with diffseg into the Hugging Face cache.

    Files that are there already are not fetched again.
    """
    from diffseg_cli.weights.hub import KANDINSKY, pull_kandinsky

    if name != KANDINSKY:
        raise UsageError(
            f"There is nothing to fetch under the name '{name}'.",
            f"{KANDINSKY} is the one model fetched; compact and hed are installed with diffseg.",
        )
    console.result(str(pull_kandinsky(revision=revision, variant=variant)))


def _row(item: "Installed") -> dict[str, Any]:
    entry = item.entry
    return {
        "name": entry.file.removesuffix(".safetensors"),
        "status": item.status,
        "what": entry.what,
        "path": str(item.path),
        "bytes": entry.bytes,
        "sha256": entry.sha256,
        "licence": entry.licence,
        "source": entry.source,
        "trained_on": entry.trained_on,
    }


def _kandinsky_row(source: str = "kandinsky-2-2") -> dict[str, Any]:
    """Of the Hugging Face cache or a folder, by headers and lengths."""
    from diffseg_cli.weights.hub import REPOSITORIES
    from diffseg_cli.weights.kandinsky_files import examine_kandinsky

    found = examine_kandinsky(source)
    what = "Kandinsky 2.2: decoder UNet, MoVQ and CLIP image encoder, the method's own backbone."
    row = {
        "name": source,
        "status": found.status,
        "what": " ".join(filter(None, (what, found.fault, found.hint))),
        "licence": "Apache-2.0",
        "source": f"Hugging Face hub: {', '.join(REPOSITORIES.values())}",
    }
    if found.status == "not installed":
        return row
    files = {name: [str(path) for path in part.weights] for name, part in found.files.items()}
    return row | {
        "path": str(found.files["unet"].config.parents[1]) if "unet" in found.files else source,
        "bytes": found.bytes,
        "parameters": found.parameters,
        "files": files,
    }


def _verified_kandinsky(source: str) -> dict[str, Any]:
    """Its row, with names and shapes of all tensors compared with the networks where headers are right."""
    row = _kandinsky_row(source)
    if row["status"] == "ok":
        from diffseg_cli.weights.hub import locate_kandinsky
        from diffseg_cli.weights.kandinsky import check_networks

        try:
            check_networks(locate_kandinsky(source))
        except WeightsError as error:
            row |= {"status": "damaged", "what": f"{error.message} {error.hint}"}
    return row


def _describe(target: str) -> list[dict[str, Any]]:
    """Everything known about the files a name stands for, or about one file."""
    from diffseg_cli.weights.files import file_sha256, survey
    from diffseg_cli.weights.hub import KANDINSKY

    if target == KANDINSKY or Path(target).is_dir():
        return [_kandinsky_row(target)]
    rows = [_row(item) for item in survey()]
    chosen = [
        row
        for row in rows
        if target in (row["name"], f"{row['name']}.safetensors", row["name"].split("/")[0])
    ]
    if not chosen:
        path = Path(target)
        if not path.is_file():
            names = ", ".join([row["name"] for row in rows] + [KANDINSKY])
            raise WeightsError(f"{target} is neither a model nor a file.", f"Models are: {names}.")
        chosen = [
            {"name": path.name, "path": target, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        ]
    return [row if row.get("status") == "missing" else row | _contents(Path(row["path"])) for row in chosen]


def _contents(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself; a checkpoint's records are spelled out."""
    from diffseg_cli.weights.checkpoint import FORMAT, read_checkpoint_info
    from diffseg_cli.weights.files import read_header

    shapes, metadata = read_header(path)
    known = asdict(read_checkpoint_info(path)) if metadata.get("format") == FORMAT else {}
    counts = {"tensors": len(shapes), "parameters": sum(math.prod(shape) for shape in shapes.values())}
    return counts | ({"checkpoint": known} if known else {"metadata": metadata})


def _print_rows(rows: list[dict[str, Any]], columns: tuple[str, ...], as_json: bool) -> None:
    """One JSON object per row, or aligned columns; on a terminal the last one wraps below the others."""
    if as_json:
        for row in rows:
            console.result_json(row)
        return
    table = [list(columns), *([_cell(row, column) for column in columns] for row in rows)]
    below = sys.stdout.isatty()
    shown = columns[:-1] if below else columns
    widths = [max(len(line[index]) for line in table) for index in range(len(shown))]
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        console.result("  ".join(cells).rstrip())
        if below and line is not table[0]:
            for text in _wrapped(line[-1]):
                console.result(text)


def _wrapped(text: str) -> list[str]:
    """Indented lines that fit the terminal; a path stays whole."""
    width = max(40, shutil.get_terminal_size().columns - 1)
    return textwrap.wrap(
        text,
        width,
        initial_indent="    ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(record: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A record as aligned lines, records inside it indented."""
    width = max(map(len, record), default=0)
    for key, value in record.items():
        name = key if indent else key.replace("_", " ")
        if isinstance(value, dict):
            yield f"{indent}{name}"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name:<{width}}  {value if isinstance(value, str) else json.dumps(value)}"


def _cell(row: dict[str, Any], column: str) -> str:
    if column == "size":
        return f"{row['bytes'] / 1e6:.1f} MB" if row.get("bytes") else ""
    return str(row.get(column) or "")
