"""Finding concepts in images: from encoded queries to scenes and their records.

Importing it does not import torch, so that options can be checked before the model is loaded.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg_cli.choices import AnswerChoice
from diffseg_cli.config import PRESENT
from diffseg_cli.results.outputs import ConceptResult, Scene, settle
from diffseg_cli.supports.concept import Concept

if TYPE_CHECKING:
    from diffseg_cli.prediction import Prediction, QueryFeatures
    from diffseg_cli.segmenter import Segmenter

# --- finding -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What was found in one image.

    Attributes:
        scene: the masks, settled among the concepts.
        notes: why a mask is empty, or a concept does not seem to be there; without full stops.
        seconds: wall time of each stage, over all concepts.
    """

    scene: Scene
    notes: list[str]
    seconds: dict[str, float]


def find_in(
    segmenter: "Segmenter",
    query: "QueryFeatures",
    concepts: Sequence[Concept],
    images: Sequence[Path],
    answer: AnswerChoice,
) -> list[Answer]:
    """Look for all concepts in encoded images.

    Args:
        segmenter: that encoded both.
        query: b images, of `Segmenter.encode_queries`.
        concepts: what to look for.
        images: where each image was read from.
        answer: what counts as found.
    """
    per_concept = [segmenter.segment_encoded(query, each.support, **vars(answer)) for each in concepts]
    several = len(concepts) > 1
    tiles = [(tile, each.name if several else "support") for each in concepts for tile in each.tiles]
    answers = []
    for path, image, predictions in zip(images, query.images, zip(*per_concept, strict=True), strict=True):
        found = [
            ConceptResult(each.name, p.mask, p.probability, p.score_map, p.presence)
            for each, p in zip(concepts, predictions, strict=True)
        ]
        notes = [
            (f"{each.name}: " if several else "") + note
            for each, p in zip(concepts, predictions, strict=True)
            if (note := _note(p))
        ]
        seconds = {stage: spent / len(images) for stage, spent in query.seconds.items()}
        for stage in predictions[0].seconds.keys() - query.seconds.keys():
            seconds[stage] = sum(p.seconds[stage] for p in predictions)
        answers.append(Answer(Scene(path, image, settle(found), tiles), notes, seconds))
    return answers


def _note(prediction: "Prediction") -> str | None:
    presence, empty = prediction.presence, not prediction.mask.any()
    if empty and not (prediction.probability > prediction.threshold).any():
        return f"no pixel is above the threshold {prediction.threshold:g}; the mask is empty"
    if presence is not None and (empty or presence < PRESENT):
        absent = f"the object does not seem to be there (presence {presence:.2f})"
        return f"{absent}; the mask is empty" if empty else absent
    return None


# --- records -------------------------------------------------------------------------------------------


def settings_record(segmenter: "Segmenter", answer: AnswerChoice) -> dict[str, Any]:
    """What decided a result: the model and what counts as found."""
    chosen = {name: value for name, value in asdict(answer).items() if value is not None}
    return {**segmenter.record(), **chosen}


def scene_record(scene: Scene) -> dict[str, Any]:
    """What JSON says was found in one image."""
    concepts = [{"label": label, **found.record()} for label, found in enumerate(scene.found, start=1)]
    return {
        "size_hw": list(scene.image.shape[:2]),
        "mask_area": sum(float(found.mask.mean()) for found in scene.found),
        "presence": scene.found[0].presence if len(scene.found) == 1 else None,
        "concepts": concepts,
    }
