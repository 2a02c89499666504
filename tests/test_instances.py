"""Instances: where a mask is cut, and what every output says of them."""

import csv
import io
import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from diffseg_cli.cli.main import app
from diffseg_cli.errors import InputError, UsageError
from diffseg_cli.results.formats import RunContents, encode_image, encode_run, shapes_of
from diffseg_cli.results.instances import Instance, find_instances, instance_map_png
from diffseg_cli.results.outputs import ConceptResult, Scene, choose_formats, number_instances, scene_overlay

HW = (120, 200)
Disc = tuple[int, int, int]  # x, y, radius


def discs(*each: Disc, size_hw: tuple[int, int] = HW) -> NDArray[np.bool_]:
    page = np.zeros(size_hw, dtype=np.uint8)
    for x, y, radius in each:
        cv2.circle(page, (x, y), radius, 1, -1)
    return page > 0


def split(mask: NDArray[np.bool_]) -> list[Instance]:
    return find_instances(mask, np.ones(mask.shape, dtype=np.float32), None)


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / (first | second).sum())


# --- where a mask is cut -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "each",
    [
        ((50, 60, 30), (104, 60, 30)),
        ((50, 60, 30), (96, 60, 30)),
        ((50, 60, 40), (105, 60, 24)),
        ((40, 40, 25), (86, 40, 25), (63, 78, 25)),
        ((20, 20, 5), (30, 20, 5), (100, 60, 30)),
    ],
    ids=["touching", "overlapping", "unlike", "three", "small"],
)
def test_discs_that_touch_are_cut_apart(each: tuple[Disc, ...]) -> None:
    mask = discs(*each)
    found = split(mask)
    assert len(found) == len(each)
    assert np.array_equal(sum(one.whole_mask(HW).astype(int) for one in found), mask)  # each pixel once
    for disc in each:
        assert max(iou(one.whole_mask(HW), discs(disc)) for one in found) > 0.75


@pytest.mark.parametrize("scale", [1, 8])
def test_one_object_stays_one(scale: int) -> None:
    shapes = [np.zeros(HW, dtype=np.uint8) for _ in range(4)]
    cv2.ellipse(shapes[0], (100, 60), (90, 25), 10, 0, 360, 1, -1)
    shapes[1][20:100, 10:190] = 1
    shapes[2][20:50, 10:190] = shapes[2][20:110, 10:40] = 1
    shapes[3] = discs((60, 60, 45), (110, 60, 12)).astype(np.uint8)  # a limb
    for shape in shapes:
        large = cv2.resize(shape, (HW[1] * scale, HW[0] * scale), interpolation=cv2.INTER_NEAREST) > 0
        assert len(split(large)) == 1


def test_parts_apart_are_instances_in_reading_order_and_nothing_is_none() -> None:
    found = split(discs((30, 20, 8), (150, 30, 10), (60, 90, 12)))
    tops = [each.top for each in found]
    assert [each.id for each in found] == [1, 2, 3] and all(above <= below for above, below in pairwise(tops))
    assert split(np.zeros(HW, dtype=bool)) == []
    assert len(split(np.eye(20, dtype=bool))) == 1


# --- outputs -------------------------------------------------------------------------------------------


@pytest.fixture
def scene() -> Scene:
    """Two touching dogs and one apart, and a cat."""
    dogs, cat = discs((40, 60, 25), (84, 60, 25), (180, 20, 10)), discs((150, 90, 20))
    probability = np.linspace(0.5, 1, dogs.size, dtype=np.float32).reshape(HW)
    found = [ConceptResult(n, m, probability, probability, 0.5) for n, m in (("dog", dogs), ("cat", cat))]
    return Scene(Path("scene.jpg"), np.full((*HW, 3), 90, np.uint8), number_instances(found))


def test_coco_has_an_annotation_for_each_instance(scene: Scene) -> None:
    annotations = shapes_of(["coco"], scene)["coco"]
    assert [each["category_id"] for each in annotations] == [1, 1, 1, 2]
    assert scene.instances is not None
    for annotation, instance in zip(annotations, scene.instances, strict=True):
        runs = annotation["segmentation"]
        mask = coco_mask.decode({**runs, "counts": runs["counts"].encode()}).astype(bool)
        assert np.array_equal(mask, instance.whole_mask(HW))
        assert annotation["iscrowd"] == 0 and annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox({**runs, "counts": runs["counts"].encode()}).tolist()
        assert annotation["score"] == pytest.approx(instance.score, abs=1e-4)


def test_json_counts_and_measures(scene: Scene) -> None:
    dogs, cat = (each.record() for each in scene.found)
    assert (dogs["count"], cat["count"]) == (3, 1)
    assert [each["id"] for each in [*dogs["instances"], *cat["instances"]]] == [1, 2, 3, 4]
    assert sum(each["pixels"] for each in dogs["instances"]) == dogs["pixels"]
    assert cat["instances"] == [
        {"id": 4, "box_xywh": cat["box_xywh"], "pixels": cat["pixels"], "score": cat["score"]}
    ]


def test_labelme_groups_and_yolo_lines_are_instances(scene: Scene, tmp_path: Path) -> None:
    shapes = json.loads(encode_image("labelme", tmp_path / "scene.json", scene))["shapes"]
    assert sorted((each["group_id"], each["label"]) for each in shapes) == [
        *((1, "dog"), (2, "dog"), (3, "dog"), (4, "cat"))
    ]
    lines = encode_image("yolo", "", scene).decode().splitlines()
    assert [line[0] for line in lines] == ["0", "0", "0", "1"]


def test_parts_of_one_instance_are_one_yolo_line() -> None:
    """A square and its limb touch at a corner: two outlines, one object."""
    mask = np.zeros(HW, dtype=bool)
    mask[10:30, 10:30] = mask[30:34, 30:60] = True
    ones = np.ones(HW, dtype=np.float32)
    whole = ConceptResult("dog", mask, ones, ones, None)
    image = np.zeros((*HW, 3), dtype=np.uint8)
    assert len(encode_image("yolo", "", Scene(Path("a.jpg"), image, [whole])).splitlines()) == 2
    (line,) = encode_image("yolo", "", Scene(Path("a.jpg"), image, number_instances([whole]))).splitlines()
    points = np.array(line.split()[1:], dtype=float).reshape(-1, 2) * (HW[1], HW[0])
    page = Image.new("1", HW[::-1])
    ImageDraw.Draw(page).polygon([(x, y) for x, y in points], fill=1)
    assert iou(np.array(page), mask) > 0.88


def test_the_map_holds_the_ids_in_16_bits(scene: Scene) -> None:
    with Image.open(io.BytesIO(encode_image("instances", "", scene))) as read:
        assert read.mode == "I;16"
        ids = np.array(read)
    assert scene.instances is not None
    for each in scene.instances:
        assert np.array_equal(ids == each.id, each.whole_mask(HW))
    many = [Instance(1, 0, 0, np.ones((1, 1), dtype=bool), 1.0)] * 65536
    with pytest.raises(InputError, match="65536 instances"):
        instance_map_png(many, HW)


def test_counts_are_a_table_of_the_run(scene: Scene) -> None:
    run = RunContents(scene.names, {})
    run.add("a, b/scene.jpg", {"concepts": [each.record() for each in scene.found]}, {})
    table = list(csv.DictReader(io.StringIO(encode_run(["instances"], run)["counts.csv"].decode())))
    assert [(row["image"], row["concept"], row["count"]) for row in table] == [
        ("a, b/scene.jpg", "dog", "3"),
        ("a, b/scene.jpg", "cat", "1"),
    ]
    assert [int(row["pixels"]) for row in table] == [int(mask.sum()) for mask in scene.masks]


def test_the_overlay_gives_each_its_colour(scene: Scene) -> None:
    shown = scene_overlay(scene)
    places = [(50, 30), (50, 96), (14, 180), (80, 140)]
    assert len({tuple(shown[place]) for place in places}) == 4
    assert tuple(shown[5, 100]) == (90, 90, 90)


def test_a_map_needs_objects_told_apart() -> None:
    assert choose_formats(None, matting=False, instances=True)[-1] == "instances"
    assert "instances" not in choose_formats(None, matting=False, instances=False)
    with pytest.raises(UsageError, match="told apart"):
        choose_formats(["instances"], matting=False, instances=False)


def test_segment_and_batch_agree_on_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, mask in (("support", discs((100, 60, 40))), ("query", discs((50, 60, 24), (140, 60, 30)))):
        Image.fromarray(np.where(mask[..., None], (220, 60, 30), (40, 90, 60)).astype(np.uint8)).save(
            f"{name}.png"
        )
    Image.fromarray(discs((100, 60, 40))).save("mask.png")
    asked = "-s support.png -m mask.png -q query.png --instances -f instances -f coco --json"
    for verb in ("segment", "batch"):
        result = CliRunner().invoke(app, [verb, *asked.split(), "-o", verb])
        assert result.exit_code == 0, result.output
        (concept,) = json.loads(result.stdout.splitlines()[-1])["concepts"]
        coco = json.loads(Path(verb, "coco.json").read_text())
        assert concept["count"] == len(concept["instances"]) == len(coco["annotations"]) > 0
        assert np.array(Image.open(Path(verb, "query_instances.png"))).max() == concept["count"]
        assert f"object,{concept['count']}," in Path(verb, "counts.csv").read_text()
    assert Path("segment/query_instances.png").read_bytes() == Path("batch/query_instances.png").read_bytes()


def test_what_hangs_by_a_pixel_is_no_object_of_its_own() -> None:
    mask = np.zeros((480, 423), dtype=bool)
    mask[:, :400] = True
    mask[4] = True  # of every five rows shrinking to 384 leaves this one out
    mask[3:6, 420:] = True
    (only,) = find_instances(mask, mask.astype(np.float32), None)
    assert only.mask.sum() == mask.sum()
