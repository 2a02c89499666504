"""diffseg doctor."""

import shutil
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffseg_cli.choices import Option
from diffseg_cli.cli import console

if TYPE_CHECKING:
    from diffseg_cli.doctor import Finding

EXAMPLES = """Examples:

  diffseg doctor

  diffseg doctor dog.jpg dog.png annotations.json --json"""

COLORS = {"ok": "green", "absent": "cyan", "unclear": "yellow", "bad": "red"}
INDENT = " " * 9  # as wide as a status


def doctor(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE",
            help="Images, masks, annotation files, weights, or a folder with Kandinsky 2.2 to examine.",
        ),
    ] = None,
    json: Annotated[bool, Option("Print one JSON object per line.")] = False,
) -> None:
    """Check this installation, and say what files are and what is wrong with them.

    Exit code 0 if all is well, else that of the worst finding: 3 for a file
    that is damaged or needs an option, 4 for weights.
    """
    from diffseg_cli.doctor import examine_file, examine_machine

    worst = 0
    for finding in (*examine_machine(), *(examine_file(path, files or ()) for path in files or ())):
        worst = max(worst, finding.code)
        if json:
            console.result_json(asdict(finding))
        else:
            _print(finding)
    raise typer.Exit(worst)


def _print(finding: "Finding") -> None:
    """Status and name, then what it is and what to do, wrapped to the terminal."""
    status = typer.style(f"{finding.status:<{len(INDENT)}}", fg=COLORS[finding.status], bold=True)
    console.result(f"{status}{finding.name}")
    width = max(40, shutil.get_terminal_size().columns - 1)
    for text in filter(None, (finding.what.removeprefix(f"{finding.name} "), finding.hint)):
        for line in textwrap.wrap(text, width, initial_indent=INDENT, subsequent_indent=INDENT):
            console.result(line)
