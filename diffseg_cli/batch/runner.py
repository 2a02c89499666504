"""A model ready to work on images of a batch, in three steps that can overlap: read, find, write.

What an image gives depends on the image and the job alone: not on the batch it is in, on its neighbours or on
the number of threads (`exact_threads`, `sizing.py`).
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from diffseg_cli.assembly import load_chosen
from diffseg_cli.batch.job import Job, Signature, sign
from diffseg_cli.batch.manifest import Row
from diffseg_cli.batch.outcome import Outcome, read_input, reason_of
from diffseg_cli.batch.plan import Item
from diffseg_cli.batch.store import Store
from diffseg_cli.errors import InputError
from diffseg_cli.finding import Answer, Follow, encode_concepts, find_in, run_through, scene_record
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.remote import relative_path
from diffseg_cli.results.formats import FORMATS, encode_image, shapes_of
from diffseg_cli.results.outputs import thumbnail_jpeg
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.supports.concept import Concept
from diffseg_cli.timing import Stopwatch

Rows = Callable[[str], list[Row]]


@dataclass(frozen=True)
class Content:
    """A file that was read and is to be worked on.

    Attributes:
        item: the image.
        content: of its file; emptied once it is decoded.
        input: what `Row.input` says of it.
        seconds: spent so far, by stage.
    """

    item: Item
    content: bytes
    input: dict[str, object]
    seconds: dict[str, float]


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image: uint8 (H W 3) and what it was decoded from."""

    source: Content
    image: NDArray[np.uint8]


class Runner:
    """Reads, segments and writes images.

    Args:
        segmenter: the model.
        job: what to do.
        store: where results go.
        rows: what earlier runs say of a key, the latest last; None does everything again.
        concepts: of the job, where another runner with the same model has encoded them.
        follow: runs an adaptation, where the job asks for one.

    Raises:
        UsageError: a presence score is asked for, and the model has none.
        WeightsError: a concept was made with another model.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        job: Job,
        store: Store,
        rows: Rows | None = None,
        concepts: Sequence[Concept] | None = None,
        follow: Follow = run_through,
    ) -> None:
        self.segmenter, self.job, self.store = segmenter, job, store
        self._rows = rows
        segmenter.check_presence(job.answer.min_presence, job.answer.zoom)
        if concepts is None:
            with exact_threads(segmenter):
                concepts = encode_concepts(segmenter, job.concepts, follow)
        self.concepts = moved(concepts, segmenter.device)
        threads = torch.get_num_threads() if segmenter.device.type == "cpu" else None
        more = {} if shares_a_cpu(segmenter) else {"threads": threads}  # a result may depend on them
        self.signature: Signature = sign(job, segmenter, self.concepts, more)

    @property
    def description(self) -> str:
        """The model in a few words."""
        return self.segmenter.description

    # --- read ---

    def fetch(self, item: Item) -> Content | Outcome:
        """Read a file, unless its results are there and agree with everything that decides them.

        Raises:
            InputError: it cannot be read.
        """
        stopwatch = Stopwatch()
        content = read_input(item.path)
        digest = hashlib.sha256(content).hexdigest()
        source = {"path": relative_path(self.store.root, item.path), "sha256": digest, "bytes": len(content)}
        for row in reversed(self._rows(item.key) if self._rows else []):
            if row.error is None and row.input == source and self._agrees(row, item):
                return Outcome(item, row, skipped=True)
        stopwatch.mark("read")
        return Content(item, content, source, stopwatch.seconds)

    def decode(self, source: Content) -> DecodedImage:
        """Decode a file's content.

        Raises:
            InputError: it is no image, or damaged.
        """
        stopwatch = Stopwatch()
        image = read_image(InputFile(str(source.item.path), source.content))
        stopwatch.mark("decode")
        return DecodedImage(replace(source, content=b"", seconds=source.seconds | stopwatch.seconds), image)

    def _agrees(self, row: Row, item: Item) -> bool:
        """Whether a row was made by the same settings and weights, and its files are as it says."""
        names = item.outputs(self.job.patterns)
        return (
            (row.settings, row.weights) == (self.signature.settings, self.signature.weights)
            and {what: file["path"] for what, file in row.outputs.items()} == names
            and all(what in row.shapes or not FORMATS[what].shapes for what in self.job.formats)
            and all(self.store.sha256(file["path"]) == file["sha256"] for file in row.outputs.values())
        )

    # --- find ---

    def find(self, images: Sequence[DecodedImage]) -> list[Answer]:
        """Segment images at once; call it inside `exact_threads`."""
        stopwatch = Stopwatch()
        query = self.segmenter.encode_queries([decoded.image for decoded in images])
        paths = [decoded.source.item.path for decoded in images]
        answers = find_in(self.segmenter, query, self.concepts, paths, self.job.answer)
        stopwatch.mark("model")
        share = stopwatch.seconds["model"] / len(images)
        return [replace(answer, seconds={**answer.seconds, "model": share}) for answer in answers]

    # --- write ---

    def write(self, decoded: DecodedImage, answer: Answer) -> Outcome:
        """Write all results of an image; returns what the manifest is to say of it.

        Raises:
            PlaceLost: nothing can be written any more.
            InputError: these files cannot.
        """
        stopwatch = Stopwatch()
        item, scene = decoded.source.item, answer.scene
        contents = {
            what: thumbnail_jpeg(scene)
            if what == "thumbnail"
            else encode_image(what, self.store.root / name, scene, matting=self.job.matting)
            for what, name in item.outputs(self.job.patterns).items()
        }
        shapes = shapes_of(self.job.formats, scene)
        stopwatch.mark("draw")
        written: dict[str, dict[str, str]] = {}
        names = item.outputs(self.job.patterns)
        try:
            for what, content in contents.items():
                written[what] = {"path": names[what], "sha256": self.store.write(names[what], content)}
        except InputError:
            for file in written.values():
                self.store.remove(file["path"])
            raise
        stopwatch.mark("write")
        seconds = {**decoded.source.seconds, "model": answer.seconds["model"], **stopwatch.seconds}
        row = Row(
            item.key,
            decoded.source.input,
            self.signature.settings,
            self.signature.weights,
            written,
            scene_record(scene),
            shapes,
            {stage: round(spent, 4) for stage, spent in seconds.items()},
            round(time.time(), 3),
        )
        return Outcome(item, row, notes=tuple(answer.notes))

    def fail(self, item: Item, error: Exception) -> Outcome:
        """Write down a failure, and take away what an earlier run wrote for another state of the image."""
        planned = item.outputs(self.job.patterns).values()
        for row in self._rows(item.key) if self._rows else []:
            for file in row.outputs.values():
                if file["path"] in planned and self.store.sha256(file["path"]) == file["sha256"]:
                    self.store.remove(file["path"])
        row = Row(
            item.key,
            {"path": relative_path(self.store.root, item.path)},
            self.signature.settings,
            self.signature.weights,
            time=round(time.time(), 3),
            error=reason_of(error),
        )
        return Outcome(item, row)


def load_runner(job: Job, store: Store, rows: Rows | None = None, follow: Follow = run_through) -> Runner:
    """A runner with a model of its own. Raises as `load_chosen` and `Runner`."""
    return Runner(load_chosen(job.model), job, store, rows, follow=follow)


# --- threads -------------------------------------------------------------------------------------------


def shares_a_cpu(segmenter: Segmenter) -> bool:
    """Whether several threads may look at images with it at once, each on one core."""
    return segmenter.device.type == "cpu" and segmenter.backbone.shares_cpu


@contextmanager
def exact_threads(segmenter: Segmenter) -> Iterator[None]:
    """Compute with one thread per image, as sums taken by several depend on how many there are.

    OpenCV too, for the sake of the other images. A backbone that shares no CPU keeps all threads, and the
    signature says how many.
    """
    if not shares_a_cpu(segmenter):
        yield
        return
    before, cv_before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        cv2.setNumThreads(cv_before)


def moved(concepts: Sequence[Concept], device: torch.device) -> list[Concept]:
    """Copies on a device, in memory of torch's own: what lies in a file starts anywhere, and last bits depend
    on that."""
    return [
        replace(
            each,
            support=each.support.to(device, copy=True),
            adapted=each.adapted.to(device) if each.adapted else None,
        )
        for each in concepts
    ]
