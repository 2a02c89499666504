"""What the model does in a project: learn from what a person decided, then propose masks for the rest."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from diffseg_cli.adaptation import adapt_steps
from diffseg_cli.choices import AnswerChoice
from diffseg_cli.config import AdaptConfig
from diffseg_cli.errors import DiffsegError, InputError, UsageError, WeightsError
from diffseg_cli.finding import find_in
from diffseg_cli.labelling.disk_cache import name_of, stamp_of
from diffseg_cli.labelling.doubt import doubt_of
from diffseg_cli.labelling.project import Mask, Project
from diffseg_cli.labelling.query_cache import QueryCache
from diffseg_cli.labelling.review_log import Outdated, Review, State, now
from diffseg_cli.supports.concept import Concept, Source, SupportSet, open_concept, source_of, write_concept
from diffseg_cli.views import Pair

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter

MOST_SUPPORTS = 10  # per class: a look takes longer with each
ADAPT = AdaptConfig()
MOST_NEGATIVES = 5  # images without a class that it is learned from
MOST_JUDGED = 10  # images decided since the last learning that judge its modules; the last ones
PRESENT = 0.5  # presence below which nothing is proposed, where there is a calibrated score


@dataclass(frozen=True)
class Taught:
    """What was learned from what a person decided.

    Attributes:
        segmenter: that encoded the concepts; where they are adapted, their own modules answer.
        concepts: one for each class that has supports.
        supports: how many images they were learned from.
        since: when the last of them was learned; what was proposed later is of no older concept.
    """

    segmenter: "Segmenter"
    concepts: list[Concept]
    supports: int
    since: str

    def knows(self, review: Review) -> bool:
        """Whether a proposal is of these concepts."""
        by_model = review.state is State.PROPOSED and review.doubt is not None
        return by_model and review.time > self.since


@dataclass(frozen=True)
class TeachStep:
    """A step of learning; the last one carries its result."""

    step: int
    steps: int
    taught: Taught | None = None


# --- what to learn from --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """What a class is learned from.

    Attributes:
        index: of the class.
        name: of the class.
        supports: keys of images that hold it.
        negatives: keys of images that do not.
    """

    index: int
    name: str
    supports: list[str]
    negatives: list[str]


def lesson_of(project: Project, index: int, most_supports: int = MOST_SUPPORTS) -> Lesson:
    """Choose what to learn a class from among what a person decided.

    Supports were corrected rather than accepted: those hold what the model did not know. Negatives are rather
    those where the model had found the class. Of equals the last ones count.

    Args:
        project: what was decided.
        index: of the class.
        most_supports: images that hold it.
    """
    name, supports, negatives = project.classes[index], list[str](), list[str]()

    def worth(review: Review) -> tuple[bool, str]:
        return review.state is State.CORRECTED or name in review.rejected, review.time

    for review in sorted(filter(lambda each: each.is_reviewed, project.reviews()), key=worth, reverse=True):
        wanted = supports if review.state is not State.NOTHING else negatives
        if len(supports) >= most_supports and len(negatives) >= MOST_NEGATIVES:
            break
        if len(supports) >= most_supports and wanted is supports and name not in review.rejected:
            continue  # thousands of masks may be accepted, and reading each takes time
        if wanted is supports:
            masks = project.masks(review.image)
            if masks is None or masks[index].all():
                continue
            wanted = supports if masks[index].any() else negatives
        if len(wanted) < (most_supports if wanted is supports else MOST_NEGATIVES):
            wanted.append(review.image)
    return Lesson(index, name, supports, negatives)


# --- judging -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """How adapted modules did on images that were decided after they were learned, and so took no part in it.

    Adaptation helps most classes and harms some, and a few supports cannot tell which: later decisions can.

    Attributes:
        adapted: sum of the IoU of what they marked with what was decided, over all rounds of learning.
        plain: the same of the modules as they were given, with the same supports.
    """

    adapted: float = 0.0
    plain: float = 0.0

    @property
    def is_lost(self) -> bool:
        """Whether the modules as they were given answer better."""
        return self.adapted < self.plain


def _trial_of(project: Project, lesson: Lesson) -> Trial:
    """As it stood when the class was last learned."""
    return Trial(**project.remembered(lesson.name).get("trial", {}))


def _judge(
    segmenter: "Segmenter", project: Project, queries: QueryCache, lesson: Lesson, trial: Trial
) -> Iterator[Trial]:
    """A trial with the decisions since the class was last learned, one after the other."""
    known = project.remembered(lesson.name)
    if not known:
        return
    rejected, answering = project.rejected_path(lesson.name), project.concept_path(lesson.name)
    try:
        concept = open_concept(rejected if rejected.exists() else answering).concept(segmenter)
    except WeightsError:  # made by another model
        return
    if not (concept.adapted and concept.adapted.reach):
        return
    since = [review for review in project.reviews() if review.is_reviewed and review.time > known["time"]]
    for review in sorted(since, key=lambda each: each.time)[-MOST_JUDGED:]:
        masks, path = project.masks(review.image), project.item(review.image).path
        if masks is None or not masks[lesson.index].any():
            continue
        with suppress(InputError):  # an image that is gone judges nothing
            query, truth = queries.encode(path), masks[lesson.index]
            adapted, plain = (
                each.answering(segmenter).segment_encoded(query, each.support)[0].mask
                for each in (concept, replace(concept, adapted=None))
            )
            trial = Trial(trial.adapted + _iou(adapted, truth), trial.plain + _iou(plain, truth))
            yield trial


def _iou(found: Mask, truth: Mask) -> float:
    """Of two masks (H W), the second of which marks something."""
    return float((found & truth).sum() / (found | truth).sum())


# --- learning ------------------------------------------------------------------------------------------


def teach_steps(
    segmenter: "Segmenter",
    project: Project,
    queries: QueryCache,
    given: Sequence[Concept] = (),
    *,
    adapt: AdaptConfig | None = ADAPT,
    most_supports: int = MOST_SUPPORTS,
) -> Iterator[TeachStep]:
    """Learn the classes of a project from what a person decided.

    What is learned of a class is kept as a concept in the project, and read again as long as it would be
    learned from the same. Adapted modules answer unless those of earlier rounds were a loss.

    Args:
        segmenter: that learns; it stays as it is.
        project: what was decided.
        queries: encodes its images.
        given: concepts to begin with, by the names of classes.
        adapt: how the trained modules are adapted, where there are any; with None the images are supports
            and no more.
        most_supports: of each class.

    Yields:
        Every step; the last one carries what was learned.

    Raises:
        UsageError: there is nothing to learn from yet.
        InputError: an image or mask cannot be read any more, or the project cannot be written.
    """
    config = adapt if segmenter.head == "pam" else None
    lessons = [lesson_of(project, index, most_supports) for index in range(len(project.classes))]
    digests = [_digest(segmenter, project, lesson, config) for lesson in lessons]
    known = [_kept(segmenter, project, *each) for each in zip(lessons, digests, strict=True)]
    start, times = {concept.name: concept for concept in given}, list[str]()
    new = [bool(lesson.supports) and not kept for lesson, kept in zip(lessons, known, strict=True)]
    done, steps = 0, max(1, sum(new) * (config.steps if config else 1))
    learned = list[Concept]()
    for lesson, digest, kept, is_new in zip(lessons, digests, known, new, strict=True):
        if is_new:
            supports = _supports(project, lesson)
            adapted, trial = None, _trial_of(project, lesson)
            if config:
                for judged in _judge(segmenter, project, queries, lesson, trial):
                    trial = judged
                    yield TeachStep(done, steps)
                absent = [(project.read(key), None) for key in lesson.negatives]
                for step in adapt_steps(segmenter, supports.pairs, negatives=absent, config=config):
                    adapted = step.adapted
                    yield TeachStep(done + step.step, steps)
                done += config.steps
            answering, rejected = project.concept_path(lesson.name), project.rejected_path(lesson.name)
            saved = write_concept(answering, segmenter, supports, None if trial.is_lost else adapted)
            project.remember(lesson.name, digest, asdict(trial))
            rejected.unlink(missing_ok=True)
            if trial.is_lost and adapted:  # they are judged again, and may do better
                write_concept(rejected, segmenter, supports, adapted)
            learned.append(saved.concept(segmenter))
            times.append(project.remembered(lesson.name)["time"])
        elif kept:
            learned.append(kept)
            times.append(project.remembered(lesson.name)["time"])
        elif lesson.name in start:
            learned.append(start[lesson.name])
            times.append(now())
    if not learned:
        raise UsageError(
            "There is nothing to learn from yet.",
            "Correct an image first, or start the server with --concept.",
        )
    count = len({key for lesson in lessons for key in lesson.supports})
    yield TeachStep(steps, steps, Taught(segmenter, learned, count, max(times)))


def _digest(segmenter: "Segmenter", project: Project, lesson: Lesson, config: AdaptConfig | None) -> str:
    """Of everything a class is learned from."""
    decisions = [
        (key, stamp_of(project.item(key).path), project.review(key).mask_sha256)
        for key in (*lesson.supports, *lesson.negatives)
    ]
    return name_of(segmenter.digest, lesson.index, len(lesson.supports), decisions, config)


def _kept(segmenter: "Segmenter", project: Project, lesson: Lesson, digest: str) -> Concept | None:
    """The concept that was learned from the same, by this process or an earlier one."""
    if not lesson.supports or project.remembered(lesson.name).get("learned_from") != digest:
        return None
    return open_concept(project.concept_path(lesson.name)).concept(segmenter)


def _supports(project: Project, lesson: Lesson) -> SupportSet:
    pairs, sources = list[Pair](), list[Source]()
    for key in lesson.supports:
        masks = project.masks(key)
        if masks is None:
            raise InputError(f"The mask of {key} is gone.", "Label the image again.")
        pairs.append((project.read(key), masks[lesson.index]))
        sources.append(source_of(project.item(key).path, project.mask_path(key)))
    return SupportSet(lesson.name, pairs, sources)


# --- proposing -----------------------------------------------------------------------------------------


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


def teach(
    segmenter: "Segmenter", project: Project, queries: QueryCache, given: Sequence[Concept] = ()
) -> Iterator[dict[str, Any]]:
    """Learn, then propose for all images nobody decided about.

    Those that are waited for most, the most doubtful, come first.

    Args:
        segmenter: that learns; it stays as it is.
        project: that it learns from and proposes for.
        queries: encodes its images.
        given: concepts to begin with.

    Yields:
        After every step stage (learning, then proposing), done and total; of proposing also `supports`, the
        number of images that were learned from.

    Raises:
        UsageError: as `teach_steps`, as is InputError.
    """
    taught = None
    for step in teach_steps(segmenter, project, queries, given):
        yield {"stage": "learning", "done": step.step, "total": step.steps}
        taught = step.taught
    if taught is None:
        raise ValueError("the last step of learning carries no result")
    project.refresh()
    open_ones = [each for each in project.reviews() if not (each.is_reviewed or taught.knows(each))]
    open_ones.sort(key=lambda review: -(review.doubt or 0.0))
    progress = {"stage": "proposing", "total": len(open_ones), "supports": taught.supports}
    yield {**progress, "done": 0}
    for done, review in enumerate(open_ones, start=1):
        with suppress(Outdated):  # somebody decided meanwhile, and that stands
            propose(project, taught, queries, review.image)
        yield {**progress, "done": done}
