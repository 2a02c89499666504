"""What a training run leaves to look at: curves, reliability of the presence score, TensorBoard scalars."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffseg_cli.errors import MissingDependency
from diffseg_cli.results.chart import Chart, draw_charts
from diffseg_cli.results.render import write_image
from diffseg_cli.training.run_state import read_log
from diffseg_cli.training.trainer import TrainStep

CURVES, RELIABILITY, BOARD = "curves.png", "presence.png", "tensorboard"


def write_curves(folder: Path) -> Path | None:
    """Losses and validation of a run's log as `folder/curves.png`; None where the log is empty."""
    records = read_log(folder)
    losses: dict[str, list[tuple[float, float]]] = {}
    figures: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record["losses"].items():
            losses.setdefault(name, []).append((record["step"], value))
        for name, value in (record["validation"] or {}).items():
            figures.setdefault(name, []).append((record["step"], value))
    charts = [Chart("Loss, mean since the last point", "step", losses)] if losses else []
    if figures:
        charts.append(Chart("Mean IoU on held-out images, 1 shot", "step", figures))
    if not charts:
        return None
    path = folder / CURVES
    write_image(path, draw_charts(charts))
    return path


def write_reliability(rows: Sequence[tuple[float, float, float]], path: Path) -> None:
    """Draw `presence_fit.reliability`: what the score says against how often it is true."""
    chart = Chart(
        "Presence: how often the object is there",
        "presence score (circles: share of the episodes)",
        {"measured": [(stated, true) for stated, true, _ in rows]},
        y_range=(0.0, 1.0),
        x_range=(0.0, 1.0),
        diagonal=True,
        dots={"measured": [share for _, _, share in rows]},
    )
    write_image(path, draw_charts([chart]))


class Board:
    """TensorBoard scalars of a run; steps written again after a kill replace the old ones.

    Args:
        folder: of the run.

    Raises:
        MissingDependency: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependency(
                "TensorBoard is not installed.",
                "pip install 'diffseg[tensorboard]', or leave --tensorboard out.",
            ) from error
        self._open: Any = lambda step: SummaryWriter(str(folder / BOARD), purge_step=step)
        self._writer: Any = None

    def add(self, done: TrainStep) -> None:
        """Losses, learning rate and validation of a step."""
        if self._writer is None:
            self._writer = self._open(done.step)
        scalars = {f"loss/{name}": value for name, value in done.losses.items()}
        scalars |= {f"mean_iou/{name}": value for name, value in (done.validation or {}).items()}
        for name, value in {**scalars, "lr": done.lr}.items():
            self._writer.add_scalar(name, value, done.step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
