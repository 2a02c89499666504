"""Spread an evaluation over processes, Ray workers or a launcher's machines, and go on where one stopped.

Counts are whole numbers of single episodes, so that any division of the work merges to the same sums.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import torch

from diffseg_cli.choices.evaluation import EvaluationPlan
from diffseg_cli.errors import MissingDependency, UsageError
from diffseg_cli.evaluation.benchmark import Benchmark
from diffseg_cli.evaluation.episode_list import Task
from diffseg_cli.evaluation.ledger import Ledger, read_ledgers
from diffseg_cli.evaluation.summary import EpisodeResult

CHUNK = 8  # episodes a worker takes at a time, or one support set of more


def run_benchmark(
    benchmark: Benchmark, out: Path | None = None, *, workers: int = 1, ray: bool = False
) -> Iterator[EpisodeResult]:
    """All episodes of a benchmark, those already in `out` first.

    Of several processes of a launch each takes its share of the support sets and yields it; `collect` then
    has all of them.

    Args:
        benchmark: what to run.
        out: folder for the ledger; None keeps no record, and nothing can be resumed.
        workers: processes on this machine.
        ray: spread over the workers of a Ray cluster instead.

    Raises:
        InputError: `out` holds another run's episodes, or cannot be written.
        MissingDependency: what spreads the work, Ray or accelerate, is not installed.
    """
    rank, world = _rank_and_world()
    if world > 1 and out is None:
        raise UsageError("Several processes meet in a folder, and there is none.", "Give one with --out.")
    if world > 1 and find_spec("accelerate") is None:
        raise MissingDependency("accelerate is not installed.", "pip install 'diffseg[accelerate]'")
    done = {} if out is None else read_ledgers(out, benchmark.key())
    mine = [task for together in _support_sets(benchmark.tasks)[rank::world] for task in together]
    yield from (done[task.place] for task in mine if task.place in done)
    todo = [task for task in mine if task.place not in done]
    if ray:
        fresh = _measure_on_ray(benchmark.plan, _chunks(todo))
    elif workers > 1 and len(todo) > 1:
        fresh = _measure_in_processes(benchmark.plan, _chunks(todo), workers)
    else:
        fresh = (benchmark.measure(task) for task in todo)
    if out is None or not todo:
        yield from fresh
        return
    with Ledger(out, benchmark.key(), None if world == 1 else rank) as ledger:
        for result in fresh:
            ledger.add(asdict(result))
            yield result


def collect(benchmark: Benchmark, out: Path) -> list[EpisodeResult] | None:
    """Results of all processes that share a launch, in the first of them; None in the others."""
    from accelerate import PartialState

    # Without cpu=True it would not join processes on a machine without a GPU.
    state = PartialState(cpu=not torch.cuda.is_available())
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    done = read_ledgers(out, benchmark.key())
    return [done[place] for place in sorted(done)]


def share_device(plan: EvaluationPlan) -> EvaluationPlan:
    """The same plan on the GPU that a launcher gave this process; unchanged elsewhere."""
    device = plan.model.device
    if _rank_and_world()[1] == 1 or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return plan
    return replace(plan, model=replace(plan.model, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}"))


def spread_over_machines() -> bool:
    """Whether this process is one of several that a launcher started."""
    return _rank_and_world()[1] > 1


def _rank_and_world() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


# --- processes -----------------------------------------------------------------------------------------


def _support_sets(tasks: list[Task]) -> list[list[Task]]:
    """Tasks that share supports and so an adaptation, class by class: its encodings are remembered."""
    by_class = sorted(tasks, key=lambda task: (task.place[1], task.episode.class_name))
    sets = groupby(by_class, key=lambda task: (task.run, task.fold, task.episode.support))
    return [list(same) for _, same in sets]


def _chunks(tasks: list[Task]) -> list[list[Task]]:
    """Tasks a few at a time, whole support sets of them."""
    chunks: list[list[Task]] = []
    for together in _support_sets(tasks):
        if chunks and len(chunks[-1]) + len(together) <= CHUNK:
            chunks[-1] += together
        else:
            chunks.append(together)
    return chunks


@lru_cache(maxsize=1)
def _benchmark_here(plan: EvaluationPlan) -> Benchmark:
    """A worker's own copy, made when its first chunk comes."""
    return Benchmark(plan)


def measure_chunk(plan: EvaluationPlan, tasks: list[Task], threads: int) -> list[EpisodeResult]:
    """What a worker does: `threads` bounds what torch takes of the processor."""
    torch.set_num_threads(threads)
    return [_benchmark_here(plan).measure(task) for task in tasks]


def _measure_in_processes(
    plan: EvaluationPlan, chunks: list[list[Task]], workers: int
) -> Iterator[EpisodeResult]:
    threads = max(1, (os.cpu_count() or 1) // workers)
    # spawn, not fork: CUDA and torch's threads do not survive a fork.
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(measure_chunk, plan, chunk, threads) for chunk in chunks]
        try:
            for future in as_completed(futures):
                yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _measure_on_ray(plan: EvaluationPlan, chunks: list[list[Task]]) -> Iterator[EpisodeResult]:
    try:
        import ray
    except ImportError as error:
        raise MissingDependency("Ray is not installed.", "pip install 'diffseg[ray]'") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    gpus = 1 if torch.cuda.is_available() else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus)(measure_chunk)
    waiting = [remote.remote(plan, chunk, 1) for chunk in chunks]
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1)
        yield from ray.get(ready[0])
