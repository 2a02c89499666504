"""What verbs look for, and finding it in pictures: from encoded things to scenes and their records.

Importing it does not import torch, so that options can be checked before the model is loaded.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.choices import AnswerChoice, MaskChoice
from diffseg_cli.concept import read_concept, read_thumbnails, source_of
from diffseg_cli.results.outputs import Found, Scene, settle, support_tile

if TYPE_CHECKING:
    from diffseg_cli.models.support import SupportFeatures
    from diffseg_cli.prediction import Prediction, QueryFeatures
    from diffseg_cli.segmenter import Segmenter

Pair = tuple[NDArray[np.uint8], NDArray[np.bool_]]


@dataclass(frozen=True)
class Thing:
    """One thing to look for.

    Attributes:
        name: what results call it.
        concept: its file, or None where supports are given.
        supports: pictures, or none.
        masks: one each.
        choice: how masks are read.
    """

    name: str
    concept: Path | None = None
    supports: Sequence[Path] = ()
    masks: Sequence[Path] = ()
    choice: MaskChoice = field(default_factory=MaskChoice)

    @property
    def files(self) -> list[Path]:
        return [*self.supports, *self.masks, *([self.concept] if self.concept else [])]


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
    tiles: list[tuple[NDArray[np.uint8], str]]


def encode_things(
    segmenter: "Segmenter", things: Sequence[Thing], pairs: dict[str, list[Pair]]
) -> list[Encoded]:
    """Encode supports and load concepts.

    Raises:
        WeightsError: a concept is damaged, or was made with another model.
    """
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


# --- finding -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What was found in one picture.

    Attributes:
        scene: the masks, settled among the things.
        empty: a sentence for each thing whose mask is empty.
        seconds: wall time of each stage, over all things.
    """

    scene: Scene
    empty: list[str]
    seconds: dict[str, float]


def find_in(
    segmenter: "Segmenter",
    query: "QueryFeatures",
    encoded: Sequence[Encoded],
    pictures: Sequence[Path],
    answer: AnswerChoice,
) -> list[Answer]:
    """Look for all things in encoded pictures.

    Args:
        segmenter: that encoded both.
        query: b pictures, of `Segmenter.encode_queries`.
        encoded: the things.
        pictures: where each picture was read from.
        answer: what counts as found.
    """
    each_thing = [segmenter.segment_encoded(query, each.support, **vars(answer)) for each in encoded]
    tiles = [tile for each in encoded for tile in each.tiles]
    answers = []
    for picture, image, predictions in zip(
        pictures, query.images, zip(*each_thing, strict=True), strict=True
    ):
        found = [
            Found(each.name, p.mask, p.probability, p.score_map, p.presence)
            for each, p in zip(encoded, predictions, strict=True)
        ]
        empty = [
            (f"{each.name}: " if len(encoded) > 1 else "") + _why_empty(p)
            for each, p in zip(encoded, predictions, strict=True)
            if not p.mask.any()
        ]
        seconds = {stage: spent / len(pictures) for stage, spent in query.seconds.items()}
        for stage in predictions[0].seconds.keys() - query.seconds.keys():
            seconds[stage] = sum(p.seconds[stage] for p in predictions)
        answers.append(Answer(Scene(picture, image, settle(found), tiles), empty, seconds))
    return answers


def _why_empty(prediction: "Prediction") -> str:
    if (prediction.probability > prediction.threshold).any():
        return f"the thing does not seem to be there (presence {prediction.presence:.2f})"
    return f"no pixel is above the threshold {prediction.threshold:g}"


# --- records -------------------------------------------------------------------------------------------


def settings_record(segmenter: "Segmenter", answer: AnswerChoice) -> dict[str, Any]:
    """What decided a result: the model and what counts as found."""
    chosen = {name: value for name, value in asdict(answer).items() if value is not None}
    return {**segmenter.record(), **chosen}


def scene_record(scene: Scene) -> dict[str, Any]:
    """What JSON says was found in one picture."""
    things = [
        {
            "name": thing.name,
            "label": label,
            "mask_area": float(thing.mask.mean()),
            "presence": thing.presence,
            "score": round(thing.score, 4),
        }
        for label, thing in enumerate(scene.things, start=1)
    ]
    return {
        "size_hw": list(scene.image.shape[:2]),
        "mask_area": sum(float(thing.mask.mean()) for thing in scene.things),
        "presence": scene.things[0].presence if len(scene.things) == 1 else None,
        "things": things,
    }
