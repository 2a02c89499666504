"""Adapted modules inside a concept's file: tensors `adapted.*`, and `adapted` in the metadata, a JSON record.

The tensors are float16, and nothing is lost by it: `adaptation` rounds the modules to float16 before it
judges them. Where an adaptation did not help there are no tensors, and the modules in use answer.

Importing it does not import torch.
"""

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffseg_cli.errors import WeightsError
from diffseg_cli.weights.files import load_strict, tensors_digest

if TYPE_CHECKING:
    from torch import Tensor

    from diffseg_cli.adaptation import Adapted
    from diffseg_cli.segmenter import Segmenter
    from diffseg_cli.trained import Trained

PREFIX = "adapted."
AGAIN = "Make it again with `diffseg concept make --adapt`."


@dataclass(frozen=True)
class SavedModules:
    """What a file says of its adapted modules.

    Attributes:
        start: `Trained.rounded_digest` of the modules they were adapted from.
        reach: as in `Adapted`, as are `before` and `after`.
        before: see there.
        after: see there.
        knowledge: as in `Trained`, as are the next three.
        presence: weights and bias of the calibration, or None.
        mask_gamma: see there.
        image_size: see there.
        digest: of all of that and the tensors.
    """

    start: str
    reach: float
    before: float | None
    after: float | None
    knowledge: str
    presence: dict[str, Any] | None
    mask_gamma: float
    image_size: int | None
    digest: str = ""

    def signed(self, tensors: "Mapping[str, Tensor]") -> "SavedModules":
        """The same with the digest over it and its tensors."""
        values = json.dumps(asdict(replace(self, digest="")), sort_keys=True)
        text = f"{values} {tensors_digest(tensors)}"
        return replace(self, digest=hashlib.sha256(text.encode()).hexdigest()[:16])


def pack(adapted: "Adapted", start: "Trained") -> "tuple[dict[str, Tensor], SavedModules]":
    """Tensors for a file, and what it says of them.

    Args:
        adapted: what is kept.
        start: the modules it was adapted from.
    """
    trained = adapted.trained
    kept = trained.modules.state_dict() if adapted.reach else {}
    tensors = {f"{PREFIX}{name}": value.half() for name, value in kept.items()}
    presence = (
        json.loads(json.dumps(asdict(trained.presence))) if trained.presence else None
    )  # without tuples
    saved = SavedModules(
        start=start.rounded_digest,
        reach=adapted.reach,
        before=adapted.before,
        after=adapted.after,
        knowledge=trained.knowledge,
        presence=presence,
        mask_gamma=trained.mask_gamma,
        image_size=trained.image_size,
    )
    return tensors, saved.signed(tensors)


def parse(text: str) -> SavedModules:
    """What the metadata hold.

    Raises:
        ValueError: it cannot be such a record; KeyError, TypeError or RecursionError for the same reason.
    """
    saved = SavedModules(**json.loads(text))
    texts = (saved.start, saved.knowledge, saved.digest)
    shares: list[Any] = [saved.reach, saved.before, saved.after]
    if shares == [0, None, None]:  # nothing was measured
        shares = [0]
    numbers = [*shares, saved.mask_gamma]
    if saved.presence is not None:
        if set(saved.presence) != {"weights", "bias"} or len(saved.presence["weights"]) != 3:
            raise ValueError("this is no calibration")
        numbers += [*saved.presence["weights"], saved.presence["bias"]]
    if not all(isinstance(each, str) for each in texts):
        raise ValueError("a text is none")
    if not all(type(each) in (int, float) and math.isfinite(each) for each in numbers):
        raise ValueError("a number is none")
    if not (all(0 <= each <= 1 for each in shares) and saved.mask_gamma > 0):
        raise ValueError("a number is out of its range")
    if saved.image_size is not None and type(saved.image_size) is not int:
        raise ValueError("the image size is none")
    return saved


def unpack(
    saved: SavedModules, tensors: "Mapping[str, Tensor]", segmenter: "Segmenter", path: Path
) -> "Adapted":
    """The adapted modules of a file, for a segmenter that holds those they were adapted from.

    Raises:
        WeightsError: it holds others, or the file is damaged.
    """
    import torch

    from diffseg_cli.adaptation import Adapted
    from diffseg_cli.models.knowledge import KNOWLEDGE
    from diffseg_cli.presence import PresenceCalibration
    from diffseg_cli.trained import Trained

    start = segmenter.trained
    held = {name: value for name, value in tensors.items() if name.startswith(PREFIX)}
    sound = all(value.dtype == torch.float16 and bool(value.isfinite().all()) for value in held.values())
    if not sound or saved != saved.signed(held) or saved.knowledge not in KNOWLEDGE:
        raise WeightsError(f"{path} is damaged: its adapted modules are not those it was made with.", AGAIN)
    if not saved.reach:
        return Adapted(start, 0.0, saved.before, saved.after)
    if saved.start != start.rounded_digest:
        raise WeightsError(
            f"{path} was adapted from other SCM and PAM ({saved.start}) than those in use "
            f"({start.rounded_digest}).",
            f"Give the --checkpoint it was adapted from. Or: {AGAIN}",
        )
    modules = copy.deepcopy(start.modules)
    load_strict(modules, {name.removeprefix(PREFIX): value for name, value in held.items()}, path)
    trained = Trained(
        modules=modules,
        knowledge=saved.knowledge,
        presence=PresenceCalibration.from_config(saved.presence),
        mask_gamma=saved.mask_gamma,
        image_size=saved.image_size,
        source=str(path),
    )
    return Adapted(trained, saved.reach, saved.before, saved.after)
