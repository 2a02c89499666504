"""The Ray engine: the same work by workers all over a cluster, each with a model of its own.

The driver plans, hands out groups of images through Ray Data and alone writes the manifest; workers read,
segment and write images and files. One of them encodes the concepts for all, so that the driver needs no
GPU and every worker looks for the same bits. A worker that would give other bytes, or whose folder for the
results is another, is refused.
"""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from diffseg_cli.assembly import load_chosen
from diffseg_cli.batch.job import Job, Signature
from diffseg_cli.batch.manifest import NAME, Row
from diffseg_cli.batch.outcome import Outcome
from diffseg_cli.batch.pipeline import Pipeline
from diffseg_cli.batch.plan import Item
from diffseg_cli.batch.runner import Rows, Runner, load_runner, moved
from diffseg_cli.batch.sizing import choose_batch_size
from diffseg_cli.batch.store import Store
from diffseg_cli.errors import DiffsegError, MissingDependency, UsageError
from diffseg_cli.files import PlaceLost
from diffseg_cli.remote import is_remote, to_path
from diffseg_cli.supports.concept import Concept

GROUP = 32  # images a worker takes at a time, at most
GROUPS = 4  # a worker gets so many at least, where there are few images
ROUND = 200_000  # images that Ray Data holds the tasks of at once
RETRIES = 3  # of a group whose worker died; then the run ends
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "ERROR", "RAY_BACKEND_LOG_LEVEL": "fatal"}
THREADS = 4  # of a worker that read, and that write: they wait for a network most of the time


@dataclass(frozen=True)
class RayOptions:
    """How many workers, and what each may take.

    Attributes:
        workers: processes, each with a model; None takes what the cluster has.
        gpus: of one each, such as 0.5; None one where there are any.
        batch_size: as in `choose_batch_size`.
        stop_on_error: let the first failure end the run.
    """

    workers: int | None = None
    gpus: float | None = None
    batch_size: int | None = None
    stop_on_error: bool = False


@dataclass(frozen=True)
class WorkerSetup:
    """What all workers are told, once.

    Attributes:
        job: what to do.
        concepts: encoded.
        signature: that every worker's must equal.
        out: folder of the results.
        tag: of the share.
        folder: that relative paths start from.
        batch_size: as in `RayOptions`.
    """

    job: Job
    concepts: Sequence[Concept]
    signature: Signature
    out: str
    tag: str
    folder: str
    batch_size: int | None


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be part of a cluster: of an address, of RAY_ADDRESS, the one that runs on this machine, or a new one.

    Raises:
        MissingDependency: Ray or what it needs for data is not installed.
        UsageError: there is no cluster at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependency(
            "The engine ray needs Ray, which is not installed.", "Install it with: pip install 'diffseg[ray]'"
        ) from error
    own = not ray.is_initialized()
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, ImportError) as error:
        where = address or os.environ.get("RAY_ADDRESS")
        raise UsageError(
            f"There is no Ray cluster at {where}: {str(error).partition(chr(10))[0]}",
            "Start one with `ray start --head`, or leave --address out to use this machine.",
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield
    finally:
        if own:
            ray.shutdown()


# --- on the driver -------------------------------------------------------------------------------------


class RayEngine:
    """The workers of the cluster one is connected to: `session.Loaded` and `session.Engine` in one.

    Args:
        options: how many workers, and what each may take.
        job: what to do.
        store: where results go.
        rows: what earlier runs say of a key; None does everything again.

    Attributes:
        concepts: encoded by a worker.
        signature: of the job.
        description: of the model.

    Raises:
        UsageError: the cluster has no GPU, and one is asked for.
        DiffsegError: as `load_runner`.
    """

    def __init__(self, options: RayOptions, job: Job, store: Store, rows: Rows | None = None) -> None:
        import ray

        self._rows, self._stop_on_error, self._stopping = rows, options.stop_on_error, False
        gpus, self.workers = _places(options, job, ray.cluster_resources())
        self._needs: dict[str, Any] = {"num_gpus": gpus} if gpus else {"num_cpus": 1}
        folder = str(Path.cwd())
        told = ray.get(ray.remote(**self._needs)(prepare).remote(job, folder))
        if isinstance(told, DiffsegError):
            raise told
        self.concepts, self.signature, model = told
        self.description = f"{model}, {self.workers} workers of Ray"
        setup = WorkerSetup(
            job, self.concepts, self.signature, str(store.root), store.tag, folder, options.batch_size
        )
        self._setup = ray.put(setup)

    def stop(self) -> None:
        """Take no further outcomes; what workers have in hand is given up, and done by the next run."""
        self._stopping = True

    def run(self, items: Sequence[Item]) -> Iterator[Outcome]:
        """Work on images; outcomes come in the order they are ready in.

        Raises:
            PlaceLost: a worker can write nothing any more, or is not like the others.
            DiffsegError: Ray gave up.
        """
        from ray.exceptions import RayError

        for start in range(0, len(items), ROUND):
            try:
                for outcome in self._round(items[start : start + ROUND]):
                    if self._stop_on_error and outcome.row.error is not None:
                        self._stopping = True
                    yield outcome
                    if self._stopping:
                        return
            except RayError as error:
                raise DiffsegError(
                    f"Ray gave up: {str(error).strip().partition(chr(10))[0]}",
                    "What was finished is kept; give the same command again to go on.",
                ) from error

    def _round(self, items: Sequence[Item]) -> Iterator[Outcome]:
        import ray

        known = {item.key: item for item in items}
        group = max(1, min(GROUP, len(items) // (GROUPS * self.workers)))
        tasks = ray.data.from_items(
            [{"task": self._task(item)} for item in items], override_num_blocks=-(-len(items) // group)
        )
        done = tasks.map_batches(
            RayWorker,
            fn_constructor_args=(self._setup,),
            compute=ray.data.ActorPoolStrategy(size=min(self.workers, len(items))),
            batch_size=None,  # the whole block
            max_task_retries=RETRIES,
            **self._needs,
        )
        for line in done.iter_rows():
            told = json.loads(line["told"])
            if "lost" in told:
                raise PlaceLost(*told["lost"])
            row = Row(**told["row"])
            yield Outcome(known[row.key], row, told["skipped"], tuple(told["notes"]))

    def _task(self, item: Item) -> str:
        """An image and what is known of it, as JSON: it holds any file name."""
        rows = self._rows(item.key) if self._rows else []
        return json.dumps([str(item.path), item.key, [asdict(row) for row in rows]])


def _places(options: RayOptions, job: Job, has: dict[str, float]) -> tuple[float, int]:
    """GPUs of a worker, and how many workers."""
    cuda, there = job.model.device.startswith(("auto", "cuda")), has.get("GPU", 0)
    if options.gpus and not (there and cuda):
        raise UsageError(
            "The cluster has no GPU." if cuda else "--gpus-per-worker is for GPUs, and --device is another.",
            "Leave --gpus-per-worker out.",
        )
    gpus = (1.0 if options.gpus is None else options.gpus) if there and cuda else 0.0
    room = there / gpus if gpus else has.get("CPU", 1)
    return gpus, options.workers or max(1, int(room))


# --- on a worker ---------------------------------------------------------------------------------------


def prepare(job: Job, folder: str) -> "tuple[Sequence[Concept], Signature, str] | DiffsegError":
    """Encode the concepts of a job and sign it, on a machine like those that will work."""
    _enter(folder)
    try:
        runner = load_runner(job, Store(Path(folder)))
    except DiffsegError as error:
        return error
    return moved(runner.concepts, torch.device("cpu")), runner.signature, runner.description


def _enter(folder: str) -> None:
    with suppress(OSError):  # not on this machine; then relative paths are not either
        os.chdir(folder)


class RayWorker:
    """Works on groups of images in a process of its own; Ray Data makes and calls it.

    `shared` is the reference of a `WorkerSetup`.
    """

    def __init__(self, shared: Any) -> None:
        import ray

        setup: WorkerSetup = ray.get(shared)
        _enter(setup.folder)
        self._known: dict[str, list[Row]] = {}
        self._problem: DiffsegError | None = None
        self._batch_size: int | None = None
        self._wanted = setup.batch_size
        store = Store(to_path(setup.out), setup.tag)
        try:
            segmenter = load_chosen(setup.job.model)
            self._runner = Runner(segmenter, setup.job, store, self._rows, setup.concepts)
            _check(self._runner, setup)
        except DiffsegError as error:
            self._problem = error

    def __call__(self, group: dict[str, Any]) -> dict[str, list[str]]:
        """JSON tasks of `RayEngine` -> what became of them, as JSON."""
        told: list[dict[str, Any]] = []
        try:
            if self._problem:
                raise self._problem
            for outcome in self._work([json.loads(task) for task in group["task"]]):
                told.append({"row": asdict(outcome.row), "skipped": outcome.skipped, "notes": outcome.notes})
        except DiffsegError as error:
            told.append({"lost": [error.message, error.hint]})
        return {"told": [json.dumps(each) for each in told]}

    def _work(self, tasks: list[Any]) -> Iterator[Outcome]:
        self._known = {key: [Row(**row) for row in rows] for _, key, rows in tasks}
        if self._batch_size is None:
            self._batch_size = choose_batch_size(self._runner, self._wanted, len(tasks))
        pipeline = Pipeline(self._runner, workers=THREADS, batch_size=self._batch_size)
        return pipeline.run([Item(to_path(path), key) for path, key, _ in tasks])

    def _rows(self, key: str) -> list[Row]:
        return self._known[key]


def _check(runner: Runner, setup: WorkerSetup) -> None:
    """Refuse a worker that would give other results than its fellows, or put them elsewhere.

    Raises:
        PlaceLost: it would.
    """
    host, root = platform.node(), runner.store.root
    ours, theirs = runner.signature, setup.signature
    if (ours.settings, ours.weights) != (theirs.settings, theirs.weights):
        raise PlaceLost(
            f"The worker on {host} has other weights, another version of diffseg or another kind of device "
            "than the first.",
            "Install the same on all machines, or choose with --device.",
        )
    if not is_remote(root) and not (root / f"{NAME}{setup.tag}.jsonl").exists():
        raise PlaceLost(
            f"The worker on {host} does not see {root}.", "Give an --out that all machines share, or a URL."
        )
