"""Annotation files in: which format a file has, and its text in any encoding, bounded before it is parsed."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from diffseg_cli.errors import InputError
from diffseg_cli.reading.annotated import AnnotationFile, UnreadFormat
from diffseg_cli.reading.coco_json import read_coco
from diffseg_cli.reading.cvat_xml import read_cvat
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.reading.label_studio_json import is_label_studio, read_label_studio
from diffseg_cli.reading.labelme_json import read_labelme
from diffseg_cli.reading.mask_shapes import plain
from diffseg_cli.reading.notes import note
from diffseg_cli.reading.via_json import is_via, read_via
from diffseg_cli.reading.yolo_text import read_yolo

MOST_BYTES = 64_000_000  # of a file
MOST_PARSED = 600_000_000  # bytes of memory a parsed file may take
# Bytes of memory that a mark in the text stands for: an empty list takes 24 times its brackets.
JSON_COSTS = {"[": 60, "{": 230, ",": 36}
XML_COSTS = {"<": 300, "=": 150}
YOLO_COSTS = {" ": 80, "\t": 80, "\n": 80}
HEAD = 1024  # bytes that tell the format
YOLO_LINE = re.compile(r"\d+(\.\d*)?(\s|$)")  # how its first line begins
CVAT_ROOT = "<annotation"  # Pascal VOC's has no plural, and is told apart later
NOT_UTF8 = ("gb18030", "cp1252")  # what Windows programs write where they were made
BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)
READ_HERE = "COCO, SA-1B, LabelMe, VIA, Label Studio, CVAT for images or YOLO"
SMALLER = "Cut it down to the images that are needed, or save one mask as PNG."
AS_COCO = "Export it as COCO (instances); a mask as PNG is always understood."

# Formats that are known and not read: keys of the document, or of its first entry; what it is; what to do.
KNOWN: tuple[tuple[set[str], str, str], ...] = (
    ({"segments_info"}, "COCO panoptic", "Give the panoptic PNG it names as the mask, with --label ID."),
    ({"items", "categories"}, "a Datumaro file", "Convert it: datum convert -f coco_instances."),
    ({"objects", "size"}, "a Supervisely file", AS_COCO),
    ({"item", "annotations"}, "a Darwin (V7) file", AS_COCO),
    ({"image", "annotations"}, "an Apple CreateML file of boxes", "Make a mask: diffseg mask IMAGE --box"),
    ({"metadata", "instances"}, "a SuperAnnotate file", AS_COCO),
    ({"data_row"}, "a Labelbox file", AS_COCO),
    ({"asset", "regions"}, "a VoTT file", "Export it as LabelMe or COCO, or save a mask as PNG."),
    ({"project", "metadata", "file"}, "a project of VIA 3", "Annotate with VIA 2, or export it as COCO."),
    ({"features"}, "GeoJSON", "Export a mask as PNG."),
    ({"geometry"}, "GeoJSON", "Export a mask as PNG."),
)


def is_annotation_file(file: InputFile) -> bool:
    """By content: JSON, XML of annotations, or text that begins with a number."""
    head = _decode(file.head(HEAD), errors="ignore")[0].lstrip()
    return head[:1] in ("{", "[") or YOLO_LINE.match(head) is not None or _is_xml(head)


def read_document(file: InputFile) -> AnnotationFile:
    """Read all that a file says; objects are read when they are asked for.

    Raises:
        InputError: the file is damaged, too large, or of no format that is read here.
    """
    content = file.read(MOST_BYTES, SMALLER)
    try:
        text, encoding = _decode(content)
        if encoding in NOT_UTF8:
            note(f"{file.name} is not UTF-8 and was read as {encoding.upper()}.")
        start = text[:HEAD].lstrip()
        is_json = start[:1] in ("{", "[")
        _check_cost(file.name, text, JSON_COSTS if is_json else XML_COSTS if _is_xml(start) else YOLO_COSTS)
        if not is_json:
            return read_cvat(text) if _is_xml(start) else read_yolo(text)
        document = json.loads(text)
        return _reader_of(document)(document)
    except UnreadFormat as error:
        raise InputError(f"{file.name} is {error.what}, which is not read here.", error.hint) from error
    except BROKEN as error:
        raise InputError(
            f"{file.name} is damaged, or not {READ_HERE}: {why(error)}.",
            "Export it again; a mask as PNG is always understood.",
        ) from error


def why(error: Exception) -> str:
    """Half a sentence on what a damaged file did to its reader."""
    return plain(
        f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error).rstrip("."), 120
    )


def _is_xml(head: str) -> bool:
    return head.startswith("<") and CVAT_ROOT in head


def _decode(content: bytes, errors: str = "strict") -> tuple[str, str]:
    """Text and its encoding: UTF-8, UTF-16 and UTF-32 by their first bytes, else what fits."""
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding, errors).removeprefix("\ufeff"), encoding
    except UnicodeDecodeError:
        if not encoding.startswith("utf-8"):
            raise
    for other in NOT_UTF8[:-1]:
        try:
            return content.decode(other), other
        except UnicodeDecodeError:
            continue
    return content.decode(NOT_UTF8[-1], "replace"), NOT_UTF8[-1]


def _check_cost(name: str, text: str, costs: Mapping[str, int]) -> None:
    """Refuse what would take too much memory once it is parsed, however small its file is."""
    cost = sum(each * text.count(mark) for mark, each in costs.items())
    if cost > MOST_PARSED:
        raise InputError(f"{name} would take {cost / 1e9:.1f} GB of memory to read.", SMALLER)


def _reader_of(document: Any) -> Callable[[Any], AnnotationFile]:
    """By the keys that each format must have.

    Raises:
        UnreadFormat: none that is read here has them.
    """
    if isinstance(document, list) and is_label_studio(document):
        return read_label_studio
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, dict):
        raise UnreadFormat("JSON of no known kind", AS_COCO)
    if isinstance(document, list):
        if "segmentation" in first:
            return read_coco
    elif "shapes" in first:
        return read_labelme
    elif "counts" in first or (first.keys() & {"images", "image"} and _has_outlines(first)):
        return read_coco
    elif is_via(first):
        return read_via
    keys = first.keys() | (
        {"segments_info"} if "annotations" in first and not _has_outlines(first) else set()
    )
    for known, what, hint in KNOWN:
        if known <= keys:
            raise UnreadFormat(what, hint)
    raise UnreadFormat("JSON of no known kind", AS_COCO)


def _has_outlines(document: dict[str, Any]) -> bool:
    """Whether COCO's annotations are its own, and not those of a panoptic PNG."""
    records = document.get("annotations")
    return isinstance(records, list) and not any(
        isinstance(each, dict) and "segments_info" in each for each in records[:1]
    )
