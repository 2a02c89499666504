"""Everything that was trained and decides an answer beside the backbone, as one value."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.weights.files import tensors_digest


@dataclass(frozen=True, repr=False)
class Trained:
    """The trained modules with the figures that were fitted to them.

    Attributes:
        modules: "scm" and "pam", each of them optional.
        knowledge: what the score map is made of, of `models.knowledge.KNOWLEDGE`.
        presence: calibration of the presence score, or None where none was fitted.
        mask_gamma: exponent of the decoded mask, positive. Objects unlike the training classes come out
            fainter than those; chosen on held-out classes, it puts their best cut at 0.5. 1 changes nothing.
        image_size: model frame S in pixels it was trained at, or None for the backbone's own.
        source: where it came from, for records; it decides nothing.
    """

    modules: nn.ModuleDict
    knowledge: str = "self+cross"
    presence: PresenceCalibration | None = None
    mask_gamma: float = 1.0
    image_size: int | None = None
    source: str = ""

    def __repr__(self) -> str:
        modules = " and ".join(name.upper() for name in sorted(self.modules)) or "no modules"
        presence = "with" if self.presence else "without"
        source = f", from {self.source}" if self.source else ""
        return f"Trained({modules}, {presence} a presence score{source})"

    @property
    def digest(self) -> str:
        """Short hash of all of it but `source`, computed anew each time: tensors may be in training."""
        values = json.dumps(self._values(), sort_keys=True)
        text = f"{values} {tensors_digest(self.modules.state_dict())}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def rounded_digest(self) -> str:
        """The same, of tensors rounded to bfloat16: equal for one checkpoint in any number format."""
        tensors = {name: value.bfloat16() for name, value in self.modules.state_dict().items()}
        text = f"{json.dumps(self._values(), sort_keys=True)} {tensors_digest(tensors)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """What it is, as plain values for JSON."""
        return {
            "source": self.source,
            "digest": self.digest,
            "modules": sorted(self.modules),
            **self._values(),
        }

    def _values(self) -> dict[str, Any]:
        return {
            "knowledge": self.knowledge,
            "presence": asdict(self.presence) if self.presence else None,
            "mask_gamma": self.mask_gamma,
            "image_size": self.image_size,
        }


def untrained() -> Trained:
    """No modules: the attention head's answer follows from the backbone alone."""
    return Trained(nn.ModuleDict())
