"""What one server takes on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; docs/notebook.md says what the defaults cost.

    Attributes:
        body_bytes: of a request.
        pixels: of an image or mask.
        seconds: from the first byte of a request to the last of its answer.
        requests: with work to do, at once; more are sent away.
        concepts: kept, those given at the start included.
        supports: of a request.
        batch_size: queries of one support that are segmented together.
    """

    body_bytes: int = 64_000_000
    pixels: int = 50_000_000
    seconds: float = 60.0
    requests: int = 32
    concepts: int = 32
    supports: int = 16
    batch_size: int = 1
