"""From the values of `choices/` to options of a verb, and the few options that have no such value."""

import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from diffseg_cli.choices import (
    ADVANCED,
    OUTPUT,
    AdaptChoice,
    AnswerChoice,
    MaskChoice,
    ModelChoice,
    Option,
    SupportChoice,
)
from diffseg_cli.results.formats import DEFAULT, FORMATS

QUERY = "Query"  # panel of the help


def check_named(name: str) -> Path:
    """Refuse an empty name, such as that of a variable which is not set: it would be the current folder."""
    if not name.strip():
        raise ValueError("the name is empty; . is the current folder.")
    return Path(name)


Out = Annotated[
    Path, Option("Folder for the results.", OUTPUT, flags=("--out", "-o"), metavar="DIR", parse=check_named)
]
Json = Annotated[bool, Option("Print one JSON object per image.", OUTPUT)]


def _no_type(ctx: Any) -> None:  # noqa: ARG001 - Typer's signature
    return None


class CalmHelp:
    """For commands: help without the type of a flag or of an argument that has a name."""

    def get_params(self, ctx: Any) -> list[Any]:  # Typer's own annotations name private classes
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if isinstance(param, TyperArgument):
                param.display_type_rich = _no_type  # type: ignore[method-assign]
            elif param.is_flag:
                param.metavar = ""
        return params


class Verb(CalmHelp, TyperCommand):
    """Typer's command with such help."""


class Verbs(CalmHelp, TyperGroup):
    """Typer's group with such help."""


def _format(text: str) -> str:
    if text not in FORMATS:
        raise ValueError(f"'{text}' is not one of {', '.join(FORMATS)}.")
    return text


@dataclass(frozen=True)
class FormatChoice:
    """Which files are written: for `results.outputs.choose_formats`."""

    formats: Annotated[
        tuple[str, ...],
        Option(
            f"What to write; repeat for several: {', '.join(FORMATS)}. Default: {', '.join(DEFAULT)}.",
            OUTPUT,
            flags=("--format", "-f"),
            metavar="FORMAT",
            parse=_format,
        ),
    ] = ()
    matting: Annotated[
        bool,
        Option("Matting for cut-outs, for hair and leaves; needs pip install 'diffseg\\[matting]'.", OUTPUT),
    ] = False


@dataclass(frozen=True)
class SearchChoice:
    """What `segment`, `batch` and `watch` are asked for."""

    supports: SupportChoice
    masks: MaskChoice
    adapt: AdaptChoice
    model: ModelChoice
    answer: AnswerChoice
    files: FormatChoice


def expand(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb as Typer wants it: a parameter of a class of `choices` becomes one option per field.

    The verb itself gets the values put together again. A single parameter annotated with a `choices.Option`
    becomes an option too.
    """
    groups: dict[str, Any] = {}
    asked: dict[str, tuple[Any, Any]] = {}  # name -> annotation and default
    hints = typing.get_type_hints(verb, include_extras=True)
    for name, parameter in inspect.signature(verb).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            asked |= _fields_of(hints[name])
        else:
            asked[name] = hints[name], parameter.default
    several = [name for name, (hint, _) in asked.items() if _holds_tuple(hint)]
    # Panels of the help come in the order of their first option.
    parameters = sorted((_parameter(name, *about) for name, about in asked.items()), key=_is_advanced)

    @wraps(verb)
    def command(**values: Any) -> None:
        values |= {name: tuple(values[name]) for name in several}
        for name, kind in groups.items():
            values[name] = _put_together(kind, values)
        verb(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _fields_of(kind: Any) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of every field of a class, those of classes in it among them."""
    asked: dict[str, tuple[Any, Any]] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        hint, default = hints[each.name], each.default
        default = inspect.Parameter.empty if default is MISSING else default
        asked |= _fields_of(hint) if is_dataclass(hint) else {each.name: (hint, default)}
    return asked


def _put_together(kind: Any, values: dict[str, Any]) -> Any:
    """A class of its fields' values, which are taken out of `values`."""
    hints = typing.get_type_hints(kind)
    parts = {
        name: _put_together(hint, values) if is_dataclass(hint) else values.pop(name)
        for name, hint in hints.items()
    }
    return kind(**parts)


def _holds_tuple(hint: Any) -> bool:
    return typing.get_origin(getattr(hint, "__origin__", None)) is tuple


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    """A keyword of a verb, as an option where a `choices.Option` says how to ask for it."""
    asked = next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Option)), None)
    if asked is not None:
        hint, default = _typer_option(name, hint.__origin__, default, asked)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _typer_option(name: str, hint: Any, default: Any, asked: Option) -> tuple[Any, Any]:
    """Annotation and default for Typer, which knows lists where a frozen value has tuples."""
    flags = asked.flags or ((f"--{name.replace('_', '-')}",) if hint is bool else ())
    if typing.get_origin(hint) is tuple:
        hint = list[typing.get_args(hint)[0]]  # type: ignore[misc]
        default = [] if default == () else default
    elif asked.parse:
        hint = Any
    option = typer.Option(
        *flags,
        help=asked.help,
        rich_help_panel=asked.panel,
        metavar=asked.metavar,
        parser=asked.parse and _parser(asked.parse),
        min=asked.least,
        max=asked.most,
    )
    return Annotated[hint, option], default


def _is_advanced(parameter: inspect.Parameter) -> bool:
    about = getattr(parameter.annotation, "__metadata__", ())
    return any(getattr(part, "rich_help_panel", None) == ADVANCED for part in about)


def _parser(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parsed(text: Any) -> Any:
        try:
            return parse(text) if isinstance(text, str) else text  # a default comes as it is
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parsed
