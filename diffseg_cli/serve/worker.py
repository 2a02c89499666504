"""One thread that owns the model: it takes orders in turn, and those that go together at once."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Order = TypeVar("Order")
Answer = TypeVar("Answer")


class _Pending(Future[Answer]):
    """An answer that nobody may be waiting for any more, even while it is worked on."""

    unwanted = False

    def cancel(self) -> bool:
        self.unwanted = True
        return super().cancel()


class Worker(Generic[Order, Answer]):
    """A queue with a thread behind it. How many may wait is up to those who submit.

    Args:
        work: answers orders of one key, in their order; an exception among the answers is raised for its
            order alone. It also gets a function that says whether any answer is still waited for, to ask now
            and then and stop where none is.
        key_of: orders of equal keys may be worked on at once.
        batch_size: how many.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Order], Callable[[], bool]], Sequence[Answer | Exception]],
        key_of: Callable[[Order], Hashable],
        batch_size: int,
    ) -> None:
        self._work, self._key_of, self._batch_size = work, key_of, batch_size
        self._waiting: deque[tuple[Order, _Pending[Answer]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="diffseg-worker", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> "Future[Answer]":
        """Queue an order; cancelling its future takes it out again before its turn, and stops it after.

        Raises:
            RuntimeError: the worker is closed.
        """
        future = _Pending[Answer]()
        with self._changed:
            if self._closed:
                raise RuntimeError("the worker is closed")
            self._waiting.append((order, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)

    def _next_batch(self) -> "list[tuple[Order, _Pending[Answer]]]":
        """Wait for work: the oldest order and those that go with it; none when closed and done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                batch: list[tuple[Order, _Pending[Answer]]] = []
                left: deque[tuple[Order, _Pending[Answer]]] = deque()
                for order, future in self._waiting:
                    fits = not batch or self._key_of(order) == self._key_of(batch[0][0])
                    if not fits or len(batch) == self._batch_size:
                        left.append((order, future))
                    elif future.set_running_or_notify_cancel():  # else nobody waits for it any more
                        batch.append((order, future))
                self._waiting = left
                if batch or self._closed:
                    return batch

    def _answer(self, batch: "list[tuple[Order, _Pending[Answer]]]") -> None:
        def wanted() -> bool:
            return not all(future.unwanted for _, future in batch)

        answers: Sequence[Answer | Exception]
        try:
            answers = self._work([order for order, _ in batch], wanted)
        except Exception as error:  # whatever one order did, the next ones are still answered
            if len(batch) > 1:
                for one in batch:
                    self._answer([one])
                return
            answers = [error]
        for (_, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
