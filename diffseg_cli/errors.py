"""What can go wrong that a user can mend, and the exit codes of the whole tool.

An error is raised where the mistake is noticed and carries two sentences: what happened (naming the
file) and, as a hint, what to do. `cli/main.py` is the one place that turns it into text and a code.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every verb."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2  # Typer's own: unknown option, missing argument or package
    BAD_INPUT = 3
    WEIGHTS = 4
    PARTIAL = 5  # a batch finished, some of its images failed
    INTERRUPTED = 130


class DiffsegError(Exception):
    """Base of all errors a user can cause and mend.

    Args:
        message: one sentence, naming the file or option at fault.
        hint: one sentence with the next thing to try, or None.
    """

    exit_code: ExitCode = ExitCode.UNEXPECTED

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Both sentences, a line each: what a traceback shows, in a notebook too."""
        return "\n".join(filter(None, (self.message, self.hint)))


class UsageError(DiffsegError):
    """Options that contradict each other, or ask for what is not there (a device, a model)."""

    exit_code = ExitCode.USAGE


class InputError(DiffsegError):
    """An image, mask or folder that cannot be used."""

    exit_code = ExitCode.BAD_INPUT


class WeightsError(DiffsegError):
    """Weights or checkpoints that are missing, damaged, or made for another model."""

    exit_code = ExitCode.WEIGHTS


class PartialFailure(DiffsegError):
    """A run over many images finished, and some of them failed."""

    exit_code = ExitCode.PARTIAL


class MissingDependency(DiffsegError):
    """An optional package is needed and not installed."""

    exit_code = ExitCode.USAGE  # what is asked for is not there, as with a device
