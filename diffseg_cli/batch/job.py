"""What a batch does to every image: a plain description that another process can be handed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffseg_cli.choices import AnswerChoice, ModelChoice
from diffseg_cli.finding import settings_record
from diffseg_cli.results.formats import image_patterns, run_files
from diffseg_cli.supports.concept import Concept, SavedConcept, SupportSet

if TYPE_CHECKING:
    from diffseg_cli.segmenter import Segmenter


@dataclass(frozen=True)
class Job:
    """What to look for, with which model, and what to write.

    Attributes:
        concepts: to look for, not encoded yet: every process does that with a model of its own.
        answer: what counts as found.
        formats: what to write, of `results.outputs`.
        matting: softer borders of cut-outs.
        model: that finds it.
    """

    concepts: Sequence[SupportSet | SavedConcept]
    answer: AnswerChoice
    formats: Sequence[str]
    matting: bool = False
    model: ModelChoice = field(default_factory=ModelChoice)

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.concepts]

    @property
    def patterns(self) -> dict[str, str]:
        """Result of an image -> the pattern of its file."""
        return image_patterns(self.formats, self.names)

    @property
    def run_files(self) -> dict[str, str]:
        """Result of the whole run -> its file below the output folder."""
        return run_files(self.formats)


@dataclass(frozen=True)
class Signature:
    """What decides the bytes of a result beside its image.

    Attributes:
        settings: short hash of `record`.
        weights: `Segmenter.digest`.
        record: the settings, for people.
    """

    settings: str
    weights: str
    record: dict[str, Any]


def sign(job: Job, segmenter: "Segmenter", concepts: Sequence[Concept], more: dict[str, Any]) -> Signature:
    """Hash everything a result depends on; devices of one kind count as the same.

    `more` are settings of the engine.
    """
    record = settings_record(segmenter, job.answer) | more
    record |= {"device": segmenter.device.type, "matting": job.matting}
    record["concepts"] = [
        {
            "name": each.name,
            "supports": each.record["supports"],
            "features": each.support.digest,
            **({"adapted": each.adapted.record()} if each.adapted else {}),
        }
        for each in concepts
    ]
    decides = record | {"trained": segmenter.trained.digest}  # and not which file it was read from
    settings = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return Signature(settings, segmenter.digest, record)
