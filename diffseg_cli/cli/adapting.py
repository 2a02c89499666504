"""What verbs show of an adaptation to the supports, and say of its result."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from diffseg_cli.cli import console
from diffseg_cli.config import AdaptConfig

if TYPE_CHECKING:
    from diffseg_cli.adaptation import Adapted, AdaptStep
    from diffseg_cli.finding import Follow
    from diffseg_cli.supports.adapted_modules import SavedModules
    from diffseg_cli.supports.concept import Concept, SupportSet


def follow_with_bar(before: Callable[[], None] = lambda: None) -> "Follow":
    """How verbs run an adaptation; Ctrl-C keeps the modules as they are, and the verb goes on.

    Args:
        before: clears the terminal of what else moves.
    """
    return partial(_follow, before)


def _follow(
    before: Callable[[], None], steps: "Iterator[AdaptStep]", supports: "SupportSet"
) -> "Adapted | None":
    before()
    adapted = None
    try:
        counted = (step for step in steps if step.step)  # the others encode the supports
        with closing(console.track(counted, AdaptConfig.steps, f"Adapting to {supports.name}")) as shown:
            for step in shown:
                adapted = step.adapted
    except KeyboardInterrupt:
        console.note("The adaptation was stopped; the modules stay as they were.")
        return None
    if adapted:
        console.say(f"{_outcome(adapted, supports)}.")
    return adapted


def _outcome(adapted: "Adapted", supports: "SupportSet") -> str:
    several = len(supports.pairs) > 1
    what = "each support found with the others" if several else "the support's own views"
    if adapted.reach:
        return f"Adapted to {supports.name}: IoU of {what} {figures(adapted)}"
    if adapted.before is None:
        return (
            f"Not adapted to {supports.name}: one support says too little about its class, give two or more"
        )
    return f"Not adapted to {supports.name}: IoU of {what} is {adapted.before:.2f} as it is"


def figures(adapted: "Adapted | SavedModules") -> str:
    """IoU before and after, and how far the modules moved."""
    return f"{adapted.before:.2f} -> {adapted.after:.2f}, reach {adapted.reach:g}"


def say_adapted(concepts: "Iterable[Concept]") -> None:
    """Name the concepts whose files hold the modules that answer for them."""
    for each in concepts:
        if each.file and each.adapted and each.adapted.reach:
            console.say(f"{each.name}: adapted modules of {each.file}, reach {each.adapted.reach:g}.")
