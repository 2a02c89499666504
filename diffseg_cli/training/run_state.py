"""A training run on disk: state, log and best checkpoint, in an order that survives a kill at any point.

The log line of a step is written first, then the checkpoint if it is the best, then the state. What a kill
leaves ahead of the state is made again, bit for bit, because a step is a pure function of (seed, step); lines
of the log ahead of the state are dropped when the run goes on.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffseg_cli.errors import InputError
from diffseg_cli.files import LineLog, whole_lines, write_whole
from diffseg_cli.weights.files import read_header, read_safetensors, write_safetensors

STATE, MODULES, LOG = "state.safetensors", "modules.safetensors", "log.jsonl"


@dataclass(frozen=True)
class SavedRun:
    """Where a run was.

    Attributes:
        step: steps done.
        best: highest validation figure so far.
        trained: weights.
        average: their moving average.
        slots: parameter index -> tensors of the optimiser.
    """

    step: int
    best: float
    trained: dict[str, Tensor]
    average: dict[str, Tensor]
    slots: dict[int, dict[str, Tensor]]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last one cut off by a kill is left out."""
    path = folder / LOG
    if not path.is_file():
        return []
    with path.open("rb") as log:
        return [json.loads(line) for _, line in whole_lines(log)]


def append_log(folder: Path, record: dict[str, Any]) -> None:
    """Add a line.

    Raises:
        InputError: the folder cannot be written.
    """
    with LineLog(folder / LOG) as log:
        log.add(record)


def cut_log(folder: Path, step: int) -> None:
    """Drop the lines ahead of `step`: they will be written again."""
    if not (folder / LOG).is_file():
        return
    kept = [record for record in read_log(folder) if record["step"] <= step]
    write_whole(folder / LOG, "".join(json.dumps(record) + "\n" for record in kept).encode())


def save_state(folder: Path, run: SavedRun, key: dict[str, Any]) -> None:
    """Write the state; `key` is all that decides what the run does.

    Raises:
        InputError: the folder cannot be written.
    """
    tensors = {f"model.{name}": value for name, value in run.trained.items()}
    tensors |= {f"average.{name}": value for name, value in run.average.items()}
    for index, slots in run.slots.items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
    record = {"step": run.step, "best": run.best, "key": key}
    write_safetensors(folder / STATE, tensors, {"training": json.dumps(record)})


def read_state(folder: Path, key: dict[str, Any]) -> SavedRun | None:
    """Where the run in a folder was, or None.

    Raises:
        InputError: the state is of another run.
        WeightsError: it is damaged.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    record = json.loads(read_header(path)[1]["training"])
    wanted = json.loads(json.dumps(key))
    saved = record.get("key", {})
    differing = sorted(name for name in {*wanted, *saved} if saved.get(name) != wanted.get(name))
    if differing:
        verb = "differs" if len(differing) == 1 else "differ"
        raise InputError(
            f"{path} is the state of another run: {', '.join(differing)} {verb}.",
            "Choose another --out, or delete the file to start over.",
        )
    tensors = read_safetensors(path)[0]
    slots: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            slots[int(index)][slot] = value
    trained, average = (
        {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
        for part in ("model.", "average.")
    )
    return SavedRun(record["step"], record["best"], trained, average, dict(slots))


def optimizer_slots(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """What an optimiser remembers of each parameter."""
    slots: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return slots


def restore(run: SavedRun, trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a run's weights and the optimiser's memory back."""
    trained.load_state_dict(run.trained)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": run.slots})
