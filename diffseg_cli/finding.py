"""Finding concepts in images: from encoded queries to scenes and their records.

Importing it does not import torch, so that options can be checked before the model is loaded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg_cli.choices import AnswerChoice
from diffseg_cli.config import PRESENT
from diffseg_cli.results.outputs import ConceptResult, Scene, number_instances, settle
from diffseg_cli.supports.concept import Concept, SavedConcept, SupportSet

if TYPE_CHECKING:
    from diffseg_cli.adaptation import Adapted, AdaptStep
    from diffseg_cli.prediction import Prediction, QueryFeatures
    from diffseg_cli.segmenter import Segmenter

# --- concepts ------------------------------------------------------------------------------------------

# Takes the steps of an adaptation and what it adapts to, and gives what came of it; None leaves it out.
Follow = Callable[["Iterator[AdaptStep]", SupportSet], "Adapted | None"]


def run_through(steps: "Iterator[AdaptStep]", _: SupportSet) -> "Adapted | None":
    """Follow an adaptation to its end and show nothing."""
    *_steps, last = steps
    return last.adapted


def encode_concepts(
    segmenter: "Segmenter", wanted: Sequence[SupportSet | SavedConcept], follow: Follow = run_through
) -> list[Concept]:
    """Encode what to look for, and have `follow` adapt the modules to it where that is asked for.

    Raises:
        UsageError: there is nothing to adapt, or there are too many supports for it.
        WeightsError: as `SavedConcept.concept`.
    """
    concepts = []
    for each in wanted:
        concept = each.concept(segmenter)
        if isinstance(each, SupportSet):
            concept = replace(concept, adapted=adapt_to(segmenter, each, follow))
        concepts.append(concept)
    return concepts


def adapt_to(segmenter: "Segmenter", supports: SupportSet, follow: Follow = run_through) -> "Adapted | None":
    """What comes of adapting the modules to some supports; None where that is not asked for."""
    if not supports.adapt:
        return None
    from diffseg_cli.adaptation import adapt_steps

    return follow(adapt_steps(segmenter, supports.pairs, negatives=supports.negatives), supports)


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
    """Look for all concepts in encoded images, for each with the modules that answer for it.

    Args:
        segmenter: that encoded both.
        query: b images, of `Segmenter.encode_queries`.
        concepts: what to look for.
        images: where each image was read from.
        answer: what counts as found.
    """
    options = {name: value for name, value in vars(answer).items() if name != "instances"}
    per_concept = [
        each.answering(segmenter).segment_encoded(query, each.support, **options) for each in concepts
    ]
    several = len(concepts) > 1
    tiles = [(tile, each.name if several else "support") for each in concepts for tile in each.tiles]
    answers = []
    for path, image, predictions in zip(images, query.images, zip(*per_concept, strict=True), strict=True):
        found = [
            ConceptResult(each.name, p.mask, p.probability, p.score_map, p.presence, p.windows)
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
        settled = settle(found, answer.min_area)
        if answer.instances:
            settled = number_instances(settled)
        answers.append(Answer(Scene(path, image, settled, tiles), notes, seconds))
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
    if answer.zoom == "off":  # as results without it were written down: they stay valid
        del chosen["zoom"]
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
