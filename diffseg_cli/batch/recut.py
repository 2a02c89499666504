"""Results at another cut: masks and what follows from them, from saved probabilities and without the model.

A folder of `diffseg batch` is known by its manifest, one of `diffseg segment` by its `run.json`. An image is
done when its files and then its line in that record are written; what a killed run left half is done again.
"""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffseg_cli.batch.finish import finish
from diffseg_cli.batch.job import Job, Signature
from diffseg_cli.batch.manifest import ManifestReader, Row
from diffseg_cli.batch.manifest_pieces import open_writer
from diffseg_cli.batch.outcome import Outcome, read_input, reason_of
from diffseg_cli.batch.plan import Item, refuse_labels
from diffseg_cli.batch.store import Store
from diffseg_cli.choices import AnswerChoice
from diffseg_cli.errors import DiffsegError, InputError
from diffseg_cli.files import PlaceLost
from diffseg_cli.finding import scene_record
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.remote import resolve_path
from diffseg_cli.results.formats import (
    FORMATS,
    RunContents,
    encode_image,
    encode_run,
    image_name,
    image_patterns,
    shapes_of,
)
from diffseg_cli.results.outputs import ConceptResult, Scene, number_instances, settle, thumbnail_jpeg
from diffseg_cli.results.probability import read_probabilities
from diffseg_cli.specks import drop_specks
from diffseg_cli.supports.concept import SupportSet

RUN = "run.json"
SAVED = ("score", "probability")  # formats that hold it, the exact one first
LEFT = (*SAVED, "heatmap", "sheet")  # do not change, or show maps that are not saved
AGAIN = "Run it again with --format probability beside the others."


def _kind(what: str) -> str:
    """The format of a result, which may be one concept's: "probability:dog"."""
    return what.partition(":")[0]


class Results(ABC):
    """A folder whose images are cut again; use it in a `with` block.

    Attributes:
        rows: of its images that were done, by their keys.
        names: of the concepts.
        formats: that are kept up to date.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], names: list[str], formats: list[str]) -> None:
        self.store, self.names, self.formats = Store(out), names, formats
        self.rows: dict[str, Row] = {}
        decides = ("threshold", "min_presence", "min_area", "instances")
        self._answer = AnswerChoice(**{name: settings[name] for name in decides})
        self._matting, self._stopping = bool(settings["matting"]), False

    def stop(self) -> None:
        """Take no further images; may be called from a signal handler."""
        self._stopping = True

    def cut_of(self, row: Row) -> float:
        """Where an image is cut now."""
        return float(row.found.get("threshold", self._answer.threshold))

    def _is_whole(self, row: Row) -> bool:
        """Whether an image's files are as its record says; where that has no hashes, nobody knows."""
        return all(self.store.sha256(file["path"]) == file["sha256"] for file in row.outputs.values())

    def cut(self, cuts: Mapping[str, float]) -> Iterator[Outcome]:
        """Cut images at their key's cut, and write their files and their record.

        Raises:
            PlaceLost: nothing can be written any more.
        """
        for key, cut in cuts.items():
            if self._stopping:
                return
            row, item = self.rows[key], self.item(self.rows[key])
            try:
                if self.cut_of(row) == cut and self._is_whole(row):
                    yield Outcome(item, row, skipped=True)
                    continue
                row = self.rows[key] = self._write(row, cut)
            except PlaceLost:
                raise
            except (DiffsegError, OSError) as error:
                row = replace(row, error=reason_of(error))
            else:
                self._record(row)
            yield Outcome(item, row)

    def item(self, row: Row) -> Item:
        """The image of a row."""
        return Item(resolve_path(self.store.root, row.input["path"]), row.key)

    def scene(self, row: Row, cut: float) -> Scene:
        """What is found in an image at a cut.

        Raises:
            InputError: the image or its probabilities are gone or changed.
        """
        path = self.item(row).path
        content = read_input(path)
        known = row.input.get("sha256")
        if known and hashlib.sha256(content).hexdigest() != known:
            raise InputError(f"{path} has changed since its results were made.", AGAIN)
        image = read_image(InputFile(str(path), content))
        found = []
        for concept, probability in zip(row.found["concepts"], self._probabilities(row), strict=True):
            if probability.shape != image.shape[:2]:
                raise InputError(f"{path} and its saved probability differ in size.", AGAIN)
            presence = concept["presence"]
            if presence is not None and presence < self._answer.min_presence:
                mask = np.zeros(probability.shape, dtype=bool)
            else:
                mask = drop_specks(probability > np.float32(cut), self._answer.min_area)
            found.append(ConceptResult(concept["name"], mask, probability, probability, presence))
        settled = settle(found, self._answer.min_area)
        return Scene(path, image, number_instances(settled) if self._answer.instances else settled)

    def _probabilities(self, row: Row) -> list[Any]:
        """Of each concept, float32 (H W)."""
        kind = next((kind for kind in SAVED if any(_kind(what) == kind for what in row.outputs)), None)
        if kind is None:
            raise InputError(f"The probabilities of {row.key} were not saved.", AGAIN)
        paths = [file["path"] for what, file in row.outputs.items() if _kind(what) == kind]
        maps = []
        for path in paths:
            place = self.store.root / path
            maps += read_probabilities(InputFile(str(place), read_input(place)))
        return maps

    def _write(self, row: Row, cut: float) -> Row:
        """Write what a cut changes; all of it is drawn before the first file is replaced."""
        scene = self.scene(row, cut)
        contents = {
            what: thumbnail_jpeg(scene)
            if what == "thumbnail"
            else encode_image(what, self.store.root / file["path"], scene, matting=self._matting)
            for what, file in row.outputs.items()
            if _kind(what) not in LEFT
        }
        outputs = dict(row.outputs)
        for what, content in contents.items():
            name = outputs[what]["path"]
            outputs[what] = {"path": name, "sha256": self.store.write(name, content)}
        record = scene_record(scene)
        for concept, before in zip(record["concepts"], row.found["concepts"], strict=True):
            concept["looks"] = before["looks"]  # the model's, which are over
        found = {**row.found, **record, "threshold": cut}
        shapes = shapes_of(self.formats, scene)
        return replace(
            row, outputs=outputs, found=found, shapes=shapes, time=round(time.time(), 3), order=row.order + 1
        )

    @abstractmethod
    def _record(self, row: Row) -> None:
        """Write down what became of an image."""

    @abstractmethod
    def finish(self) -> list[Path]:
        """Write the files of the whole run; returns where they are."""

    @abstractmethod
    def __enter__(self) -> "Results": ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...


class BatchResults(Results):
    """Of `diffseg batch`."""

    def __init__(self, out: Path) -> None:
        with ManifestReader(out) as reader:
            signed = reader.last_record("settings") or {}
            try:
                self._signature = Signature(signed["settings"], signed["weights"], signed["what"])
                names = [each["name"] for each in self._signature.record["concepts"]]
                super().__init__(out, self._signature.record, names, signed["formats"])
            except (KeyError, TypeError) as error:
                raise InputError(f"The manifest in {out} does not say how it was made.", AGAIN) from error
            self._items = [Item(Path(key), key) for key in reader.keys()]  # noqa: SIM118 - not a mapping
            for item in self._items:
                row = reader.rows(item.key)[-1]
                if row.error is None and row.settings == signed["settings"]:
                    self.rows[item.key] = row

    def _record(self, row: Row) -> None:
        self._writer.add(row)

    def finish(self) -> list[Path]:
        self._writer.flush()
        record = self._signature.record
        concepts = [SupportSet(name, ()) for name in self.names]
        job = Job(concepts, self._answer, self.formats, self._matting)
        written = finish(job, self._signature, self._items, self.store, record["concepts"])
        self._writer.add_record(written)
        return [self.store.root / name for name in written["files"]]

    def __enter__(self) -> "BatchResults":
        self._files = ExitStack()
        self._writer = self._files.enter_context(open_writer(self.store.root, ""))
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


class RunResults(Results):
    """Of `diffseg segment`; its record is rewritten at the end, and when it ends early."""

    def __init__(self, out: Path) -> None:
        try:
            self._run: dict[str, Any] = json.loads((out / RUN).read_bytes())
            listed = {row["key"]: row for row in self._run.pop("images")}
            names = [each["name"] for each in self._run["concepts"]]
            formats = [
                name
                for name, each in FORMATS.items()
                if each.run and all((out / file).exists() for file in each.run)
            ]
            super().__init__(out, self._run, names, formats)
            self._listed = listed
            for key, row in listed.items():
                there = {
                    what: {"path": name, "sha256": ""}
                    for what, pattern in image_patterns(FORMATS, names).items()
                    if (out / (name := image_name(pattern, key))).exists()
                }
                found = {each: row[each] for each in ("concepts", "mask_area", "threshold") if each in row}
                self.rows[key] = Row(key, {"path": row["image"]}, "", "", there, found)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{out / RUN} is not the record of a run whose probabilities were saved.", AGAIN
            ) from error

    def _record(self, row: Row) -> None:
        self._listed[row.key] |= row.found

    def finish(self) -> list[Path]:
        run = RunContents(self.names, self._run)
        needed = any(FORMATS[name].shapes for name in self.formats)
        for key, row in self.rows.items():
            shapes = row.shapes
            if needed and not shapes:
                shapes = shapes_of(self.formats, self.scene(row, self.cut_of(row)))
            run.add(key, self._listed[key], shapes)
        contents = encode_run(self.formats, run)
        for name, content in contents.items():
            self.store.write(name, content)
        return [self.store.root / name for name in contents]

    def __enter__(self) -> "RunResults":
        return self

    def __exit__(self, *_: object) -> None:
        run = RunContents(self.names, self._run, rows=list(self._listed.values()))
        self.store.write(RUN, encode_run(["json"], run)[RUN])


def open_results(out: Path) -> Results:
    """The results in a folder.

    Raises:
        InputError: it holds none whose probabilities can have been saved.
        UsageError: it is a labelling project.
    """
    refuse_labels(out)
    with ManifestReader(out) as reader:
        is_batch = bool(reader.keys())
    return BatchResults(out) if is_batch else RunResults(out)
