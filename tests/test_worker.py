"""The queue in front of the model: order, batches, failures, the end."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

import pytest

from diffseg_cli.serve.worker import Worker


class Bench:
    """Work that waits for a sign, notes its batches, and fails where it is told to."""

    def __init__(self) -> None:
        self.go, self.batches, self.wanted = threading.Event(), list[list[str]](), list[bool]()

    def work(self, orders: Sequence[str], wanted: Callable[[], bool]) -> list[str | Exception]:
        assert self.go.wait(10)
        self.wanted.append(wanted())
        self.batches.append(list(orders))
        if "bomb" in orders:
            raise ZeroDivisionError("boom")
        return [ValueError(order) if order.startswith("bad") else order.upper() for order in orders]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_goes_together_is_answered_together_and_the_rest_in_turn(bench: Bench) -> None:
    worker = Worker[str, str](bench.work, lambda order: order[0], 3)
    first = worker.submit("x")  # keeps the thread busy while the others queue up
    while worker._waiting:
        pass
    futures = [worker.submit(each) for each in ("a1", "b1", "a2", "a3", "a4", "b2")]
    bench.go.set()
    assert first.result(10) == "X"
    assert [future.result(10) for future in futures] == ["A1", "B1", "A2", "A3", "A4", "B2"]
    assert bench.batches == [["x"], ["a1", "a2", "a3"], ["b1", "b2"], ["a4"]]
    worker.close()


def test_one_order_that_fails_fails_alone(bench: Bench) -> None:
    worker = Worker[str, str](bench.work, lambda _: 0, 8)
    worker.submit("x")
    while worker._waiting:
        pass
    fine, bad, bomb, last = (worker.submit(each) for each in ("fine", "bad", "bomb", "last"))
    bench.go.set()
    assert (fine.result(10), last.result(10)) == ("FINE", "LAST")
    with pytest.raises(ValueError, match="bad"):
        bad.result(10)
    with pytest.raises(ZeroDivisionError):
        bomb.result(10)
    assert worker.submit("again").result(10) == "AGAIN"
    worker.close()


def test_a_cancelled_order_is_left_out_and_closing_finishes_the_rest(bench: Bench) -> None:
    worker = Worker[str, str](bench.work, lambda _: 0, 8)
    worker.submit("x")
    while worker._waiting:
        pass
    gone, stays = worker.submit("gone"), worker.submit("stays")
    assert gone.cancel()
    bench.go.set()
    worker.close()
    assert stays.result(0) == "STAYS" and bench.batches == [["x"], ["stays"]]
    with pytest.raises(CancelledError):
        gone.result(0)
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit("late")


def test_work_is_told_when_nobody_waits_for_any_of_it(bench: Bench) -> None:
    worker = Worker[str, str](bench.work, lambda order: order[0], 8)
    first = worker.submit("x")
    while worker._waiting:
        pass
    assert not first.cancel()  # it has begun
    last = worker.submit("y")
    bench.go.set()
    assert (first.result(10), last.result(10)) == ("X", "Y") and bench.wanted == [False, True]
    worker.close()
