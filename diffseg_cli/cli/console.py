"""What a user sees: results on stdout, everything else on stderr, moving things only on a terminal."""

import codecs
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

T = TypeVar("T")

DEBUG_VARIABLE = "DIFFSEG_DEBUG"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline
QUIET_SECONDS = 60  # between two lines of a long run where there is no bar


# --- streams -------------------------------------------------------------------------------------------


def prepare_streams() -> None:
    """Make the streams of this process fit for any file name, and for being closed.

    On stdout a name keeps its bytes, also those that are no text; a character that the encoding of the
    terminal lacks is written as an escape. A stream that is closed leads nowhere: the next file opened would
    take its number otherwise.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for good
    codecs.register_error("diffseg", _written_anyway)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="diffseg")


def _written_anyway(error: UnicodeError) -> tuple[str | bytes, int]:
    """Instead of a character that cannot be encoded; never an error."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    try:
        return codecs.lookup_error("surrogateescape")(one)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(one)


def drop_stdout() -> None:
    """Let what is left for stdout go nowhere: it cannot be written, and Python would try again at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def harmless(text: str) -> str:
    """A text without control characters: in a file name they could steer the terminal."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _label(word: str, color: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return word if plain else typer.style(word, fg=color, bold=True)


# --- lines ---------------------------------------------------------------------------------------------


def result(text: str) -> None:
    """A line that was asked for; a pipe gets file names as they are."""
    typer.echo(harmless(text) if sys.stdout.isatty() else text, file=sys.stdout)


def result_json(row: dict[str, Any]) -> None:
    """The same for machines: one object a line."""
    typer.echo(json.dumps(row), file=sys.stdout)


def result_paths(paths: Iterable[Path | str]) -> None:
    """Where results are, a line each."""
    for path in paths:
        result(str(path))


def result_bytes(content: bytes) -> None:
    """A file that was asked for on stdout."""
    typer.echo(content, nl=False)


def say(text: str) -> None:
    """A line about what is going on."""
    typer.echo(harmless(text), file=sys.stderr)


def note(text: str) -> None:
    """Something worth knowing that stops nothing."""
    typer.echo(f"{_label('note:', 'yellow')} {harmless(text)}", file=sys.stderr)


def error(message: str, hint: str | None = None) -> None:
    """Why it stopped, and what to try."""
    typer.echo(f"{_label('error:', 'red')} {harmless(message)}", file=sys.stderr)
    if hint:
        typer.echo(f"{_label('hint:', 'cyan')} {harmless(hint)}", file=sys.stderr)


def debugging() -> bool:
    """Whether the user wants to see tracebacks and other libraries' warnings."""
    return bool(os.environ.get(DEBUG_VARIABLE))


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Show our own warnings as notes and drop those of other libraries."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category.__module__.startswith("diffseg_cli") or debugging():
            note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield


# --- progress ------------------------------------------------------------------------------------------


def bars() -> "Bars":
    """Progress bars on stderr, for use in a `with` block; tasks have a field `figures`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True, soft_wrap=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else results on their way to a file would end on the screen
    )


def track(items: Iterable[T], total: int, label: str) -> Generator[T, None, None]:
    """The items, with a bar on stderr while they last; no bar for one item or without a terminal."""
    if total < 2 or not sys.stderr.isatty():
        yield from _told_now_and_then(items, total, label)
        return
    with bars() as shown:
        task = shown.add_task(label, total=total, figures="")
        for item in items:
            yield item
            shown.advance(task)


def _told_now_and_then(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The items, with a line and the time left once a minute: for logs of long runs."""
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last > QUIET_SECONDS and done < total:
            minutes = (now - start) / done * (total - done) / 60
            say(f"{label} {done}/{total}, {minutes:.0f} min left")
            last = now


@contextmanager
def working(text: str) -> Iterator[Callable[[], None]]:
    """Show on a terminal that something takes its time; what it gives stops that, to show something else."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console

    with Console(stderr=True).status(text) as status:
        yield status.stop
