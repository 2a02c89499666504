"""What a person has decided in a project, for other tools: COCO, YOLO, LabelMe, VOC or plain masks."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.files import replacing, unwritable
from diffseg_cli.labelling.project import Mask, Project
from diffseg_cli.labelling.review_log import Review, State
from diffseg_cli.reading.image_files import open_image
from diffseg_cli.reading.input_files import as_file
from diffseg_cli.results.formats import (
    RunContents,
    encode_image,
    encode_run,
    image_name,
    image_patterns,
    shapes_of,
)
from diffseg_cli.results.instances import Instance
from diffseg_cli.results.outputs import ConceptResult, Scene, number_instances

FORMATS = ("coco", "yolo", "labelme", "voc", "mask")


def exported(
    project: Project,
    form: str,
    place: Path,
    *,
    everything: bool = False,
    instances: bool | None = None,
) -> Iterator[Mapping[str, bytes]]:
    """The files of an export, image by image, then those of all images: path below the folder -> content.

    Args:
        project: what was decided.
        form: of `FORMATS`.
        place: where the files will lie, for formats that lead from there to the images.
        everything: proposals as well, not only what a person accepted, corrected or called empty.
        instances: the objects of a class apart, where a format can tell them; None as the project says.

    Raises:
        UsageError: an unknown format.
        InputError: nothing is decided yet, or a mask file is damaged.
    """
    if form not in FORMATS:
        raise UsageError(f"Unknown format '{form}'.", f"Use {', '.join(FORMATS)}.")
    run, reviews = RunContents(project.classes, {}), _leaving(project, everything=everything)
    if not reviews:
        raise InputError(
            f"No image in {project.out} is accepted, corrected or known to be empty yet.",
            "Review some first, or export proposals as well with --all.",
        )
    for review in reviews:
        key, masks = review.image, _masks(project, review)
        found = _found(project.classes, masks, 1.0 if review.is_reviewed else 1.0 - (review.doubt or 0.0))
        if project.instances if instances is None else instances:
            found = number_instances(found)
        scene = Scene(project.item(key).path, np.zeros((*masks[0].shape, 3), dtype=np.uint8), found)
        names = {
            what: image_name(pattern, key)
            for what, pattern in image_patterns([form], project.classes).items()
        }
        yield {name: encode_image(what, place / name, scene) for what, name in names.items()}
        run.add(key, {"size_hw": masks[0].shape}, shapes_of([form], scene))
    yield encode_run([form], run)


def pack_steps(
    project: Project, form: str, packed: Path, *, everything: bool, instances: bool | None
) -> Iterator[dict[str, Any]]:
    """Write an export as a ZIP file, as `exported` says.

    Args:
        project: what was decided.
        form: as in `exported`, as are everything and instances.
        packed: the file; it appears when it is complete.
        everything: see there.
        instances: see there.

    Yields:
        After each image the stage (packing), and how many images are done of the total.

    Raises:
        UsageError: as `exported`.
        InputError: as `exported`, or the file cannot be written.
    """
    total = len(_leaving(project, everything=everything))
    files = exported(project, form, project.out / "export", everything=everything, instances=instances)
    try:
        with replacing(packed) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for done, contents in enumerate(files, start=1):
                for name, content in contents.items():
                    archive.writestr(name.encode("utf-8", "replace").decode(), content)
                yield {"stage": "packing", "done": min(done, total), "total": total}
    except OSError as error:
        raise unwritable(packed, error) from error


def _leaving(project: Project, *, everything: bool) -> list[Review]:
    """Of the images that an export holds."""
    return [
        review
        for review in project.reviews()
        if review.is_reviewed or (everything and review.state is State.PROPOSED)
    ]


def _masks(project: Project, review: Review) -> list[Mask]:
    """Masks (H W) of an image that leaves."""
    masks = project.masks(review.image)
    if masks is None:
        raise InputError(
            f"{review.image} is {review.state.value}, but {project.mask_path(review.image)} is gone.",
            "Put it back from a backup, or label the image again.",
        )
    _check_size(project, review.image, masks[0])
    return masks


def _check_size(project: Project, key: str, mask: Mask) -> None:
    """Raise InputError where a mask (H W) cannot be of its image; an unreadable image tells nothing."""
    width, height = mask.shape[::-1]
    with suppress(InputError), open_image(as_file(project.item(key).path)) as image:
        width, height = image.size  # as stored: it may be shown turned
    if sorted(mask.shape) != sorted((height, width)):
        raise InputError(
            f"{project.mask_path(key)} has {mask.shape[1]} x {mask.shape[0]} pixels, and its image {width} x "
            f"{height}.",
            "Put it back from a backup, or label the image again.",
        )


def instances_of(names: Sequence[str], masks: Sequence[Mask]) -> list[Instance]:
    """The objects in masks (H W) of classes, numbered through the image from 1."""
    return [each for found in number_instances(_found(names, masks)) for each in found.instances or []]


def _found(names: Sequence[str], masks: Sequence[Mask], score: float = 1.0) -> list[ConceptResult]:
    """Masks as something that was found; formats of an export look at nothing else."""
    sure = np.ones(masks[0].shape, dtype=np.float32)
    return [ConceptResult(name, mask, sure, sure, score) for name, mask in zip(names, masks, strict=True)]
