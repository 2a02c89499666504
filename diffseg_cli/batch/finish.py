"""The end of a batch: files of the whole run from everything that is finished, and a check of a folder."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffseg_cli.batch.index_page import Card, render_index
from diffseg_cli.batch.job import Job, Signature
from diffseg_cli.batch.manifest import ManifestReader, Row
from diffseg_cli.batch.plan import Item
from diffseg_cli.batch.store import Store
from diffseg_cli.errors import InputError
from diffseg_cli.files import only_one
from diffseg_cli.remote import SIGN
from diffseg_cli.results.formats import RunContents, encode_run

INDEX = "index.html"


def finish(
    job: Job, signature: Signature, items: Sequence[Item], store: Store, concepts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Write the files of the run and the contact sheet.

    They hold every image of the plan that is done with these settings, in the order of the plan, whoever did
    it and when; so the last of several parts writes the same bytes as a single run.

    Returns:
        What the manifest is to say of them: `files`, name -> sha256, with `order` and `time`.

    Raises:
        InputError: one cannot be written.
    """
    record = {**signature.record, "concepts": list(concepts)}
    run = RunContents(job.names, record)
    cards = []
    with only_one(store.root), ManifestReader(store.root) as manifest:
        for item in items:
            row = _settled(manifest.rows(item.key), signature)
            if row is None:
                continue
            cards.append(_card(item, row, job))
            if row.error is None and job.run_files:
                run.add(item.key, {"query": item.key, **row.found, "outputs": _paths(row)}, row.shapes)
        contents = encode_run(job.formats, run)
        contents[INDEX] = render_index(cards, job.names, len(items)).encode()
        files = {name: store.write(name, content) for name, content in contents.items()}
        last = manifest.last_record("files") or {"order": 0}
        return {"files": files, "order": last["order"] + 1, "time": round(time.time(), 3)}


def _settled(rows: Sequence[Row], signature: Signature) -> Row | None:
    """The latest row of these settings; a success before a failure of the same moment."""
    fitting = [row for row in rows if (row.settings, row.weights) == (signature.settings, signature.weights)]
    return fitting[-1] if fitting else None


def _paths(row: Row) -> dict[str, str]:
    return {what: file["path"] for what, file in row.outputs.items()}


def _card(item: Item, row: Row, job: Job) -> Card:
    if row.error is not None:
        return Card(item.key, error=row.error)
    paths = _paths(row)
    source = row.input["path"]
    maps = [path for what, path in paths.items() if what.partition(":")[0] == "probability"]
    near = SIGN not in source and not PurePosixPath(source).is_absolute()
    shown = next((paths[what] for what in ("overlay", "sheet", "cutout", "mask") if what in paths), None)
    return Card(
        item.key,
        thumbnail=paths["thumbnail"],
        large=shown or paths["thumbnail"],
        presence=row.presence,
        area=row.found["mask_area"],
        count=sum(each["count"] for each in row.found["concepts"]) if job.answer.instances else None,
        found=[each["name"] for each in row.found["concepts"] if each["mask_area"] and len(job.concepts) > 1],
        image=source if maps and near else "",
        maps=maps,
        cut=row.found.get("threshold", job.answer.threshold),
    )


# --- verify --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """Something that is not as the manifest says."""

    key: str
    reason: str


def verify(out: Path) -> Iterator[Fault | None]:
    """Check a finished folder: a fault, or None for something that is right, one after the other.

    An image that is not where it was is no fault: results may be moved away from their images.

    Raises:
        InputError: there is no manifest.
    """
    store = Store(out)
    with ManifestReader(out) as manifest:
        keys = manifest.keys()
        if not keys:
            raise InputError(
                f"{out} holds no manifest of a batch.", "Give the --out of a `diffseg batch` that was run."
            )
        for key in keys:
            yield from _faults(store, manifest.rows(key)[-1])
        for name, sha256 in (manifest.last_record("files") or {"files": {}})["files"].items():
            yield _compare(store, name, name, sha256)


def _faults(store: Store, row: Row) -> Iterator[Fault | None]:
    if row.error is not None:
        yield Fault(row.key, f"failed: {row.error}")
        return
    now = store.sha256(row.input["path"])
    if now not in (None, row.input["sha256"]):
        yield Fault(row.key, "has changed since its results were made")
    for file in row.outputs.values():
        yield _compare(store, row.key, file["path"], file["sha256"])


def _compare(store: Store, key: str, name: str, sha256: str) -> Fault | None:
    now = store.sha256(name)
    if now is None:
        return Fault(key, f"{store.root / name} is missing")
    if now != sha256:
        return Fault(key, f"{store.root / name} is not what was written")
    return None
