"""What a user sees: results on stdout, everything else on stderr, moving things only on a terminal."""

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from diffseg_cli.training.jobs import Progress

T = TypeVar("T")

DEBUG_VARIABLE = "DIFFSEG_DEBUG"
QUIET_SECONDS = 60  # between two lines of a long run where there is no bar


def result(text: str) -> None:
    """A line that was asked for."""
    typer.echo(text)


def result_json(row: dict[str, Any]) -> None:
    """The same for machines: one object a line."""
    typer.echo(json.dumps(row))


def result_bytes(content: bytes) -> None:
    """A file that was asked for on stdout."""
    typer.echo(content, nl=False)


def say(text: str) -> None:
    """A line about what is going on."""
    typer.echo(text, err=True)


def note(text: str) -> None:
    """Something worth knowing that stops nothing."""
    typer.echo(f"{typer.style('note:', fg='yellow', bold=True)} {text}", err=True)


def error(message: str, hint: str | None = None) -> None:
    """Why it stopped, and what to try."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)
    if hint:
        typer.echo(f"{typer.style('hint:', fg='cyan', bold=True)} {hint}", err=True)


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
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else results on their way to a file would end on the screen
    )


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
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
def working(text: str) -> Iterator[None]:
    """Show on a terminal that something takes its time."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def show_training(job: "Iterable[Progress]") -> None:
    """Follow a training run: a bar a stage on a terminal, elsewhere a line now and then."""
    if sys.stderr.isatty():
        with bars() as shown:
            tasks: dict[str, Any] = {}
            for step in job:
                if step.stage not in tasks:
                    tasks[step.stage] = shown.add_task(step.stage, total=step.total, figures="")
                shown.update(tasks[step.stage], completed=step.done, figures=_figures(step.figures))
                if step.milestone:
                    say(_training_line(step))
        return
    last = time.monotonic()
    for step in job:
        if step.milestone or time.monotonic() - last > QUIET_SECONDS:
            say(_training_line(step))
            last = time.monotonic()


def _training_line(step: "Progress") -> str:
    return f"{step.stage} {step.done}/{step.total} {_figures(step.figures)}".rstrip()


def _figures(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in figures.items())


# --- evaluation ----------------------------------------------------------------------------------------


def show_evaluation(record: dict[str, Any], *, as_json: bool) -> None:
    """Figures of an evaluation: one JSON object, or a block a method."""
    if as_json:
        result_json(record)
        return
    result(
        f"{record['model']} ({record['head']}, {record['fusion']}), {record['shots']}-shot, "
        f"{record['episodes']} episodes of {record['classes']} classes, seed {record['seed']}"
    )
    for method, figures in record["methods"].items():
        cut = record["thresholds"].get(method)
        result(f"\n{method}" + ("" if cut is None else f", threshold {cut:g}"))
        sure = figures.get("intervals") or {}
        runs = len(figures.get("mean_iou_runs", []))
        several = f"  mean of {runs} runs, sd {_deviation(figures['mean_iou_runs']):.3f}" if runs > 1 else ""
        rows = [(f"mean IoU {group}", f"{value:.3f}") for group, value in figures["mean_iou"].items()]
        rows[0] = (rows[0][0], rows[0][1] + _interval(sure.get("mean_iou")) + several)
        rows += [(f"mean IoU fold {fold}", f"{v:.3f}") for fold, v in figures.get("per_fold", {}).items()]
        rows += [
            (f"boundary IoU {group}", f"{v:.3f}" + _interval(sure.get("boundary_iou") if i == 0 else None))
            for i, (group, v) in enumerate(figures.get("boundary_iou", {}).items())
        ]
        rows += [("FB-IoU", f"{figures['fb_iou']:.3f}" + _interval(sure.get("fb_iou")))]
        rows += _costs(record.get("costs", {}).get(method, {}))
        rows += [
            (name, f"{value:.3f}" + _interval(sure.get("per_class", {}).get(name)))
            for name, value in figures["per_class"].items()
        ]
        width = max(len(name) for name, _ in rows)
        for name, text in rows:
            result(f"  {name:<{width}}  {text}")
    _show_published(record)


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"  (95 %: {ends[0]:.3f} to {ends[1]:.3f})"


def _deviation(values: list[float]) -> float:
    """Standard deviation of a sample."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _costs(costs: dict[str, float | None]) -> list[tuple[str, str]]:
    """Time and memory, where they were measured."""
    forms = (
        ("seconds_per_episode", "time an episode", "{:.2f} s"),
        ("weights_mib", "weights", "{:.0f} MiB"),
        ("device_mib", "GPU memory", "{:.0f} MiB"),
    )
    return [(label, form.format(costs[name])) for name, label, form in forms if costs.get(name) is not None]


def _show_published(record: dict[str, Any]) -> None:
    """Published figures of the same protocol with ours among them, in percent; each kind by itself."""
    for kind in sorted({row["kind"] for row in record.get("published", [])}):
        rows = [
            (row["mean_iou"], f"{row['method']}, {row['backbone']}", row["source"])
            for row in record["published"]
            if row["kind"] == kind
        ]
        rows += [
            (100 * figures["mean_iou"]["all"], f"> {method}, this run", "")
            for method, figures in record["methods"].items()
            if record["kinds"][method] == kind
        ]
        width = max(len(name) for _, name, _ in rows)
        result(f"\nPublished, {kind} (mean IoU in percent; {record['protocol']})")
        for value, name, source in sorted(rows):
            result(f"  {value:5.1f}  {name:<{width}}  {source}".rstrip())
    for text in record.get("notes", []):
        note(text)
