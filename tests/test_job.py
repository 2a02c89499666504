"""Long work in the background: progress, failures, deadlines, cancelling."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from diffseg_cli.errors import InputError
from diffseg_cli.serve.job import BackgroundJob, Step


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as worker:
        yield worker


def finished(job: BackgroundJob) -> Step:
    end = time.monotonic() + 20
    while job.is_running:
        assert time.monotonic() < end
        time.sleep(0.01)
    return job.progress


def counted(total: int, seconds: float = 0.0) -> Iterator[Step]:
    for done in range(1, total + 1):
        time.sleep(seconds)
        yield {"stage": "counting", "done": done, "total": total, "name": "bird"}


def test_its_end_is_the_last_step(worker: ThreadPoolExecutor) -> None:
    job = BackgroundJob(worker.submit)
    assert job.progress == {"stage": "idle"} and not job.is_running
    assert job.start(counted(3), "waiting")
    assert finished(job) == {"stage": "done", "done": 3, "total": 3, "name": "bird"}
    assert job.start(counted(2), "waiting")
    assert finished(job)["done"] == 2


def paused(
    worker: ThreadPoolExecutor, *steps: tuple[str, int, float]
) -> tuple[BackgroundJob, threading.Event]:
    """A job after its last step (stage, done of 10, seconds until the next); it ends with the event."""
    go, looked = threading.Event(), threading.Event()

    def run() -> Iterator[Step]:
        for stage, done, seconds in steps:
            yield {"stage": stage, "done": done, "total": 10}
            time.sleep(seconds)
        looked.set()
        assert go.wait(10)

    job = BackgroundJob(worker.submit)
    job.start(run(), "waiting")
    assert looked.wait(10)
    return job, go


def test_seconds_left_are_those_of_the_stage(worker: ThreadPoolExecutor) -> None:
    job, go = paused(worker, ("slow", 10, 0.5), ("fast", 0, 0.1), ("fast", 5, 0))
    assert job.progress["stage"] == "fast" and 0.1 <= job.progress["seconds_left"] < 0.4
    assert not job.start(counted(1), "waiting")  # one at a time
    go.set()
    assert finished(job)["stage"] == "done"


def test_what_comes_before_the_first_step_does_not_count_as_its_time(worker: ThreadPoolExecutor) -> None:
    job, go = paused(worker, ("adapting", 0, 0.5), ("adapting", 0, 0.01), ("adapting", 1, 0))
    assert job.progress["seconds_left"] < 4  # 4.6 with what came before
    go.set()
    assert finished(job)["stage"] == "done"


def test_what_went_wrong_is_said(
    worker: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server in an earlier test may have ended both.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="uvicorn.error")

    def wrong(error: Exception) -> Iterator[Step]:
        yield {"stage": "counting", "done": 1, "total": 2}
        raise error

    job = BackgroundJob(worker.submit)
    job.start(wrong(InputError("It is gone.", "Bring it back.")), "waiting")
    assert finished(job) == {"stage": "failed", "error": "It is gone. Bring it back."}
    job.start(wrong(KeyError("secret")), "waiting")
    assert finished(job) == {"stage": "failed", "error": "KeyError: this should not happen."}
    assert "KeyError: 'secret'" in caplog.text  # the person who runs the server sees where


def test_it_ends_at_its_deadline(worker: ThreadPoolExecutor) -> None:
    job = BackgroundJob(worker.submit, seconds=0.2)
    job.start(counted(1000, 0.05), "waiting")
    assert finished(job) == {"stage": "failed", "error": "This took longer than 0.2 seconds."}


def test_it_can_be_cancelled_and_begun_again(worker: ThreadPoolExecutor) -> None:
    job = BackgroundJob(worker.submit)
    job.start(counted(1000, 0.05), "waiting")
    job.cancel()
    assert job.progress == {"stage": "cancelled"} and not job.is_running
    job.start(counted(1), "waiting")
    assert finished(job)["stage"] == "done"


def test_a_closed_worker_cancels_it() -> None:
    worker = ThreadPoolExecutor(1)
    worker.shutdown()
    job = BackgroundJob(worker.submit)
    job.start(counted(1), "waiting")
    assert finished(job) == {"stage": "cancelled"}
