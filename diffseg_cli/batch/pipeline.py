"""A batch on one machine: reading, the model and writing overlap, with bounded queues between them.

Readers decode ahead, one model thread (on a CPU one per core) takes what is there, writers follow. However
fast the readers are, only so many pixels are in the pipeline at once. Results come as they are ready.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from diffseg_cli.batch.outcome import Outcome
from diffseg_cli.batch.plan import Item
from diffseg_cli.batch.runner import DecodedImage, Runner, exact_threads, shares_a_cpu
from diffseg_cli.compute import is_out_of_memory
from diffseg_cli.files import PlaceLost
from diffseg_cli.finding import Answer
from diffseg_cli.reading.image_io import check_image
from diffseg_cli.reading.input_files import InputFile

MOST_PIXELS = 48_000_000  # in the pipeline at once; about 30 bytes each with all formats
WAITING = 4  # images a thread may be ahead of the next stage
END = None  # follows the last entry of a queue, once for every thread that reads it


class Gate:
    """Lets images in as long as their pixels together stay below a bound; one alone may be larger."""

    def __init__(self, most: int) -> None:
        self._most, self._inside = most, 0
        self._changed = threading.Condition()

    def enter(self, pixels: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._inside or self._inside + pixels <= self._most)
            self._inside += pixels

    def leave(self, pixels: int) -> None:
        with self._changed:
            self._inside -= pixels
            self._changed.notify_all()


@dataclass(frozen=True)
class Segmented:
    """A segmented image on its way to a writer."""

    decoded: DecodedImage
    answer: Answer


class Pipeline:
    """The local engine.

    Args:
        runner: does the work.
        workers: threads that read, and threads that write.
        batch_size: images the model looks at together; halved when memory runs out.
        stop_on_error: let the first failure end the run.
    """

    def __init__(self, runner: Runner, *, workers: int, batch_size: int, stop_on_error: bool = False) -> None:
        self._runner, self._workers = runner, workers
        self._models = torch.get_num_threads() if shares_a_cpu(runner.segmenter) else 1
        self._batch_size, self._stop_on_error = batch_size, stop_on_error
        self._stopping = threading.Event()
        self._gate = Gate(MOST_PIXELS)
        self._lost: Exception | None = None  # what ended the whole run
        ahead = WAITING * max(self._models, batch_size)
        self._decoded: queue.Queue[Any] = queue.Queue(ahead)
        self._found: queue.Queue[Any] = queue.Queue(ahead)
        self._outcomes: queue.Queue[Any] = queue.Queue()

    def stop(self) -> None:
        """Finish what the model has in hand, leave the rest; may be called from a signal handler."""
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    def run(self, items: Sequence[Item]) -> Iterator[Outcome]:
        """Work on images; outcomes come in the order they are ready in.

        Raises:
            PlaceLost: nothing can be written any more; everything that came before is whole.
        """
        todo, lock = iter(items), threading.Lock()

        def next_item() -> Item | None:
            with lock:
                return None if self.stopped else next(todo, None)

        with ExitStack() as stack:
            stack.enter_context(exact_threads(self._runner.segmenter))
            stack.callback(self._drain)
            # Who takes from a queue is there before who fills it.
            self._start("write", self._workers, self._write, self._outcomes, 1)
            self._start("model", self._models, self._look, self._found, self._workers)
            self._start("read", self._workers, lambda: self._read(next_item), self._decoded, self._models)
            while (outcome := self._outcomes.get()) is not END:
                if self._stop_on_error and outcome.row.error is not None:
                    self.stop()
                yield outcome
            self._outcomes.put(END)  # for _drain
        if self._lost is not None:
            raise self._lost

    def _drain(self) -> None:
        """Wait until every thread has ended, also when whoever took the outcomes went away."""
        self.stop()
        while self._outcomes.get() is not END:
            pass

    def _start(
        self, stage: str, count: int, work: Callable[[], None], outlet: "queue.Queue[Any]", readers: int
    ) -> None:
        """Start the threads of a stage; the last to end says so to the `readers` of its outlet.

        Where the system allows fewer threads, those that run do the work; without any the run is lost, and no
        further stage starts.
        """
        if self._lost is not None:
            return
        left, lock = [count], threading.Lock()

        def leave(threads: int) -> None:
            with lock:
                left[0] -= threads
                last = left[0] == 0
            if last:
                for _ in range(readers):
                    outlet.put(END)

        def body() -> None:
            try:
                work()
            except Exception as error:
                self._lose(error)
            finally:
                leave(1)

        for index in range(count):
            try:  # A second Ctrl-C must not wait for them.
                threading.Thread(target=body, name=f"{stage} {index}", daemon=True).start()
            except RuntimeError as error:
                if index == 0:
                    self._lose(error)
                leave(count - index)
                return

    def _lose(self, error: Exception) -> None:
        self._lost = self._lost or error
        self.stop()

    # --- stages ---

    def _read(self, next_item: Callable[[], Item | None]) -> None:
        while (item := next_item()) is not None:
            pixels = 0
            try:
                fetched = self._runner.fetch(item)
                if isinstance(fetched, Outcome):
                    self._outcomes.put(fetched)
                    continue
                pixels = check_image(InputFile(str(item.path), fetched.content))
                self._gate.enter(pixels)
                self._decoded.put(self._runner.decode(fetched))
            except Exception as error:
                self._gate.leave(pixels)
                self._outcomes.put(self._runner.fail(item, error))

    def _look(self) -> None:
        if shares_a_cpu(self._runner.segmenter):
            torch.set_num_threads(1)  # a thread starts with its own number
        while images := self._take():
            if self.stopped:
                for decoded in images:
                    self._leave(decoded)
            else:
                self._find(images)

    def _take(self) -> list[DecodedImage]:
        """What is there, up to a batch; waits for the first."""
        first = self._decoded.get()
        if first is END:
            return []
        images = [first]
        while len(images) < self._batch_size:
            try:
                decoded = self._decoded.get_nowait()
            except queue.Empty:
                break
            if decoded is END:
                self._decoded.put(END)  # for the next time
                break
            images.append(decoded)
        return images

    def _find(self, images: list[DecodedImage]) -> None:
        """Segment a batch; one that fails is tried in halves, so that its neighbours do not suffer."""
        try:
            answers = self._runner.find(images)
        except Exception as error:
            if len(images) == 1:
                self._fail(images[0], error)
                return
            half = len(images) // 2
            if is_out_of_memory(error):
                self._batch_size = min(self._batch_size, half)
                if self._runner.segmenter.device.type == "cuda":
                    torch.cuda.empty_cache()
            self._find(images[:half])
            self._find(images[half:])
            return
        for decoded, answer in zip(images, answers, strict=True):
            self._found.put(Segmented(decoded, answer))

    def _write(self) -> None:
        while (found := self._found.get()) is not END:
            if self._lost is not None:
                self._leave(found.decoded)
                continue
            try:
                outcome = self._runner.write(found.decoded, found.answer)
            except PlaceLost as error:
                self._lose(error)
                self._leave(found.decoded)
                continue
            except Exception as error:
                self._fail(found.decoded, error)
                continue
            self._leave(found.decoded)
            self._outcomes.put(outcome)

    def _leave(self, decoded: DecodedImage) -> None:
        self._gate.leave(decoded.image.shape[0] * decoded.image.shape[1])

    def _fail(self, decoded: DecodedImage, error: Exception) -> None:
        self._leave(decoded)
        self._outcomes.put(self._runner.fail(decoded.source.item, error))
