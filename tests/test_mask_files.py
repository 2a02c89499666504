"""Masks from COCO, LabelMe and YOLO files, and what is said of those that are unclear or lie."""

import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.reading.annotated import Target
from diffseg_cli.reading.image_io import read_mask, read_pair
from diffseg_cli.reading.mask_shapes import draw_runs
from diffseg_cli.reading.notes import MaskNote

HW = (48, 64)
DOG = Target("photos/dog.jpg", HW)


def blob(left: int = 10, right: int = 30) -> NDArray[np.bool_]:
    mask = np.zeros(HW, dtype=bool)
    mask[8:40, left:right] = True
    mask[20:24, left + 4 : right - 4] = False
    return mask


def run_lengths(mask: NDArray[np.bool_], *, compressed: bool = True) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    flat = np.concatenate([[False], mask.T.ravel(), [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat[:-1]))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, mask.size]).tolist()}


def annotation(number: int, category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 7, "category_id": category, "segmentation": segmentation, **more}


def coco(*annotations: dict[str, Any], images: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {
        "images": images or [{"id": 7, "file_name": "dog.jpg", "height": HW[0], "width": HW[1]}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 63, "name": "couch"}],
        "annotations": list(annotations),
    }


def labelme(*shapes: dict[str, Any], **more: Any) -> dict[str, Any]:
    head = {"version": "5.5.0", "imagePath": "../../etc/passwd", "imageData": None}
    return {**head, "imageHeight": HW[0], "imageWidth": HW[1], "shapes": list(shapes), **more}


def shape(label: str, kind: str, points: Any, **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "flags": {}, **more}


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def write(content: Any, name: str = "m.json") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def refused(path: Path, target: Target = DOG, **choice: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_mask(path, target=target, **choice)
    assert caught.value.hint and "\n" not in caught.value.message and str(path) in caught.value.message
    return f"{caught.value.message} {caught.value.hint}"


# --- COCO ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_run_lengths_decode_as_pycocotools_encodes_them(data: st.DataObject) -> None:
    h, w = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = rng.random((h, w)) < data.draw(st.sampled_from([0.02, 0.5, 0.98]))
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    np.testing.assert_array_equal(draw_runs(encoded["counts"].decode(), encoded["size"], (h, w)), mask)


def test_long_runs() -> None:
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[:, 700:1900] = True
    np.testing.assert_array_equal(draw_runs(run_lengths(mask)["counts"], None, mask.shape), mask)


@pytest.mark.parametrize("compressed", [True, False])
def test_coco_run_lengths(save: Any, compressed: bool) -> None:
    path = save(coco(annotation(5, 18, run_lengths(blob(), compressed=compressed))))
    np.testing.assert_array_equal(read_mask(path, target=DOG), blob())
    np.testing.assert_array_equal(read_mask(path, target=DOG, invert=True), ~blob())
    np.testing.assert_array_equal(read_mask(path), blob())  # there is one picture, so it is that


def test_coco_polygons_are_drawn_as_pycocotools_draws_them(save: Any) -> None:
    rings = [[3.2, 4.1, 30.7, 6.0, 22.5, 40.9], [40, 10, 60, 10, 60, 30, 40, 30], [25, 5, 50, 12, 45, 20]]
    path = save(coco(annotation(5, 18, rings)))
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, *HW))).astype(bool)
    np.testing.assert_array_equal(read_mask(path, target=DOG), expected)
    outside = save(coco(annotation(5, 18, [[-20, -9, 30, -9, 30, 30, -20, 30]])))
    assert read_mask(outside, target=DOG).sum() == 30 * 30


def test_coco_choices(save: Any) -> None:
    path = save(
        {"info": {"url": "http://cocodataset.org"}}
        | coco(
            annotation(5, 18, run_lengths(blob())),
            annotation(6, 63, run_lengths(blob(40, 60))),
            annotation(7, 63, run_lengths(blob(32, 44))),
            annotation(8, 18, run_lengths(blob(46, 60), compressed=False), iscrowd=1),
        )
    )
    said = refused(path)
    assert "classes: couch (2), dog (1)" in said and "--category 'couch'" in said
    for choice in (
        {"category": "dog"},
        {"category": "id:18"},
        {"label": 18},
        {"annotation": 5},
        {"category": "Dog"},
    ):
        np.testing.assert_array_equal(read_mask(path, target=DOG, **choice), blob())
    with pytest.warns(MaskNote, match="2 objects of 'couch' together"):
        np.testing.assert_array_equal(
            read_mask(path, target=DOG, category="couch"), blob(40, 60) | blob(32, 44)
        )
    np.testing.assert_array_equal(read_mask(path, target=DOG, annotation=8), blob(46, 60))
    without_crowd = ~blob() & ~blob(46, 60)
    np.testing.assert_array_equal(read_mask(path, target=DOG, category="dog", invert=True), without_crowd)
    assert "no class 'cat'. It holds dog, couch" in refused(path, category="cat")
    assert "no annotation 9. It holds 5, 6, 7, 8" in refused(path, annotation=9)
    with pytest.raises(UsageError, match="--category and --annotation"):
        read_mask(path, target=DOG, category="dog", annotation=5)
    assert "outlines, not colours" in refused(path, color="red")


def test_coco_pictures_are_found_by_name_and_folder(save: Any) -> None:
    images = [
        {"id": number, "file_name": name, "height": HW[0], "width": HW[1]}
        for number, name in [(6, "b/dog.jpg"), (7, "a\\dog.jpg"), (8, "../../other.jpg")]
    ]
    path = save(coco(annotation(5, 18, run_lengths(blob())), images=images))
    np.testing.assert_array_equal(read_mask(path, target=Target("/x/a/dog.jpg")), blob())
    assert "holds no outlined object" in refused(path, Target("b/dog.jpg"))
    assert "2 images this could be about" in refused(path, Target("dog.jpg"))
    assert "does not know cat.jpg" in refused(path, Target("cat.jpg"))
    assert "3 images" in refused(path, Target())
    one = save(coco(annotation(5, 18, run_lengths(blob()))))
    with pytest.warns(MaskNote, match=r"is about dog.jpg, taken for renamed.jpg"):
        read_mask(one, target=Target("renamed.jpg", HW))
    assert "does not know renamed.jpg" in refused(one, Target("renamed.jpg", (9, 9)))


def test_coco_results_and_single_segmentations(save: Any) -> None:
    np.testing.assert_array_equal(read_mask(save(run_lengths(blob())), target=DOG), blob())
    result = {"image_id": 1, "category_id": 3, "score": 0.9, "segmentation": run_lengths(blob())}
    np.testing.assert_array_equal(read_mask(save([result])), blob())
    assert "several images" in refused(save([result, result | {"image_id": 2}]))
    boxed = save(coco(annotation(5, 18, [], bbox=[3.4, 5, 20, 11])))
    assert "a box of 'dog' and no outline" in refused(boxed) and "--box 3,5,20,11" in refused(boxed)


# --- LabelMe and YOLO ----------------------------------------------------------------------------------


def test_labelme_shapes(save: Any) -> None:
    stream = io.BytesIO()
    Image.fromarray(blob()[8:40, 10:30]).save(stream, "PNG")
    bitmap = base64.b64encode(stream.getvalue()).decode()
    path = save(
        labelme(
            shape("box", "rectangle", [[30, 20], [10, 8]]),
            shape("disc", "circle", [[32, 24], [32, 34]]),
            shape("tri", "polygon", [[5, 5], [40, 5], [5, 40]]),
            shape("bits", "mask", [[10, 8], [29, 39]], mask=bitmap),
            shape("spot", "point", [[1, 1]]),
            shape("__ignore__", "rectangle", [[0, 0], [3, 3]]),
        )
    )
    assert "4 classes: box (1), disc (1), tri (1), bits (1)" in refused(path)
    box = read_mask(path, category="box")
    assert box.sum() == 21 * 13 and box[8:21, 10:31].all()
    y, x = np.ogrid[: HW[0], : HW[1]]
    disc = (y - 24) ** 2 + (x - 32) ** 2 <= 10.5**2  # its border is part of it
    assert (read_mask(path, category="disc") ^ disc).sum() <= 0.1 * disc.sum()
    tri = (x >= 5) & (y >= 5) & (x + y <= 45)
    np.testing.assert_array_equal(read_mask(path, category="tri"), tri)
    np.testing.assert_array_equal(read_mask(path, category="bits"), blob())
    np.testing.assert_array_equal(read_mask(path, annotation=4), blob())
    assert not read_mask(path, category="box", invert=True)[:4, :4].any()
    assert "only as an ignored area" in refused(path, category="__ignore__")
    assert "annotation 5 has no area: point" in refused(path, annotation=5)
    sizeless = save(labelme(shape("dog", "circle", [[9, 9], [9, 12]]), imageHeight=None))
    assert read_mask(sizeless, target=DOG).shape == HW
    assert "does not say how large its image is" in refused(sizeless, Target())


def test_yolo_lines(save: Any) -> None:
    text = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n\n3 0 0 0.5 0 0 0.5\n"
    path = save(text, "dog.txt")
    expected = np.zeros(HW, dtype=bool)
    expected[12:36, 16:48] = True
    for choice in ({"label": 0}, {"category": "0"}, {"annotation": 1}):
        np.testing.assert_array_equal(read_mask(path, target=DOG, **choice), expected)
    assert "2 classes: 0 (1), 3 (1)" in refused(path)
    assert "does not say how large" in refused(path, Target())
    boxed = refused(save("0 0.5 0.5 0.25 0.5", "box.txt"))
    assert "diffseg mask IMAGE --box 24,12,16,24" in boxed


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 0.5", "line 1 is not a class and pairs"),
        ("0 0.1 0.2 0.3 0.4 0.5 0.6 0.7\n0 0.1 0.2 0.3 0.4 0.5 0.6", "lines with and without a value"),
        ("0 10 20 30 20 30 40", "line 1 holds values outside 0 to 1"),
        ("0 nan 0 0.5 0 0 0.5", "line 1 holds values outside 0 to 1"),
        ("0 -0.5 0 0.5 0 0 0.5", "line 1 holds values outside 0 to 1"),
        ("0 a b c d e f", "could not convert"),
        ("1.5 0 0 0.5 0 0 0.5", "line 1 is not a class"),
    ],
)
def test_yolo_lines_that_are_none(save: Any, line: str, says: str) -> None:
    assert says in refused(save(line, "m.txt"))


# --- sizes ---------------------------------------------------------------------------------------------


def test_a_mask_of_another_size_is_fitted_when_asked(save: Any, tmp_path: Path) -> None:
    Image.new("RGB", (128, 96)).save(tmp_path / "dog.png")
    path = save(coco(annotation(5, 18, run_lengths(blob())), images=None))
    document = json.loads(path.read_text())
    document["images"][0]["file_name"] = "dog.png"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"128 x 96 pixels and .*m.json is 64 x 48") as caught:
        read_pair(tmp_path / "dog.png", path)
    assert "--fit-mask" in str(caught.value.hint)
    with pytest.warns(MaskNote, match="is 64 x 48 and was brought to the 128 x 96 of its image"):
        _, mask = read_pair(tmp_path / "dog.png", path, fit=True)
    np.testing.assert_array_equal(mask, blob().repeat(2, axis=0).repeat(2, axis=1))
    Image.new("RGB", (48, 64)).save(tmp_path / "dog.png")
    with pytest.raises(InputError) as caught:
        read_pair(tmp_path / "dog.png", path, fit=True)
    assert "turned" in str(caught.value.hint)
    Image.new("RGB", (1, 1)).save(tmp_path / "dog.png")
    with pytest.raises(InputError, match="marks nothing at 1 x 1"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_pair(tmp_path / "dog.png", path, fit=True)


def test_annotation_choices_do_not_fit_pictures(tmp_path: Path) -> None:
    Image.fromarray(blob()).save(tmp_path / "m.png")
    assert "so --category chooses nothing" in refused(tmp_path / "m.png", category="dog")


# --- files that lie ------------------------------------------------------------------------------------

DEEP = "[" * 100_000
LIES: dict[str, tuple[Any, str]] = {
    "not JSON": ("{'a': 1}", "damaged, or not COCO"),
    "endless brackets": (DEEP, "damaged, or not COCO"),
    "another document": ({"name": "dog"}, "JSON of no known kind"),
    "a list of numbers": ([1, 2, 3], "JSON of no known kind"),
    "a huge picture": (
        coco(images=[{"id": 7, "file_name": "dog.jpg", "height": 10**6, "width": 10**6}]),
        "more than 100 megapixels",
    ),
    "runs of another size": (
        coco(annotation(5, 18, {"size": [9, 9], "counts": [81]})),
        "run lengths for 9 x 9",
    ),
    "runs that claim too much": (coco(annotation(5, 18, {"size": list(HW), "counts": [10**12]})), "add up"),
    "runs that go backwards": (coco(annotation(5, 18, {"size": list(HW), "counts": [-5, 3077]})), "add up"),
    "runs of fractions": (coco(annotation(5, 18, {"size": list(HW), "counts": [0.5] * 6144})), "add up"),
    "runs in words": (coco(annotation(5, 18, {"size": list(HW), "counts": "\x7f\x7f\x7fZZ"})), "not COCO's"),
    "runs cut short": (coco(annotation(5, 18, {"size": list(HW), "counts": "oo"})), "cut short"),
    "runs beyond ASCII": (coco(annotation(5, 18, {"size": list(HW), "counts": "é"})), "annotation 5 has"),
    "a point at infinity": (coco(annotation(5, 18, [[1, 1, 9, 1, 9, 1e308]])), "far outside its image"),
    "no numbers": (
        '{"images": [], "annotations": [{"segmentation": [[1, 1, NaN, 1, 9, 9]]}]}',
        "not numbers",
    ),
    "a line": (coco(annotation(5, 18, [[1, 1, 9, 9]])), "2 points, which enclose nothing"),
    "half a point": (coco(annotation(5, 18, [[1, 1, 9, 9, 3, 3, 4]])), "not pairs"),
    "an endless outline": (coco(annotation(5, 18, [[0, 0, 250, 190] * 20_000])), "to and fro"),
    "nothing outlined": (labelme(), "holds no outlined object"),
    "an outline of nothing": (
        labelme(shape("a", "polygon", [[100, 100], [120, 100], [120, 120]])),
        "is empty",
    ),
    "a bitmap of nothing": (labelme(shape("a", "mask", [[0, 0]], mask="AAAA")), "a bitmap that is no PNG"),
    "control characters": (
        labelme(
            shape("a\x1b[31m\n" * 40, "circle", [[1, 1], [2, 2]]), shape("b", "circle", [[1, 1], [2, 2]])
        ),
        "a?[31m?a?[31m?",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie_are_refused_by_name(save: Any, lie: str) -> None:
    content, says = LIES[lie]
    said = refused(save(content))
    assert says in said and len(said) < 900 and said.isprintable()


def test_a_bitmap_may_hang_over_the_edge_of_its_image(save: Any) -> None:
    stamp = np.random.default_rng(0).random((20, 30)) < 0.5
    stream, expected = io.BytesIO(), np.zeros(HW, dtype=bool)
    Image.fromarray(stamp).save(stream, "PNG")
    bits = base64.b64encode(stream.getvalue()).decode()
    expected[:17, :24] = stamp[3:, 6:]
    path = save(labelme(shape("a", "mask", [[-6, -3], [23, 16]], mask=bits)))
    np.testing.assert_array_equal(read_mask(path), expected)


@pytest.mark.parametrize(("images_away", "refused_as_far"), [(3.9, False), (4.1, True)])
def test_a_point_may_lie_a_few_images_outside(save: Any, images_away: float, refused_as_far: bool) -> None:
    away = images_away * max(HW)
    path = save(coco(annotation(5, 18, [[1, 1, away, 1, 1, HW[0] - 1]])))
    if refused_as_far:
        assert "far outside its image" in refused(path)
    else:
        assert read_mask(path, target=DOG).any()


def test_a_bitmap_much_larger_than_its_image(save: Any) -> None:
    stream = io.BytesIO()
    Image.new("1", (97, 10), 1).save(stream, "PNG")
    bits = base64.b64encode(stream.getvalue()).decode()
    assert "a bitmap of 97 x 10" in refused(save(labelme(shape("a", "mask", [[0, 0]], mask=bits))))


def test_a_file_too_large_to_read(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    with path.open("wb") as stream:
        stream.write(b"{")
        stream.truncate(64_000_002)
    assert "larger than 64 MB" in refused(path)
