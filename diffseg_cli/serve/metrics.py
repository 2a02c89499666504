"""What the server counts, as text for Prometheus."""

import threading
from collections import defaultdict
from collections.abc import Mapping

HELP = {
    "diffseg_requests_total": ("counter", "Requests answered, by path and status."),
    "diffseg_requests_in_hand": ("gauge", "Requests with work to do that are not answered yet."),
    "diffseg_images_total": ("counter", "Queries segmented."),
    "diffseg_batches_total": ("counter", "Batches they were segmented in."),
    "diffseg_stage_seconds_total": ("counter", "Wall time of the worker, by stage."),
    "diffseg_concepts": ("gauge", "Concepts kept."),
}


class Metrics:
    """Sums of a running server; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to the sum of this name and these labels."""
        with self._lock:
            self._values[name, tuple(sorted(labels.items()))] += amount

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add wall time by stage."""
        for stage, spent in seconds.items():
            self.add("diffseg_stage_seconds_total", spent, stage=stage)

    def total(self, name: str) -> float:
        """A sum over all labels."""
        with self._lock:
            return sum(value for (key, _), value in self._values.items() if key == name)

    def text(self) -> str:
        """All sums in Prometheus' text format, every name with its help."""
        with self._lock:
            values = sorted(self._values.items())
        lines = []
        for name, (kind, meaning) in HELP.items():
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            rows = [(labels, value) for (key, labels), value in values if key == name]
            for labels, value in rows or [((), 0)]:
                inside = ",".join(f'{label}="{text}"' for label, text in labels)
                lines.append(f"{name}{{{inside}}} {value:.10g}" if inside else f"{name} {value:.10g}")
        return "\n".join(lines) + "\n"
