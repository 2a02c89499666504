"""Finding concepts in images: from encoded queries to scenes and their records.

Importing it does not import torch, so that options can be checked before the model is loaded.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg_cli.choices import AnswerChoice
from diffseg_cli.concept import Concept
from diffseg_cli.results.outputs import Found, Scene, settle

if TYPE_CHECKING:
    from diffseg_cli.prediction import Prediction, QueryFeatures
    from diffseg_cli.segmenter import Segmenter

# --- finding -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What was found in one image.

    Attributes:
        scene: the masks, settled among the concepts.
        empty: a sentence for each concept whose mask is empty.
        seconds: wall time of each stage, over all concepts.
    """

    scene: Scene
    empty: list[str]
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
            Found(each.name, p.mask, p.probability, p.score_map, p.presence)
            for each, p in zip(concepts, predictions, strict=True)
        ]
        empty = [
            (f"{each.name}: " if several else "") + _why_empty(p)
            for each, p in zip(concepts, predictions, strict=True)
            if not p.mask.any()
        ]
        seconds = {stage: spent / len(images) for stage, spent in query.seconds.items()}
        for stage in predictions[0].seconds.keys() - query.seconds.keys():
            seconds[stage] = sum(p.seconds[stage] for p in predictions)
        answers.append(Answer(Scene(path, image, settle(found), tiles), empty, seconds))
    return answers


def _why_empty(prediction: "Prediction") -> str:
    if (prediction.probability > prediction.threshold).any():
        return f"the object does not seem to be there (presence {prediction.presence:.2f})"
    return f"no pixel is above the threshold {prediction.threshold:g}"


# --- records -------------------------------------------------------------------------------------------


def settings_record(segmenter: "Segmenter", answer: AnswerChoice) -> dict[str, Any]:
    """What decided a result: the model and what counts as found."""
    chosen = {name: value for name, value in asdict(answer).items() if value is not None}
    return {**segmenter.record(), **chosen}


def scene_record(scene: Scene) -> dict[str, Any]:
    """What JSON says was found in one image."""
    concepts = [
        {
            "name": found.name,
            "label": label,
            "mask_area": float(found.mask.mean()),
            "presence": found.presence,
            "score": round(found.score, 4),
        }
        for label, found in enumerate(scene.found, start=1)
    ]
    return {
        "size_hw": list(scene.image.shape[:2]),
        "mask_area": sum(float(found.mask.mean()) for found in scene.found),
        "presence": scene.found[0].presence if len(scene.found) == 1 else None,
        "concepts": concepts,
    }
