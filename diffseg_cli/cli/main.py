"""The Typer app, and the one place that turns errors into a sentence and an exit code."""

import errno
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffseg_cli.cli import (
    attn,
    batch,
    bench,
    console,
    doctor,
    edges,
    evaluate,
    export,
    mask,
    review,
    segment,
    serve,
    threshold,
    train,
    watch,
)
from diffseg_cli.cli.concept import concept_app
from diffseg_cli.cli.models import models_app
from diffseg_cli.cli.options import CalmHelp, Verb, expand
from diffseg_cli.errors import DiffsegError, ExitCode
from diffseg_cli.version import __version__

EXAMPLES = """Examples:

  diffseg segment --support dog.jpg --mask dog.png --query scene.jpg

  diffseg attn --support dog.jpg --mask dog.png --query scene.jpg --out maps/"""


NO_THREAD = "can't start new thread"  # Python knows no better than by these words


class Translator(CalmHelp, TyperGroup):
    """Typer's group, with our errors as `error:` and `hint:` lines on stderr and their exit code."""

    def invoke(self, ctx: Any) -> Any:  # Typer's own annotation names a private class
        try:
            with console.warnings_as_notes():
                return super().invoke(ctx)
        except DiffsegError as error:
            console.error(error.message, error.hint)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.filename is None or console.debugging():
                raise
            reason = error.strerror or type(error).__name__
            console.error(f"{error.filename} cannot be reached: {reason}.", "Check who may use it.")
            raise typer.Exit(ExitCode.BAD_INPUT) from error
        except KeyboardInterrupt as error:
            console.say("Interrupted; files already written are whole.")
            raise typer.Exit(ExitCode.INTERRUPTED) from error


app = typer.Typer(cls=Translator, no_args_is_help=True, pretty_exceptions_enable=False, epilog=EXAMPLES)


def _show_version(wanted: bool) -> None:
    if wanted:
        console.result(f"diffseg {__version__}")
        raise typer.Exit


@app.callback()
def diffseg(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Few-shot segmentation: mask an object in one image, find it in others."""


VERBS = {  # panel of the help -> its verbs
    "Find": (segment, batch, watch, threshold, serve),
    "Supports": (mask,),
    "Label": (review, export),
    "Explain": (attn, edges),
    "Train and measure": (train, evaluate, bench),
    "Install": (doctor,),
}
for panel, modules in VERBS.items():
    for module in modules:
        verb = module.__name__.rpartition(".")[2]
        add = app.command(cls=Verb, epilog=module.EXAMPLES, rich_help_panel=panel)
        add(expand(getattr(module, verb)))
app.add_typer(concept_app, name="concept", rich_help_panel="Supports")
app.add_typer(models_app, name="models", rich_help_panel="Install")


def main() -> None:
    """Run `diffseg`; an error that is nobody's mistake but ours becomes one line too."""
    console.prepare_streams()
    try:
        app(prog_name="diffseg")
    except Exception as error:
        if console.debugging():
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
            console.drop_stdout()
            console.error(f"The output cannot be written: {error.strerror}.", "Make room where it goes.")
            sys.exit(ExitCode.BAD_INPUT)
        reason = str(error).strip().partition("\n")[0]
        console.error(f"{type(error).__name__}: {reason}", _advice(error))
        sys.exit(ExitCode.UNEXPECTED)


def _advice(error: Exception) -> str:
    if isinstance(error, MemoryError | RuntimeError):
        from diffseg_cli.compute import is_out_of_memory

        if is_out_of_memory(error):
            return (
                "Memory ran out. On a GPU try --offload or --device cpu; on a CPU end other programs, give "
                "fewer images at once (--batch-size 1) or smaller ones."
            )
        if NO_THREAD in str(error):
            return "The system allows no more: end other programs, or raise the limit (ulimit -u)."
    return f"This should not happen: set {console.DEBUG_VARIABLE}=1 to see where it did."
