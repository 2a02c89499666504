"""What works here and what does not: versions, devices, models, and files (`diffseg doctor`)."""

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from diffseg_cli.errors import DiffsegError, ExitCode, InputError
from diffseg_cli.reading.annotated import AnnotationFile, Target
from diffseg_cli.reading.array_files import is_array_file
from diffseg_cli.reading.documents import is_annotation_file, read_document
from diffseg_cli.reading.image_files import describe_image
from diffseg_cli.reading.image_io import check_image, read_image, read_mask, read_pair
from diffseg_cli.reading.input_files import InputFile, as_file
from diffseg_cli.reading.mask_checks import AmbiguousMask
from diffseg_cli.reading.mask_files import (
    class_text,
    common_end,
    draw_mask,
    find_image,
    objects_of,
    stated_size,
)
from diffseg_cli.reading.mask_shapes import listed, plain
from diffseg_cli.reading.notes import collected_notes
from diffseg_cli.supports.concept import FORMAT as CONCEPT_FORMAT
from diffseg_cli.supports.concept import open_concept
from diffseg_cli.version import __version__
from diffseg_cli.weights.files import read_header, survey
from diffseg_cli.weights.hub import KANDINSKY
from diffseg_cli.weights.kandinsky_files import KandinskyFiles, examine_kandinsky

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "opencv-contrib-python-headless", "pillow")
UNKNOWN_HW = (4000, 4000)  # of an image that is not there: YOLO and VIA state no size
MOST_DRAWN = 50  # images of one annotation file
PHOTO_LEVELS = 32  # distinct values of one channel; masks have fewer, but for their borders


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        name: what was looked at.
        status: "ok", "absent" (not needed), "unclear" (usable with another option) or "bad".
        what: what it is, or what is wrong with it.
        hint: what to do, or "".
        code: the exit code it asks for.
    """

    name: str
    status: Literal["ok", "absent", "unclear", "bad"]
    what: str
    hint: str = ""
    code: int = ExitCode.DONE


def examine_machine() -> Iterator[Finding]:
    """Versions, memory and devices, and the models installed."""
    yield Finding(
        "diffseg", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    versions = [f"{package} {_version(package)}" for package in PACKAGES]
    missing = [package for package in PACKAGES if _version(package) == "missing"]
    yield Finding(
        *("packages", "bad" if missing else "ok", ", ".join(versions)),
        *(("Install diffseg again.", ExitCode.UNEXPECTED) if missing else ()),
    )
    yield Finding("memory", "ok", _memory())
    yield _device()
    try:
        for item in survey():
            entry = item.entry
            name = f"model {entry.file.removesuffix('.safetensors')}"
            if item.status in ("ok", "unlisted"):
                known = "as its manifest says" if item.status == "ok" else "in no manifest"
                yield Finding(name, "ok", f"{entry.bytes / 1e6:.1f} MB, {known}")
            else:
                hint = (
                    "Check who may read it."
                    if item.status == "unreadable"
                    else "Install diffseg again, or fetch its weights folder again."
                )
                yield Finding(name, "bad", f"{item.path} is {item.status}", hint, ExitCode.WEIGHTS)
    except DiffsegError as error:
        yield _bad("models", error)
    found = examine_kandinsky()
    if found.status == "not installed":
        yield Finding(f"model {KANDINSKY}", "absent", "not installed, and not needed", found.hint)
    else:
        yield _kandinsky_finding(f"model {KANDINSKY}", found)


def _kandinsky_finding(name: str, found: KandinskyFiles) -> Finding:
    if found.status != "ok":
        fault = f"Kandinsky 2.2 is {found.status}: {found.fault or 'none of its files is there'}"
        return Finding(name, "bad", fault, found.hint, ExitCode.WEIGHTS)
    counts = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in found.parameters.items())
    return Finding(name, "ok", f"Kandinsky 2.2, {found.bytes / 1e9:.2f} GB; parameters: {counts}")


def examine_file(path: Path, beside: Sequence[Path] = ()) -> Finding:
    """What a file is to diffseg, and what is wrong with it.

    Args:
        path: of an image, a mask, annotations, weights or a concept; or a folder that holds Kandinsky 2.2.
        beside: other files, among them the image that annotations are about.
    """
    file = as_file(path)
    try:
        if path.is_dir():
            return _examine_folder(path)
        if path.suffix.lower() in (".safetensors", ".dsc"):
            return _examine_tensors(path)
        if is_annotation_file(file):
            return _examine_annotations(file, [other for other in beside if other != path])
        return _examine_pixels(file)
    except DiffsegError as error:
        return _bad(file.name, error)
    except OSError as error:  # a folder around it that may not be entered
        what = f"{path} cannot be reached: {error.strerror or error}."
        return Finding(file.name, "bad", what, "Check who may use it.", ExitCode.BAD_INPUT)


def _examine_folder(folder: Path) -> Finding:
    """As `--model` takes a folder: headers first, then names and shapes of all tensors."""
    found = examine_kandinsky(folder)
    if found.status == "ok":
        from diffseg_cli.weights.kandinsky import check_networks

        try:
            check_networks(found.files)
        except DiffsegError as error:
            return _bad(str(folder), error)
    return _kandinsky_finding(str(folder), found)


def _examine_tensors(path: Path) -> Finding:
    shapes, metadata = read_header(path)
    if metadata.get("format") == CONCEPT_FORMAT:
        concept = open_concept(path)
        adapted = ", adapted" if concept.adapted else ""
        what = f"concept '{concept.name}' of {len(concept.sources)} supports{adapted}"
        made = f"{concept.backbone} {plain(concept.fingerprint)}"
        return Finding(str(path), "ok", f"{what}, made with {made}")
    kind = plain(metadata.get("format", "no format named"))
    return Finding(str(path), "ok", f"safetensors ({kind}), {len(shapes)} tensors")


def _examine_annotations(file: InputFile, beside: Sequence[Path]) -> Finding:
    """Drawn as a support's mask is: with its image, where that is given too; else at the size it states."""
    document = read_document(file)
    images = document.images
    image = next((path for path in beside if _is_about(document, path)), None)
    shown = [find_image(file.name, document, Target(str(image)))] if image else images[:MOST_DRAWN]
    classes: Counter[str] = Counter()
    drawable = []
    for each in shown:
        marked = [made for made in objects_of(file.name, each) if made.is_outlined or made.box]
        classes.update(class_text(made.class_name, made.class_id) for made in marked)
        if any(made.is_outlined for made in marked):
            drawable.append(each)
    kind = document.kind if len(shown) == 1 else f"{document.kind} of {len(images)} images"
    first = f" (the first {len(shown)})" if len(shown) < len(images) and not image else ""
    held = listed(f"{name} ({count})" for name, count in classes.most_common()) or "nothing"
    what = f"annotations: {kind}, of {held}{first}"
    with collected_notes() as notes:
        try:
            if image:
                read_pair(image, file)
            for each in () if image else drawable or shown[:1]:
                _draw_alone(file.name, replace(document, images=[each]), is_only=len(images) == 1)
        except AmbiguousMask as error:
            return Finding(file.name, "unclear", what, error.hint or "", error.exit_code)
        except DiffsegError as error:
            return Finding(file.name, "bad", f"{what}. {error.message}", error.hint or "", error.exit_code)
    hint = "" if len(shown) == 1 else "Each image is found by its name."
    return Finding(file.name, "ok", f"{what}. {' '.join(notes)}".rstrip(". "), hint)


def _is_about(document: AnnotationFile, path: Path) -> bool:
    """Whether a file is an image, and one that annotations may be about."""
    try:
        check_image(path)
    except DiffsegError:
        return False
    names = [name for image in document.images for name in image.names]
    return not names or any(common_end(str(path), name) for name in names)


def _draw_alone(name: str, document: AnnotationFile, *, is_only: bool) -> None:
    """Draw all of an image that is not at hand; of several images, each needs its own choice of a class."""
    try:
        draw_mask(name, document, Target(None, None if stated_size(document.images[0]) else UNKNOWN_HW))
    except AmbiguousMask:
        if is_only:
            raise


def _examine_pixels(file: InputFile) -> Finding:
    """A mask if it reads as one; else an image if it has the colours of one; else an unclear mask."""
    kind = "NumPy array" if is_array_file(file) else describe_image(file)
    try:
        with collected_notes() as notes:
            mask = read_mask(file)
    except InputError as error:
        if is_array_file(file):
            return _bad(file.name, error)
        image = read_image(file)
        if len(np.unique(image[..., 1])) > PHOTO_LEVELS:
            return Finding(file.name, "ok", f"image: {kind}")
        return Finding(
            file.name, "unclear", f"{kind}. As a mask: {error.message}", error.hint or "", error.exit_code
        )
    return Finding(
        file.name, "ok", f"mask: {kind}, {100 * mask.mean():.3g}% object. {' '.join(notes)}".rstrip(". ")
    )


def _bad(name: str, error: DiffsegError) -> Finding:
    return Finding(name, "bad", error.message, error.hint or "", error.exit_code)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _memory() -> str:
    """Of the machine, as far as the system tells."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(f"SC_{which}PHYS_PAGES") / 2**30 for which in ("", "AV"))
    except (ValueError, OSError, AttributeError):
        return "not told by this system"
    return f"{total:.1f} GiB, {free:.1f} GiB of it unused; {os.cpu_count()} processors"


def _device() -> Finding:
    """The device `--device auto` takes."""
    from diffseg_cli.compute import describe_device, has_bfloat16, resolve_device, resolve_dtype

    device = resolve_device("auto")
    dtype = str(resolve_dtype(None, device)).removeprefix("torch.")
    bfloat16 = "has bfloat16 instructions" if has_bfloat16(device) else "no bfloat16 instructions"
    return Finding("device", "ok", f"{describe_device(device)}, computing in {dtype}; {bfloat16}")
