"""The processes that train together: this one alone, or those `accelerate launch` started.

Each takes its share of a step's episodes; gradients are averaged, so that two processes do what one would.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffseg_cli.errors import MissingDependency, UsageError


@dataclass(frozen=True)
class ProcessGroup:
    """Who trains together.

    Attributes:
        rank: of this process; 0 is the one that validates, writes and speaks.
        size: how many there are.
        accelerator: accelerate's, or None where there is one process.
    """

    rank: int = 0
    size: int = 1
    accelerator: Any = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's part of `count` items.

        Raises:
            UsageError: they cannot be divided evenly.
        """
        if count % self.size:
            raise UsageError(
                f"A batch of {count} cannot be shared evenly by {self.size} processes.",
                f"Give --batch-size a multiple of {self.size}.",
            )
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes."""
        if self.size == 1:
            return
        used = [parameter for parameter in parameters if parameter.grad is not None]
        joined = torch.cat([p.grad.flatten() for p in used if p.grad is not None])
        mean = self.mean(joined)
        for parameter, part in zip(used, mean.split([p.numel() for p in used]), strict=True):
            parameter.grad = part.view_as(parameter)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over all processes."""
        if self.size == 1:
            return values
        reduced: Tensor = self.accelerator.reduce(values, reduction="mean")
        return reduced

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()


def find_group() -> ProcessGroup:
    """The processes a launcher started, or this one alone.

    Raises:
        MissingDependency: there are several and accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ProcessGroup()
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingDependency(
            "Several processes train together through accelerate, which is not installed.",
            "pip install 'diffseg[accelerate]'",
        ) from error
    # Without cpu=True it would not join processes on a machine without a GPU.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    return ProcessGroup(accelerator.process_index, accelerator.num_processes, accelerator)


def local_device(name: str) -> str:
    """The device of this process: of several on one machine each takes its own GPU."""
    if name in ("auto", "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name
