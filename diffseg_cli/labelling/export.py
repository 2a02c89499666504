"""What a person has decided in a project, for other tools: COCO, YOLO, LabelMe, VOC or plain masks."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.labelling.project import Mask, Project
from diffseg_cli.labelling.review_log import State
from diffseg_cli.results import annotations
from diffseg_cli.results.outputs import PICTURE_FILES, RUN_FILES, mask_png

FORMATS = ("coco", "yolo", "labelme", "voc", "mask")


def exported(
    project: Project, form: str, place: Path, *, everything: bool = False
) -> Iterator[tuple[str, bytes]]:
    """The files of an export, one by one: (path below the folder, content).

    Args:
        project: what was decided.
        form: of `FORMATS`.
        place: where the files will lie, for formats that lead from there to the images.
        everything: proposals as well, not only what a person accepted, corrected or called empty.

    Raises:
        UsageError: an unknown format.
        InputError: nothing is decided yet, or a mask file is damaged.
    """
    if form not in FORMATS:
        raise UsageError(f"Unknown format '{form}'.", f"Use {', '.join(FORMATS)}.")
    coco = annotations.CocoFile(project.classes)
    count = 0
    for key, masks, score in _labelled(project, everything=everything):
        count += 1
        if form == "coco":
            shapes = annotations.coco_objects(masks, [score] * len(masks), polygons=False)
            coco.add(key, masks[0].shape, shapes)
        else:
            stem = key[: len(key) - len(PurePosixPath(key).suffix)]
            name = f"{stem}{PICTURE_FILES[form]}"
            yield name, _image_file(form, place / name, project.item(key).path, masks, project.classes)
    if not count:
        raise InputError(
            f"No image in {project.out} is accepted, corrected or known to be empty yet.",
            "Review some first, or export proposals as well with --all.",
        )
    if form == "coco":
        yield RUN_FILES[form], coco.content()
    elif form == "yolo":
        yield RUN_FILES[form], annotations.yolo_names(project.classes)
    elif form == "voc":
        yield RUN_FILES[form], annotations.voc_names(project.classes)


def _labelled(project: Project, *, everything: bool) -> Iterator[tuple[str, list[Mask], float]]:
    """Key, masks (H W) and score of each image that leaves; what a person decided has score 1."""
    for review in project.reviews():
        if review.is_reviewed or (everything and review.state is State.PROPOSED):
            masks = project.masks(review.image)
            if masks is None:
                raise InputError(
                    f"{review.image} is {review.state.value}, but {project.mask_path(review.image)} is gone.",
                    "Put it back from a backup, or label the image again.",
                )
            yield review.image, masks, 1.0 if review.is_reviewed else 1.0 - (review.doubt or 0.0)


def _image_file(form: str, path: Path, image: Path, masks: Sequence[Mask], names: Sequence[str]) -> bytes:
    if form == "yolo":
        return annotations.yolo_bytes(masks)
    if form == "labelme":
        return annotations.labelme_bytes(path, image, masks, names)
    return annotations.voc_png(masks) if form == "voc" else mask_png(masks)
