"""What the model does in a project: learn from what a person decided, then propose masks for the rest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffseg_cli.adaptation import adapt_steps
from diffseg_cli.choices import AnswerChoice
from diffseg_cli.config import AdaptConfig
from diffseg_cli.errors import DiffsegError, InputError, UsageError
from diffseg_cli.finding import find_in
from diffseg_cli.labelling.doubt import doubt_of
from diffseg_cli.labelling.project import Mask, Project
from diffseg_cli.labelling.query_cache import QueryCache
from diffseg_cli.labelling.review_log import Review, State
from diffseg_cli.supports.concept import Concept

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter

Pair = tuple[NDArray[np.uint8], Mask]

MOST_SUPPORTS = 10  # per class: a look takes longer with each
ADAPT = AdaptConfig()
MOST_NEGATIVES = 5  # images without any class that are learned from
PRESENT = 0.5  # presence below which nothing is proposed, where there is a calibrated score


@dataclass(frozen=True)
class Taught:
    """What was learned from what a person decided.

    Attributes:
        segmenter: that encoded the concepts; where they are adapted, their own modules answer.
        concepts: one for each class that has supports.
        supports: how many images they were learned from.
    """

    segmenter: "Segmenter"
    concepts: list[Concept]
    supports: int


@dataclass(frozen=True)
class TeachStep:
    """A step of learning; the last one carries its result."""

    step: int
    steps: int
    taught: Taught | None = None


def support_keys(project: Project, index: int, most: int = MOST_SUPPORTS) -> list[str]:
    """Images to learn a class from: corrected before accepted ones, new before old ones.

    What was corrected holds what the model did not know.

    Args:
        project: what was decided.
        index: of the class.
        most: images.
    """
    told = [review for review in project.reviews() if review.state in (State.CORRECTED, State.ACCEPTED)]
    told.sort(key=lambda review: (review.state is State.CORRECTED, review.time), reverse=True)
    keys = []
    for review in told:
        masks = project.masks(review.image)
        if masks is not None and masks[index].any() and not masks[index].all():
            keys.append(review.image)
        if len(keys) == most:
            break
    return keys


def teach_steps(
    segmenter: "Segmenter",
    project: Project,
    given: Sequence[Concept] = (),
    *,
    adapt: AdaptConfig | None = ADAPT,
    most_supports: int = MOST_SUPPORTS,
) -> Iterator[TeachStep]:
    """Learn the classes of a project from the images a person accepted or corrected.

    Args:
        segmenter: that learns; it stays as it is.
        project: what was decided.
        given: concepts to begin with, by the names of classes.
        adapt: how the trained modules are adapted, where there are any; with None the images are supports
            and no more.
        most_supports: of each class.

    Yields:
        Every step; the last one carries what was learned.

    Raises:
        UsageError: there is nothing to learn from yet.
        InputError: an image or mask cannot be read any more.
    """
    keys = [support_keys(project, index, most_supports) for index in range(len(project.classes))]
    start = {concept.name: concept for concept in given}
    config = adapt if segmenter.head == "pam" else None
    steps = sum(config.steps if config and each else 1 for each in keys)
    absent = [review.image for review in project.reviews() if review.state is State.NOTHING]
    negatives = [project.read(key) for key in absent[-MOST_NEGATIVES:]] if config else []
    done, learned = 0, list[Concept]()
    for index, name in enumerate(project.classes):
        pairs = [_pair(project, key, index) for key in keys[index]]
        adapted = None
        if pairs and config:
            for step in adapt_steps(segmenter, pairs, negatives=negatives, config=config):
                done += 1
                adapted = step.adapted
                yield TeachStep(done, steps)
        if pairs:
            learned.append(Concept(name, segmenter.encode_support(pairs), tiles=(), adapted=adapted))
        elif name in start:
            learned.append(start[name])
    if not learned:
        raise UsageError(
            "There is nothing to learn from yet.",
            "Correct an image first, or start the server with --concept.",
        )
    yield TeachStep(steps, steps, Taught(segmenter, learned, len({key for each in keys for key in each})))


def _pair(project: Project, key: str, index: int) -> Pair:
    masks = project.masks(key)
    if masks is None:
        raise InputError(f"The mask of {key} is gone.", "Label the image again.")
    return project.read(key), masks[index]


def propose(project: Project, taught: Taught, queries: QueryCache, key: str) -> Review:
    """Propose masks for an image, unless a person has decided; an image that cannot be read fails.

    Raises:
        Outdated: somebody decided while the model looked.
    """
    review = project.review(key)
    if review.is_reviewed:
        return review
    path = project.item(key).path
    try:
        query = queries.encode(path)
        calibrated = taught.segmenter.trained.presence is not None
        answer = AnswerChoice(min_presence=PRESENT if calibrated else 0.0)
        found = find_in(taught.segmenter, query, taught.concepts, [path], answer)[0].scene.found
    except DiffsegError as error:
        return project.fail(key, review.revision, error.message.replace(str(path), key))
    by_name = {each.name: each for each in found}
    empty = np.zeros(query.images[0].shape[:2], dtype=bool)
    masks = [by_name[name].mask if name in by_name else empty for name in project.classes]
    presence = {each.name: round(each.presence, 4) for each in found if each.presence is not None}
    doubt = max(doubt_of(each.mask, each.probability, each.presence) for each in found)
    return project.propose(key, review.revision, masks, presence, doubt)
