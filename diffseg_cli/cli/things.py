"""What a run looks for: supports with masks, or concepts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg_cli.cli import inputs
from diffseg_cli.errors import UsageError

if TYPE_CHECKING:
    from diffseg_cli.finding import Thing

UNNAMED = "object"  # what a thing without a name is called in results


def find_things(
    supports: Sequence[Path] | None,
    masks: Sequence[Path] | None,
    concepts: Sequence[Path] | None,
    name: str | None = None,
    **choice: Any,
) -> "list[Thing]":
    """What the options of a verb ask for; of concepts only the headers are read.

    Raises:
        UsageError: nothing, both kinds, a name that is none or twice the same, or a file twice.
        WeightsError: a concept cannot be read.
    """
    if not (supports or masks or concepts):
        raise UsageError("Nothing to look for is given.", "Give --support with --mask, or --concept.")
    if concepts and (supports or masks):
        raise UsageError(
            "--concept stands for supports and their masks; both are given.",
            "Put the supports into a concept of their own with `diffseg concept make`.",
        )
    from diffseg_cli.concept import check_name, read_concept_info
    from diffseg_cli.finding import Thing

    if not concepts:
        return [
            Thing(
                check_name(UNNAMED if name is None else name),
                None,
                supports or (),
                masks or (),
                choice,
            )
        ]
    if name is not None:
        raise UsageError("A concept has its own name.", "Leave --name out.")
    if any(choice.values()):
        raise UsageError("A concept holds its masks already.", "Leave the options that read masks out.")
    things = [Thing(read_concept_info(path).name, path) for path in concepts]
    owner: dict[str, Thing] = {}
    for thing in things:
        other = owner.setdefault(thing.name.casefold(), thing)
        if other is not thing:
            raise UsageError(
                f"{other.concept} and {thing.concept} are both called {thing.name}.",
                "Give each once, or make one again with another --name.",
            )
    from diffseg_cli.results.palette import MOST_THINGS

    if len(things) > MOST_THINGS:
        raise UsageError(f"One label map holds {MOST_THINGS} things at most.", "Run them apart.")
    return things


def read_pairs(things: "Sequence[Thing]") -> "dict[str, list[inputs.Pair]]":
    """Supports of the things that are given by pictures; before the model is loaded, to fail early."""
    return {
        thing.name: inputs.read_supports(thing.supports, thing.masks, **thing.choice)
        for thing in things
        if thing.concept is None
    }
