"""Results out: every format read back by the tool it is named after, or against that tool's own schema."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools.coco import COCO

from diffseg_cli.errors import MissingDependency
from diffseg_cli.files import write_whole
from diffseg_cli.reading.image_io import read_mask, read_pair
from diffseg_cli.results.annotations import (
    AnnotatedObject,
    CocoFile,
    coco_objects,
    labelme_bytes,
    voc_png,
    yolo_bytes,
)
from diffseg_cli.results.cutout import cut_out, load_matting
from diffseg_cli.results.encoders import PER_IMAGE, PER_RUN, SHAPES
from diffseg_cli.results.formats import (
    FORMATS,
    RunContents,
    encode_image,
    encode_run,
    image_name,
    image_patterns,
    run_files,
    shapes_of,
)
from diffseg_cli.results.outputs import ConceptResult, Scene, settle
from diffseg_cli.results.palette import concept_color, draw_legend, label_map, settle_overlaps, voc_color

HW = (120, 160)
NAMES = ["bad weld", "dog"]


def drawn(shape: str, *box: int, hole: tuple[int, ...] = ()) -> NDArray[np.bool_]:
    page = Image.new("1", HW[::-1])
    draw = ImageDraw.Draw(page)
    getattr(draw, shape)(box, fill=1)
    if hole:
        draw.ellipse(hole, fill=0)
    return np.array(page)


RING = drawn("ellipse", 10, 10, 80, 90, hole=(30, 30, 55, 60))
SPOTS = drawn("rectangle", 100, 20, 140, 70) | drawn("rectangle", 90, 90, 97, 110)
MASKS = [RING, SPOTS]
EMPTY = np.zeros(HW, dtype=bool)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)


@pytest.fixture
def scene(image: NDArray[np.uint8]) -> Scene:
    draw = np.random.default_rng(1)
    maps = [draw.random(HW, dtype=np.float32) for _ in range(4)]
    found = [
        ConceptResult(name, mask, maps[i], maps[i + 2], presence)
        for i, (name, mask, presence) in enumerate(zip(NAMES, MASKS, (0.9, None), strict=True))
    ]
    return Scene(Path("photos/scene.jpg"), image, found, [(image[:50], "weld")])


def objects(masks: list[NDArray[np.bool_]], scores: Sequence[float] = (1, 1)) -> list[AnnotatedObject]:
    return [
        AnnotatedObject(category, name, mask, score)
        for category, (name, mask, score) in enumerate(zip(NAMES, masks, scores, strict=False))
    ]


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())


def load_coco(path: Path) -> COCO:
    coco = COCO()
    coco.dataset = json.loads(path.read_text())
    coco.createIndex()
    return coco


@pytest.mark.parametrize(("polygons", "least"), [(False, 1.0), (True, 0.96)])
def test_coco_is_read_by_pycocotools(tmp_path: Path, polygons: bool, least: float) -> None:
    made = CocoFile(NAMES)
    made.add("a.jpg", HW, coco_objects(objects(MASKS, [0.91234, 0.5]), polygons=polygons))
    made.add("b.jpg", HW, coco_objects(objects([EMPTY, RING], [0.0, 0.7]), polygons=polygons))
    made.add("c.jpg", HW, coco_objects(objects([EMPTY, EMPTY]), polygons=polygons))
    (tmp_path / "coco.json").write_bytes(made.content())
    coco = load_coco(tmp_path / "coco.json")
    assert [coco.loadCats(i)[0]["name"] for i in coco.getCatIds()] == NAMES
    assert [coco.loadImgs(i)[0]["file_name"] for i in coco.getImgIds()] == ["a.jpg", "b.jpg", "c.jpg"]
    found = coco.loadAnns(coco.getAnnIds())
    assert [(a["image_id"], a["category_id"], a["score"]) for a in found] == [
        (1, 1, 0.9123),
        (1, 2, 0.5),
        (2, 2, 0.7),
    ]
    for annotation, mask in zip(found, [RING, SPOTS, RING], strict=True):
        assert iou(coco.annToMask(annotation).astype(bool), mask) >= least
        x, y, w, h = annotation["bbox"]
        assert mask[y : y + h, x : x + w].sum() == mask.sum() == annotation["area"]
        assert mask[y].any() and mask[:, x].any() and mask[y + h - 1].any() and mask[:, x + w - 1].any()
    if polygons:
        assert not coco.annToMask(found[0])[45, 42]  # the hole


def test_our_own_masks_in_read_what_goes_out(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    (tmp_path / "out").mkdir()
    picture = tmp_path / "scene.png"
    Image.fromarray(image).save(picture)
    made = CocoFile(NAMES)
    made.add("scene.png", HW, coco_objects(objects(MASKS), polygons=False))
    (tmp_path / "out" / "coco.json").write_bytes(made.content())
    labelme = tmp_path / "out" / "scene.json"
    labelme.write_bytes(labelme_bytes(labelme, picture, HW, objects(MASKS)))
    # LabelMe draws an outline together with the pixels its line runs through.
    for name, least in (("coco.json", 1.0), ("scene.json", 0.94)):
        for category, mask in zip(NAMES, MASKS, strict=True):
            read = read_pair(picture, tmp_path / "out" / name, category=category)[1]
            assert iou(read, mask) >= least


def test_labelme_has_the_fields_of_its_format(tmp_path: Path) -> None:
    path = tmp_path / "out" / "scene_labelme.json"
    record = json.loads(labelme_bytes(path, tmp_path / "photos" / "scene.jpg", HW, objects(MASKS)))
    assert record.keys() == {
        *("version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth")
    }
    assert (record["imageHeight"], record["imageWidth"], record["imageData"]) == (*HW, None)
    assert (path.parent / record["imagePath"]).resolve() == tmp_path / "photos" / "scene.jpg"
    page = Image.new("1", HW[::-1])
    for shape in record["shapes"]:
        assert shape["shape_type"] == "polygon" and shape["flags"] == {} and len(shape["points"]) > 2
        assert {"label", "points", "group_id", "shape_type", "flags"} <= shape.keys()
        assert all(0 <= x <= HW[1] and 0 <= y <= HW[0] for x, y in shape["points"])
        if shape["label"] == "bad weld":
            ImageDraw.Draw(page).polygon([tuple(point) for point in shape["points"]], fill=1)
    assert [shape["label"] for shape in record["shapes"]] == ["bad weld", "dog", "dog"]
    assert iou(np.array(page), RING) > 0.93 and not np.array(page)[45, 42]


def test_yolo_lines_are_shares_of_the_picture() -> None:
    page = [Image.new("1", HW[::-1]) for _ in NAMES]
    for line in yolo_bytes(HW, objects(MASKS)).decode().splitlines():
        number, *values = line.split()
        points = np.array(values, dtype=float).reshape(-1, 2)
        assert points.min() >= 0 and points.max() <= 1
        ImageDraw.Draw(page[int(number)]).polygon([(x * HW[1], y * HW[0]) for x, y in points], fill=1)
    assert all(iou(np.array(p), mask) > 0.93 for p, mask in zip(page, MASKS, strict=True))
    assert yolo_bytes(HW, objects([EMPTY, EMPTY])) == b""


def test_yolo_corners_are_those_of_pixels() -> None:
    """The right half of a picture begins at a half and ends at 1, whatever the width."""
    mask = np.zeros((50, 80), bool)
    mask[:, 40:] = True
    number, *values = yolo_bytes((50, 80), objects([mask])).decode().split()
    corners = np.array(values, dtype=float).reshape(-1, 2)
    assert number == "0" and {tuple(c) for c in corners} == {(0.5, 0), (1, 0), (1, 1), (0.5, 1)}


def test_voc_is_a_palette_picture_in_its_own_colours(tmp_path: Path) -> None:
    (tmp_path / "scene.png").write_bytes(voc_png(MASKS))
    with Image.open(tmp_path / "scene.png") as read:
        assert read.mode == "P"
        np.testing.assert_array_equal(np.asarray(read), RING + 2 * SPOTS)
        palette = read.getpalette()
    assert palette is not None
    # The first classes of VOC2012: background, aeroplane, bicycle, bird; the border; the last class.
    for label, color in ((0, (0, 0, 0)), (1, (128, 0, 0)), (2, (0, 128, 0)), (3, (128, 128, 0))):
        assert tuple(palette[3 * label : 3 * label + 3]) == color == voc_color(label)
    assert voc_color(255) == (224, 224, 192) and voc_color(20) == (0, 64, 128)
    for label, mask in enumerate(MASKS, start=1):
        np.testing.assert_array_equal(read_mask(tmp_path / "scene.png", label=label), mask)


def test_every_format_has_a_file_and_leaves_nothing_else(tmp_path: Path, scene: Scene) -> None:
    assert {name for name, each in FORMATS.items() if each.pattern} == PER_IMAGE.keys()
    assert {file for each in FORMATS.values() for file in each.run} == PER_RUN.keys()
    assert {name for name, each in FORMATS.items() if each.shapes} == SHAPES.keys()
    assert all(each.pattern or each.run for each in FORMATS.values())
    names = {
        what: image_name(pattern, "scene.jpg") for what, pattern in image_patterns(FORMATS, NAMES).items()
    }
    for what, name in names.items():
        write_whole(tmp_path / name, encode_image(what, tmp_path / name, scene))
    run = RunContents(NAMES, {"seed": 0})
    run.add(
        "scene.jpg", {"query": "photos/scene.jpg", "size_hw": HW, "concepts": []}, shapes_of(FORMATS, scene)
    )
    for name, content in encode_run(FORMATS, run).items():
        write_whole(tmp_path / name, content)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(names.values()) | set(run_files(FORMATS).values())
    assert len(written) == len(names) + len(set(run_files(FORMATS).values()))  # two formats share run.json
    assert {"scene_heatmap_bad weld.png", "scene_heatmap_dog.png"} <= written
    with Image.open(tmp_path / "scene_mask.png") as read:
        assert read.mode == "P" and read.getpalette()[3:6] == list(concept_color(0))  # type: ignore[index]
        np.testing.assert_array_equal(np.asarray(read), label_map(MASKS))
    scores = np.load(tmp_path / "scene_score.npy", allow_pickle=False)
    np.testing.assert_array_equal(scores, np.stack([found.probability for found in scene.found]))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["images"] == [{"query": "photos/scene.jpg", "size_hw": [*HW], "concepts": []}]
    assert record["seed"] == 0
    assert (tmp_path / "labelmap.txt").read_text().splitlines()[1:] == [
        "background:0,0,0::",
        "bad weld:128,0,0::",
        "dog:0,128,0::",
    ]
    for nothing in ("svg", "json"):
        with pytest.raises(ValueError, match="no result"):
            encode_image(nothing, tmp_path / "x", scene)


def test_readers_of_yolo_and_voc_find_what_belongs_to_an_image(tmp_path: Path, scene: Scene) -> None:
    """Paths as ultralytics and torchvision put them together."""
    key, run = "day1/a.b.jpg", RunContents(NAMES, {})
    run.add(key, {"size_hw": HW}, {})
    for what, pattern in image_patterns(["yolo", "voc"], NAMES).items():
        write_whole(tmp_path / image_name(pattern, key), encode_image(what, "", scene))
    for name, content in encode_run(["yolo", "voc"], run).items():
        write_whole(tmp_path / name, content)
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert data["names"] == NAMES and data["nc"] == len(NAMES) and data["val"] == data["train"]
    image = str(tmp_path / data["train"] / key)
    label = "/labels/".join(image.rsplit("/images/", 1)).rsplit(".", 1)[0] + ".txt"
    assert Path(label).read_bytes() == yolo_bytes(HW, objects(MASKS))
    (listed,) = (tmp_path / "ImageSets" / "Segmentation" / "train.txt").read_text().splitlines()
    with Image.open(tmp_path / "SegmentationClass" / f"{listed}.png") as read:
        np.testing.assert_array_equal(np.asarray(read), label_map(MASKS))


def test_one_thing_gives_a_plain_mask_and_score(tmp_path: Path, scene: Scene) -> None:
    one = Scene(scene.path, scene.image, scene.found[:1])
    assert image_patterns(["heatmap", "json"], NAMES[:1]) == {"heatmap": "*_heatmap.png"}
    for what in ("mask", "score", "heatmap", "sheet"):
        (tmp_path / what).write_bytes(encode_image(what, tmp_path / what, one))
    with Image.open(tmp_path / "mask") as read:
        assert read.mode == "L"
        np.testing.assert_array_equal(np.asarray(read), RING * 255)
    scores = np.load(tmp_path / "score", allow_pickle=False)
    assert scores.dtype == np.float32 and scores.shape == HW


def test_a_cut_out_is_soft_only_at_its_border_and_keeps_no_background() -> None:
    mask = drawn("ellipse", 30, 20, 120, 100)
    image = np.where(mask[..., None], (220, 40, 40), (20, 230, 20)).astype(np.uint8)
    cut = cut_out(image, mask)
    alpha = cut[..., 3]
    assert cut.shape == (*HW, 4) and alpha[60, 75] == 255 and alpha[5, 5] == 0
    inner = drawn("ellipse", 34, 24, 116, 96)
    outer = drawn("ellipse", 26, 16, 124, 104)
    assert (alpha[inner] == 255).all() and (alpha[~outer] == 0).all()
    soft = (alpha > 0) & (alpha < 255)
    assert soft.any()
    assert (cut[alpha > 0][:, 1] < 60).all()  # no green shines through
    assert (cut[alpha == 0] == 0).all()
    assert not cut_out(image, EMPTY).any()
    assert (cut_out(image, ~EMPTY)[..., 3] == 255).all()


def test_matting_finds_what_the_mask_missed() -> None:
    pytest.importorskip("pymatting")
    truth = drawn("ellipse", 30, 20, 120, 100)
    image = np.where(truth[..., None], (220, 40, 40), (20, 230, 20)).astype(np.uint8)
    large = np.kron(image, np.ones((4, 4, 1), np.uint8))
    truth = np.kron(truth, np.ones((4, 4), bool))
    rough = np.roll(truth, 3, axis=1)
    cut = cut_out(large, rough, matting=True)
    assert ((cut[..., 3] > 127) != truth).sum() < (rough != truth).sum() / 4


def test_matting_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pymatting", None)
    with pytest.raises(MissingDependency) as raised:
        load_matting()
    assert "diffseg[matting]" in str(raised.value.hint)


def test_overlaps_go_to_the_higher_claim_and_slivers_to_no_one() -> None:
    first, second = drawn("rectangle", 20, 20, 80, 80), drawn("rectangle", 18, 30, 140, 70)
    scores = [np.full(HW, value, dtype=np.float32) for value in (0.8, 0.6)]
    one, two = settle_overlaps([first, second], scores)
    np.testing.assert_array_equal(one, first)
    assert not (one & two).any()
    assert not two[50, 18] and second[50, 18]  # two columns left of the first
    np.testing.assert_array_equal(two[:, 81:], second[:, 81:])
    one, two = settle_overlaps([first, second], scores[::-1])
    np.testing.assert_array_equal(two, second)
    one, two = settle_overlaps([first, second], [scores[0], scores[0]])
    np.testing.assert_array_equal(one, first)
    np.testing.assert_array_equal(settle_overlaps([SPOTS, RING], scores)[0], SPOTS)


def test_presence_weighs_a_claim() -> None:
    both = drawn("rectangle", 20, 20, 80, 80)
    maps: Any = [np.full(HW, value, dtype=np.float32) for value in (0.9, 0.7)]
    found = [ConceptResult(n, both, p, p, seen) for n, p, seen in zip(NAMES, maps, (0.5, 0.95), strict=True)]
    assert [each.mask.any() for each in settle(found, "1%")] == [False, True]
    assert found[0].score == pytest.approx(0.45) and settle(found, "1%")[0].score == 0
    assert settle(found[:1], "1%") == found[:1]


def test_the_loser_of_an_overlap_keeps_no_specks() -> None:
    """Neither the rim of an object that the winner covers, nor what is left of a small part of its mask."""
    winner, rim = drawn("rectangle", 20, 20, 80, 80), drawn("rectangle", 19, 20, 80, 80)
    large = drawn("rectangle", 100, 10, 150, 90)
    part = drawn("rectangle", 60, 78, 69, 84)  # over 1 % of the large one; four rows lie below the winner

    def left(mask: NDArray[np.bool_], min_area: str) -> NDArray[np.bool_]:
        maps: Any = [np.full(HW, value, dtype=np.float32) for value in (0.9, 0.7)]
        masks = zip(NAMES, (winner, mask), maps, strict=True)
        found = [ConceptResult(name, mask, each, each, None) for name, mask, each in masks]
        first, second = settle(found, min_area)
        np.testing.assert_array_equal(first.mask, winner)
        return second.mask

    assert not left(rim, "0").any()
    np.testing.assert_array_equal(left(large | part, "1%"), large)
    np.testing.assert_array_equal(left(large | part, "0"), large | part & ~winner)
    hole = large & ~drawn("rectangle", 120, 40, 122, 42)  # it may be another concept's
    np.testing.assert_array_equal(left(hole | part, "1%"), hole)


def test_a_legend_never_grows_the_picture() -> None:
    for size_hw in ((8, 8), (40, 30), (400, 500)):
        pixels = np.full((*size_hw, 3), 200, dtype=np.uint8)
        names = [f"each {index}" for index in range(40)]
        shown = draw_legend(pixels, names)
        assert shown.shape == pixels.shape and (pixels == 200).all()
    assert (shown != 200).any()
    assert len({concept_color(index) for index in range(40)}) == 40
