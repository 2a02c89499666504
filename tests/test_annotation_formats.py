"""Annotations as the tools of the field really write them: the pixels they mean, what is said of the rest."""

import base64
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from diffseg_cli.doctor import examine_file
from diffseg_cli.errors import InputError
from diffseg_cli.reading.annotated import Target
from diffseg_cli.reading.image_io import read_mask, read_pair
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.reading.notes import collected_notes

H, W = 120, 160
R = [[20, 30, 90, 30, 90, 80, 20, 80]]  # 70 x 50
R_POINTS = [[20, 30], [90, 30], [90, 80], [20, 80]]
S = [[100, 40, 120, 40, 120, 60, 100, 60]]  # 20 x 20, beside it
R_AREA, S_AREA = 3500, 400
DOG = Target("photos/dog.jpg", (H, W))


def area(content: Any, target: Target = DOG, **choice: Any) -> tuple[int, str]:
    """Pixels of the mask that a file gives, and what is noted of it."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    with collected_notes() as notes:
        mask = read_mask(InputFile("m", data), target=target, **choice)
    assert mask.shape == target.size_hw
    return int(mask.sum()), " ".join(notes)


def refused(content: Any, target: Target = DOG, **choice: Any) -> str:
    with pytest.raises(InputError) as caught:
        area(content, target, **choice)
    assert caught.value.hint and "\n" not in caught.value.message and caught.value.message.startswith("m ")
    return f"{caught.value.message} {caught.value.hint}"


def coco(*objects: dict[str, Any], classes: Any = ((1, "dog"),), **image: Any) -> dict[str, Any]:
    record = {"id": 7, "file_name": "dog.jpg", "height": H, "width": W} | image
    annotations = [
        {"id": n, "image_id": 7, "category_id": 1} | each for n, each in enumerate(objects, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in classes]
    return {"images": [record], "categories": categories, "annotations": annotations}


def ring(segmentation: Any = R, **more: Any) -> dict[str, Any]:
    return {"segmentation": segmentation, **more}


def runs(mask: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [H, W], "counts": encoded["counts"].decode()}


def block(top: int = 30, bottom: int = 80, left: int = 20, right: int = 90) -> NDArray[np.bool_]:
    mask = np.zeros((H, W), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


# --- COCO ----------------------------------------------------------------------------------------------

BRUSHED = ring(runs(block(90, 110, 20, 120)), iscrowd=1)  # 2000 px, as Datumaro writes every brush mask
OFFICIAL = {"info": {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org"}}
COCO: dict[str, tuple[Any, int, str]] = {
    "an outline": (coco(ring()), R_AREA, ""),
    "a brush mask marked as a crowd": (coco(BRUSHED), 2000, ""),
    "the same beside an outline": (coco(ring(), BRUSHED), 5500, "2 objects of 'dog' together"),
    "a crowd of COCO's own": (coco(ring(), BRUSHED) | OFFICIAL, R_AREA, "left out: annotation 2 (a crowd)"),
    "a flat outline": (coco(ring(R[0])), R_AREA, ""),
    "height -1": (coco(ring(), height=-1, width=-1), R_AREA, ""),
    "height null": (coco(ring(), height=None, width=None), R_AREA, ""),
    "height 0": (coco(ring(), height=0, width=0), R_AREA, ""),
    "height in words": (coco(ring(), height="tall"), R_AREA, ""),
    "no outlines beside a good one": (
        coco(ring([]), ring(), ring(None)),
        R_AREA,
        "left out: annotation 1 (no outline), annotation 3",
    ),
    "an outline of no points": (coco(ring([[]]), ring()), R_AREA, "1 (no outline)"),
    "a stray point": (coco(ring([*R, [5, 5]])), R_AREA, "1 (1 of its 2 outlines, with fewer than 3 points)"),
    "a line": (coco(ring(), ring([[1, 1, 9, 9]])), R_AREA, "2 (2 points, which enclose nothing)"),
    "a box beside an outline": (
        coco(ring(), ring([], bbox=[1, 2, 3, 4])),
        R_AREA,
        "2 (a box and no outline)",
    ),
    "an outline outside": (coco(ring(), ring([[170, 9, 180, 9, 180, 20]])), R_AREA, "2 (no pixel inside"),
    "text ids": (coco(ring(image_id="a7"), id="a7"), R_AREA, ""),
    "an id as text and as a number": (coco(ring(image_id="7")), R_AREA, ""),
    "only a URL": (coco(ring(), file_name=None, coco_url="http://x.org/val/dog.jpg?s=1"), R_AREA, ""),
    "run lengths without a name": ([{"segmentation": runs(block())}], R_AREA, ""),
}


@pytest.mark.parametrize("case", COCO)
def test_coco(case: str) -> None:
    content, pixels, said = COCO[case]
    found, notes = area(content)
    assert found == pixels and said in notes and bool(said) == bool(notes)


def test_crowds_are_left_out_of_other_files_when_asked() -> None:
    found, notes = area(coco(ring(), BRUSHED), ignore_crowd=True)
    assert found == R_AREA and "left out: annotation 2 (a crowd)" in notes
    assert "only as a crowd" in refused(coco(BRUSHED) | OFFICIAL)
    assert area(coco(BRUSHED) | OFFICIAL, annotation="1")[0] == 2000
    found, _ = area(coco(ring(), BRUSHED), ignore_crowd=True, invert=True)
    assert found == H * W - 5500


def test_many_objects_of_a_large_image_are_not_all_drawn() -> None:
    document = coco(*[ring()] * 300, height=10_000, width=9_000)
    assert "holds 300 such objects, 27 billion pixels to draw" in refused(document)


def test_a_bad_entry_does_not_spoil_the_file() -> None:
    document = coco(ring(), ring(S, image_id=8))
    document["images"] += [None, {"id": 8}, {"file_name": "cat.jpg"}, {"id": 9, "file_name": "cat.jpg"}]
    document["annotations"] += [None, {"segmentation": S}]
    document["categories"] += [None, {"id": 5}]
    found, notes = area(document)
    assert found == R_AREA
    assert "left out: 3 image entries without id or file name, 2 annotations without image_id" in notes


def test_accents_match_however_they_are_written() -> None:
    stored, named = (unicodedata.normalize(form, "photos/Hündchen.jpg") for form in ("NFD", "NFC"))
    assert stored != named
    assert area(coco(ring(), file_name=named), Target(stored, (H, W)))[0] == R_AREA
    other = coco(ring(), file_name=named)
    other["images"].append({"id": 8, "file_name": "cat.jpg", "height": H, "width": W})
    assert area(other, Target(stored, (H, W)))[0] == R_AREA
    document = coco(ring(), classes=[(1, unicodedata.normalize("NFD", "Hündchen")), (2, "cat")])
    assert area(document, category="hündchen")[0] == R_AREA


def test_a_class_is_chosen_by_its_name_first() -> None:
    """Classes named "0" to "9" with shifted ids, as of handwritten digits."""
    document = coco(
        ring(category_id=4),
        ring(S, category_id=3),
        classes=[(number, str(number - 1)) for number in range(1, 11)],
    )
    assert area(document, category="3")[0] == R_AREA
    assert area(document, category="id:3")[0] == area(document, label=3)[0] == S_AREA
    assert area(document, category="id:4")[0] == R_AREA
    assert "has no class '7'" in refused(document, category="7")
    named = coco(ring(category_id=18), ring(S, category_id=63), classes=[(18, "dog"), (63, "couch")])
    assert "--category id:18 chooses by number" in refused(named, category="18")
    twice = coco(ring(), ring(S, category_id=2), classes=[(1, "dog"), (2, "dog")])
    for choice in ({}, {"category": "dog"}):
        assert "classes" in refused(twice, **choice)
    assert "--category id:1 or --category id:2" in refused(twice, category="dog")
    cased = coco(ring(), ring(S, category_id=2), classes=[(1, "dog"), (2, "Dog")])
    assert area(cased, category="Dog")[0] == S_AREA
    assert "--category 'dog' or --category 'Dog'" in refused(cased, category="DOG")


def test_objects_without_classes_are_not_joined() -> None:
    both = [{"segmentation": runs(block())}, {"segmentation": runs(block(40, 60, 100, 120))}]
    assert "2 objects and no classes" in refused(both) and "--annotation: 1, 2" in refused(both)
    assert area(both, annotation="2")[0] == S_AREA
    sa_1b = {
        "image": {"image_id": 5, "width": W, "height": H, "file_name": "dog.jpg"},
        "annotations": [{"id": 500 + n, "predicted_iou": 0.9, **each} for n, each in enumerate(both)],
    }
    assert "SA-1B" in refused(sa_1b) and "500, 501" in refused(sa_1b)
    assert area(sa_1b, annotation=501)[0] == S_AREA
    assert area(sa_1b | {"annotations": sa_1b["annotations"][:1]})[0] == R_AREA


def test_annotations_are_chosen_by_text_ids() -> None:
    document = coco(ring(id="ann-1"), ring(S, id="ann-2"))
    assert area(document, annotation="ann-2")[0] == S_AREA
    assert "It holds ann-1, ann-2" in refused(document, annotation="3")


# --- LabelMe -------------------------------------------------------------------------------------------


def stamp(mask: NDArray[np.bool_]) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def shape(kind: str = "polygon", points: Any = R_POINTS, **more: Any) -> dict[str, Any]:
    return {"label": "dog", "shape_type": kind, "points": points, **more}


def labelme(*shapes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": "5",
        "imagePath": "x",
        "imageHeight": H,
        "imageWidth": W,
        "shapes": list(shapes),
        **more,
    }


INSIDE = 71 * 51  # its border counts in LabelMe
LABELME: dict[str, tuple[Any, int, str]] = {
    "an outline": (labelme(shape()), INSIDE, ""),
    "a stated size that is wrong": (
        labelme(shape(), imageHeight=480, imageWidth=640),
        INSIDE,
        "states 640 x 480",
    ),
    "no size": (labelme(shape(), imageHeight=None, imageWidth=0), INSIDE, ""),
    "X-AnyLabeling's rotation": (labelme(shape("rotation", direction=0.2)), INSIDE, ""),
    "no points": (labelme(shape(points=[]), shape()), INSIDE, "1 (0 points, which enclose nothing)"),
    "a point of the same class": (
        labelme(shape("point", [[1, 1]]), shape()),
        INSIDE,
        "annotation 1 (no area: point)",
    ),
    "an AI mask over the border": (
        labelme(shape("mask", [[100, 70], [169, 119]], mask=stamp(np.ones((50, 70), dtype=bool)))),
        60 * 50,
        "",
    ),
    "an AI mask before the border": (
        labelme(shape("mask", [[-10, -5], [59, 44]], mask=stamp(np.ones((50, 70), dtype=bool)))),
        60 * 45,
        "",
    ),
}


@pytest.mark.parametrize("case", LABELME)
def test_labelme(case: str) -> None:
    content, pixels, said = LABELME[case]
    found, notes = area(content)
    assert found == pixels and said in notes and bool(said) == bool(notes)


def test_labelme_of_a_larger_image_is_scaled_only_when_asked(tmp_path: Path) -> None:
    """Points that its image cannot hold tell a resized image from a wrong size."""
    Image.new("RGB", (W, H)).save(tmp_path / "dog.png")
    document = labelme(
        shape(points=[[4 * x, 4 * y] for x, y in R_POINTS]), imageHeight=4 * H, imageWidth=4 * W
    )
    (tmp_path / "dog.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"160 x 120 pixels and .* 640 x 480"):
        read_pair(tmp_path / "dog.png", tmp_path / "dog.json")
    with collected_notes() as notes:
        _, mask = read_pair(tmp_path / "dog.png", tmp_path / "dog.json", fit=True)
    assert abs(int(mask.sum()) - R_AREA) < 130 and "brought to the 160 x 120" in notes[0]


# --- YOLO ----------------------------------------------------------------------------------------------

BOX = "0.5 0.5 0.25 0.5"
SQUARE = "0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"  # half of the image each way
TRIANGLE = "0.25 0.25 0.75 0.25 0.5 0.75"
SQUARE_AREA, TRIANGLE_AREA = 80 * 60, 80 * 60 // 2
YOLO: dict[str, tuple[str, int, str]] = {
    "an outline": (f"0 {SQUARE}", SQUARE_AREA, ""),
    "class 0.0": (f"0.0 {SQUARE}", SQUARE_AREA, ""),
    "a confidence": (f"0 {SQUARE} 0.92", SQUARE_AREA, "left out: the value that ends each line"),
    "a track": (f"0 {SQUARE} 12", SQUARE_AREA, "the value that ends each line"),
    "a confidence and a track": (f"0 {TRIANGLE} 0.9 7", TRIANGLE_AREA, "the confidence and the track number"),
    "the first track": (f"0 {TRIANGLE} 0.9 1", TRIANGLE_AREA, "the confidence and the track number"),
    "several tracks": (
        f"0 {TRIANGLE} 0.9 1\n0 0 0 0.1 0 0.1 0.1 0 0.1 0.5 2",
        TRIANGLE_AREA + 16 * 12,
        "the confidence and the track number",
    ),
    "a last corner on the lower border": ("0 0.25 0.5 0.75 0.5 0.75 1 0.25 1", SQUARE_AREA, ""),
    "a box beside it": (f"0 {BOX}\n0 {SQUARE}", SQUARE_AREA, "left out: annotation 1 (a box and no outline)"),
    "a box with a confidence beside it": (
        f"0 {BOX} 0.5\n0 {SQUARE} 0.5",
        SQUARE_AREA,
        "1 (a box and no outline)",
    ),
    "UTF-16": (f"0 {SQUARE}", SQUARE_AREA, ""),
}


@pytest.mark.parametrize("case", YOLO)
def test_yolo(case: str) -> None:
    text, pixels, said = YOLO[case]
    found, notes = area(text.encode("utf-16" if case == "UTF-16" else "utf-8"))
    assert abs(found - pixels) <= 0.02 * pixels and said in notes and bool(said) == ("left out" in notes)


@pytest.mark.parametrize("line", [f"0 {BOX}", f"0 {BOX} 0.9", f"0 {BOX} 0.9 1", f"0 {BOX} 0.9 44"])
def test_yolo_boxes(line: str) -> None:
    assert "diffseg mask IMAGE --box 60,30,40,60" in refused(line.encode())


# --- other tools ---------------------------------------------------------------------------------------


def via(
    *shapes: dict[str, Any], attributes: Any = None, project: bool = False, by_number: bool = False
) -> Any:
    regions: Any = [
        {"shape_attributes": each, "region_attributes": attributes or {"class": "dog"}} for each in shapes
    ]
    if by_number:
        regions = {str(number): region for number, region in enumerate(regions)}
    images = {
        "dog.jpg123": {"filename": "dog.jpg", "size": 123, "regions": regions, "file_attributes": {}},
        "cat.jpg9": {"filename": "cat.jpg", "size": 9, "regions": [], "file_attributes": {}},
    }
    return {"_via_settings": {}, "_via_img_metadata": images} if project else images


VIA_RING = {"name": "polygon", "all_points_x": [20, 90, 90, 20], "all_points_y": [30, 30, 80, 80]}
VIA_CIRCLE = {"name": "circle", "cx": 80, "cy": 60, "r": 30}
VIA_ELLIPSE = {"name": "ellipse", "cx": 80, "cy": 60, "rx": 40, "ry": 10, "theta": np.pi / 2}


def cvat(*shapes: str, head: str = "<?xml version='1.0' encoding='utf-8'?>") -> bytes:
    return (
        f"{head}\n<annotations><version>1.1</version><meta><task><size>2</size></task></meta>"
        f"<image id='0' name='a/dog.jpg' width='{W}' height='{H}'>{''.join(shapes)}</image>"
        f"<image id='1' name='a/cat.jpg' width='9' height='9'><tag label='dog'/></image></annotations>"
    ).encode()


CVAT_RING = "<polygon label='dog' occluded='0' points='20.00,30.00;90.00,30.00;90.00,80.00;20.00,80.00'/>"
CVAT_MASK = "<mask label='dog' rle='0, 3, 2, 5' left='10' top='20' width='5' height='2'/>"
CVAT_ELLIPSE = "<ellipse label='dog' cx='80' cy='60' rx='40' ry='10' rotation='90'/>"


def label_studio(*results: dict[str, Any], image: str = "/data/upload/3/0a1b2c3d-dog.jpg") -> Any:
    def task(name: str, made: list[Any]) -> dict[str, Any]:
        return {"id": 1, "data": {"image": name}, "annotations": [{"id": 9, "result": made}]}

    return [task(image, list(results)), task("/data/upload/3/0a1b2c3d-cat.jpg", [])]


def region(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    size = {"original_width": W, "original_height": H, "image_rotation": 0}
    return {"id": f"{kind}-1", "type": kind, "value": {kind: ["dog"], **value}, **size, **more}


PERCENT = [[100 * x / W, 100 * y / H] for x, y in R_POINTS]
LS_RING = region("polygonlabels", {"points": PERCENT, "closed": True})
LS_ELLIPSE = region("ellipselabels", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25 * W / H, "rotation": 0})
LS_BRUSH = region("brushlabels", {"format": "rle", "rle": [0, 1, 2]})
LS_MIN = [
    {
        "image": "/data/upload/3/0a1b2c3d-dog.jpg",
        "id": 1,
        "annotator": 1,
        "annotation_id": 9,
        "lead_time": 1.0,
    }
]
CIRCLE, ELLIPSE = round(np.pi * 30 * 30), round(np.pi * 40 * 10)
OTHERS: dict[str, tuple[Any, int, str]] = {
    "VIA": (via(VIA_RING), R_AREA, ""),
    "VIA 1": (via(VIA_RING, by_number=True), R_AREA, ""),
    "a VIA project": (via(VIA_RING, project=True), R_AREA, ""),
    "a VIA circle": (via(VIA_CIRCLE), CIRCLE, ""),
    "a VIA ellipse": (via(VIA_ELLIPSE), ELLIPSE, ""),
    "VIA with a checked box": (via(VIA_RING, attributes={"kind": {"dog": True, "cat": False}}), R_AREA, ""),
    "VIA with a rectangle": (
        via(
            VIA_RING,
            {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
            {"name": "point", "cx": 1, "cy": 1},
        ),
        R_AREA,
        "left out: annotation 2 (a box and no outline), annotation 3 (no area: point)",
    ),
    "CVAT": (cvat(CVAT_RING), R_AREA, ""),
    "CVAT in UTF-16": (
        cvat(CVAT_RING, head="<?xml version='1.0' encoding='utf-16'?>").decode().encode("utf-16"),
        R_AREA,
        "",
    ),
    "a CVAT mask": (cvat(CVAT_MASK), 8, ""),
    "a CVAT ellipse": (cvat(CVAT_ELLIPSE), ELLIPSE, ""),
    "CVAT with a polyline": (
        cvat(CVAT_RING, "<polyline label='dog' points='1,1;2,2'/>", "<points label='dog' points='1,1'/>"),
        R_AREA,
        "left out: annotation 2 (no area: polyline), annotation 3 (no area: points)",
    ),
    "Label Studio": (label_studio(LS_RING), R_AREA, ""),
    "Label Studio, a local file": (label_studio(LS_RING, image="/data/local-files/?d=a/dog.jpg"), R_AREA, ""),
    "Label Studio, a URL": (label_studio(LS_RING, image="s3://bucket/dog.jpg"), R_AREA, ""),
    "a Label Studio ellipse": (label_studio(LS_ELLIPSE), round(np.pi * 40 * 40), ""),
    "Label Studio, JSON-MIN": ([LS_MIN[0] | {"label": [{**LS_RING, **LS_RING["value"]}]}], R_AREA, ""),
    "Label Studio with a brush": (
        label_studio(LS_RING, LS_BRUSH),
        R_AREA,
        "left out: annotation brushlabels-1 (a brush mask",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_tools(case: str) -> None:
    content, pixels, said = OTHERS[case]
    found, notes = area(content)
    exact = pixels in (R_AREA, 8)
    assert found == pixels if exact else abs(found - pixels) <= 0.02 * pixels
    assert said in notes and bool(said) == bool(notes)
    if "MIN" not in case:  # of one image, which may have been renamed
        assert "does not know bird.jpg. It holds" in refused(content, Target("bird.jpg", (H, W)))


def test_what_other_tools_hold_is_chosen_alike() -> None:
    two = cvat(CVAT_RING, CVAT_RING.replace("dog", "cat").replace("20.00", "40.00"))
    assert "cat (1), dog (1)" in refused(two) or "dog (1), cat (1)" in refused(two)
    assert area(two, category="dog")[0] == area(two, annotation="1")[0] == R_AREA
    assert "--box 10,20,30,40" in refused(cvat("<box label='dog' xtl='10' ytl='20' xbr='40' ybr='60'/>"))
    assert "brush mask: export it as 'Brush labels to PNG'" in refused(label_studio(LS_BRUSH))
    box = {"x": 50, "y": 50, "width": 25, "height": 50}
    assert "--box 80,60,40,60" in refused(label_studio(region("rectanglelabels", box)))


def test_entities_are_not_expanded() -> None:
    head = "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;'>]>"
    assert "XML with a document type" in refused(cvat(CVAT_RING, head=head))
    assert "XML that breaks off" in refused(cvat(CVAT_RING)[:-20])


UNREAD: dict[str, tuple[Any, str]] = {
    "COCO panoptic": (coco() | {"annotations": [{"image_id": 7, "segments_info": []}]}, "COCO panoptic"),
    "Datumaro": ({"info": {}, "categories": {}, "items": []}, "datum convert -f coco_instances"),
    "Supervisely": ({"size": {}, "objects": []}, "Supervisely"),
    "Darwin": ({"version": "2.0", "item": {}, "annotations": []}, "Darwin (V7)"),
    "CreateML": ([{"image": "dog.jpg", "annotations": []}], "CreateML"),
    "SuperAnnotate": ({"metadata": {}, "instances": []}, "SuperAnnotate"),
    "VIA 3": ({"project": {}, "metadata": {}, "file": {}}, "VIA 3"),
    "QuPath": ([{"type": "Feature", "geometry": {}}], "GeoJSON"),
    "Pascal VOC": (b"<annotation><object><name>dog</name></object></annotation>", "Pascal VOC file of boxes"),
    "CVAT for video": (cvat("<track/>"), "'CVAT for images'"),
    "anything": ({"a": 1}, "JSON of no known kind"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_formats_that_are_not_read_are_named(case: str) -> None:
    content, said = UNREAD[case]
    assert said in refused(content) and "damaged" not in refused(content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "gb18030"])
def test_json_in_other_encodings(encoding: str) -> None:
    document = coco(ring(), ring(S, category_id=2), classes=[(1, "小狗"), (2, "cat")])
    text = json.dumps(document, ensure_ascii=False)
    found, notes = area(text.encode(encoding), category="小狗")
    assert found == R_AREA and ("read as GB18030" in notes) == (encoding == "gb18030")


def test_western_json_is_read_too() -> None:
    text = json.dumps(coco(ring(), classes=[(1, "chien né"), (2, "cat")]), ensure_ascii=False)
    assert area(text.encode("cp1252"), category="chien né")[0] == R_AREA


# --- the doctor ----------------------------------------------------------------------------------------


def test_the_doctor_reads_annotations_as_segment_does(tmp_path: Path) -> None:
    """Whatever it is: what the doctor calls ok is used, and what it does not is refused."""
    Image.new("RGB", (W, H)).save(tmp_path / "dog.jpg")
    cases = {**COCO, **LABELME, **OTHERS} | {
        name: (text.encode(), *rest) for name, (text, *rest) in YOLO.items()
    }
    refusals = {name: (content, 0, "") for name, (content, _) in UNREAD.items()}
    refusals["two classes"] = (coco(ring(), ring(S, category_id=2), classes=[(1, "a"), (2, "b")]), 0, "")
    refusals["a box"] = (f"0 {BOX}".encode(), 0, "")
    for content, *_ in (cases | refusals).values():
        path = tmp_path / "m"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        finding = examine_file(path, [path, tmp_path / "dog.jpg"])
        try:
            with collected_notes() as notes:
                read_pair(tmp_path / "dog.jpg", path)
        except InputError as error:
            assert finding.status in ("bad", "unclear") and finding.code == 3 and finding.hint == error.hint
        else:
            assert finding.status == "ok" and all(each.rstrip(". ") in finding.what for each in notes)
        alone = examine_file(path)
        assert alone.code == finding.code, (path.read_bytes(), alone)


def test_the_doctor_draws_a_data_set(tmp_path: Path) -> None:
    document = coco(ring(), ring(S, image_id=8))
    document["images"].append({"id": 8, "file_name": "cat.jpg", "height": H, "width": W})
    path = tmp_path / "all.json"
    path.write_text(json.dumps(document))
    finding = examine_file(path)
    assert (finding.status, finding.what) == ("ok", "annotations: COCO of 2 images, of dog (2)")
    document["annotations"][1]["segmentation"] = {"size": [H, W], "counts": [5]}
    path.write_text(json.dumps(document))
    finding = examine_file(path)
    assert finding.status == "bad" and "image cat.jpg): annotation 2 has run lengths" in finding.what
