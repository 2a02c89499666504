"""What a run looks for: supports with masks, or concepts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffseg_cli.choices import MaskChoice, SupportChoice
from diffseg_cli.cli import inputs
from diffseg_cli.errors import UsageError

if TYPE_CHECKING:
    from diffseg_cli.finding import Thing

UNNAMED = "object"  # what a thing without a name is called in results


def find_things(choice: SupportChoice, masks: MaskChoice) -> "list[Thing]":
    """What the options of a verb ask for; of concepts only the headers are read.

    Raises:
        UsageError: nothing, both kinds, a name that is none or twice the same, or a file twice.
        WeightsError: a concept cannot be read.
    """
    given_by_images = choice.support or choice.mask
    if not (given_by_images or choice.concept):
        raise UsageError("Nothing to look for is given.", "Give --support with --mask, or --concept.")
    if choice.concept and given_by_images:
        raise UsageError(
            "--concept stands for supports and their masks; both are given.",
            "Put the supports into a concept of their own with `diffseg concept make`.",
        )
    from diffseg_cli.concept import check_name, read_concept_info
    from diffseg_cli.files import folded
    from diffseg_cli.finding import Thing

    if not choice.concept:
        name = check_name(UNNAMED if choice.name is None else choice.name)
        return [Thing(name, None, choice.support, choice.mask, masks)]
    if choice.name is not None:
        raise UsageError("A concept has its own name.", "Leave --name out.")
    if masks != MaskChoice():
        raise UsageError("A concept holds its masks already.", "Leave the options that read masks out.")
    things = [Thing(read_concept_info(path).name, path) for path in choice.concept]
    owner: dict[str, Thing] = {}
    for thing in things:
        other = owner.setdefault(folded(thing.name), thing)
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
        thing.name: inputs.read_supports(thing.supports, thing.masks, thing.choice)
        for thing in things
        if thing.concept is None
    }
