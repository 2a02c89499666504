"""diffseg batch on the machines of a Ray cluster."""

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from diffseg_cli.cli import console
from diffseg_cli.errors import UsageError

if TYPE_CHECKING:
    from diffseg_cli.batch.job import Job
    from diffseg_cli.batch.plan import Item, Part
    from diffseg_cli.batch.ray_engine import RayEngine, RayOptions
    from diffseg_cli.batch.session import Session

OWN_PROCESS = "memory://"  # what lies there only the process sees that put it there


class OwnStdout:
    """stdout for results alone: Ray's threads print there what happens to workers, which goes to stderr."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        mine = threading.current_thread() is threading.main_thread()
        return (self._stdout if mine else sys.stderr).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)


def ray_options(
    engine: str,
    address: str | None,
    gpus: float | None,
    workers: int | None,
    batch_size: int | None,
    *,
    stop_on_error: bool,
) -> "RayOptions | None":
    """What the options ask for; None is the local engine.

    Raises:
        UsageError: an option of the other engine.
    """
    if engine == "local":
        if address is not None or gpus is not None:
            which = "--address" if address is not None else "--gpus-per-worker"
            raise UsageError(f"{which} is for the engine ray.", "Add --engine ray.")
        return None
    from diffseg_cli.batch.ray_engine import RayOptions

    return RayOptions(workers, gpus, batch_size, stop_on_error)


@contextmanager
def open_ray_session(
    options: "RayOptions",
    address: str | None,
    job: "Job",
    items: "list[Item]",
    share: "Part",
    out: Path,
    *,
    resume: bool,
) -> "Iterator[Session[RayEngine]]":
    """A session whose work is done by workers of Ray.

    Raises:
        UsageError: as `connected` and `RayEngine`, or a place the workers cannot see.
        DiffsegError: as `Session`.
    """
    from diffseg_cli.batch.ray_engine import RayEngine, connected
    from diffseg_cli.batch.session import Session

    for place in (out, *(item.path for item in items[:1])):
        if str(place).startswith(OWN_PROCESS):
            raise UsageError(f"No other process sees {place}.", "Leave --engine ray out.")
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(cast(TextIO, OwnStdout(sys.stdout))))
        with console.working("Starting workers"):
            stack.enter_context(connected(address))
            session = Session(job, items, share, out, partial(RayEngine, options), resume=resume)
        stack.enter_context(session)
        console.say(f"Using {session.runner.description}.")
        yield session
