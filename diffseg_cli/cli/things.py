"""What a run looks for: supports with masks, or concepts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg_cli.cli import inputs
from diffseg_cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffseg_cli.prediction import SupportFeatures
    from diffseg_cli.segmenter import Segmenter

UNNAMED = "object"  # what a thing without a name is called in results


@dataclass(frozen=True)
class Thing:
    """One thing to look for.

    Attributes:
        name: what results call it.
        concept: its file, or None where supports are given.
        supports: pictures, or none.
        masks: one each.
        choice: how masks are read, for `inputs.read_supports`.
    """

    name: str
    concept: Path | None = None
    supports: Sequence[Path] = ()
    masks: Sequence[Path] = ()
    choice: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        return [*self.supports, *self.masks, *([self.concept] if self.concept else [])]


def find_things(
    supports: Sequence[Path] | None,
    masks: Sequence[Path] | None,
    concepts: Sequence[Path] | None,
    name: str | None = None,
    **choice: Any,
) -> list[Thing]:
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


@dataclass(frozen=True)
class Encoded:
    """A thing ready to be looked for.

    Attributes:
        name: of the thing.
        support: its encoded supports.
        record: where they came from, for JSON.
        tiles: small pictures of them, with titles.
    """

    name: str
    support: "SupportFeatures"
    record: dict[str, Any]
    tiles: "list[tuple[NDArray[np.uint8], str]]"


def read_pairs(things: Sequence[Thing]) -> "dict[str, list[inputs.Pair]]":
    """Supports of the things that are given by pictures; before the model is loaded, to fail early."""
    return {
        thing.name: inputs.read_supports(thing.supports, thing.masks, **thing.choice)
        for thing in things
        if thing.concept is None
    }


def encode_things(
    segmenter: "Segmenter", things: Sequence[Thing], pairs: "dict[str, list[inputs.Pair]]"
) -> list[Encoded]:
    """Encode supports and load concepts.

    Raises:
        WeightsError: a concept is damaged, or was made with another model.
    """
    from diffseg_cli.concept import read_concept, read_thumbnails, source_of
    from diffseg_cli.results.outputs import support_tile

    encoded = []
    for thing in things:
        if thing.concept is not None:
            support, info = read_concept(thing.concept, segmenter)
            shown, record = read_thumbnails(thing.concept), {"concept": str(thing.concept)}
            sources = info.sources
        else:
            shown, record = pairs[thing.name], {}
            support = segmenter.encode_support(shown)
            sources = tuple(source_of(*each) for each in zip(thing.supports, thing.masks, strict=True))
        title = thing.name if len(things) > 1 else "support"
        tiles = [(support_tile(*pair), title) for pair in shown]
        rows = {"name": thing.name, **record, "supports": [asdict(source) for source in sources]}
        encoded.append(Encoded(thing.name, support, rows, tiles))
    return encoded
