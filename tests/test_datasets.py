"""Small trees in the published layouts of the benchmarks: counts, folds and masks as they were written."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from diffseg_cli.datasets import PROTOCOLS, coco, fss, load_dataset, pascal, read_truth
from diffseg_cli.datasets.episode import FewShotDataset
from diffseg_cli.datasets.truth import Truth
from diffseg_cli.errors import InputError, MissingDependency, UsageError
from diffseg_cli.reading.image_io import read_image

H, W = 80, 100
BIG, SMALL = (slice(10, 60), slice(20, 70)), (slice(0, 20), slice(80, 100))  # 2500 and 400 pixels


def save_photo(path: Path, *, grey: bool = False, orientation: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(0, 255, (H, W) if grey else (H, W, 3), np.uint8)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(noise).save(path, exif=exif)


def truth_of(data: FewShotDataset, class_name: str, stem: str) -> Truth:
    [index] = [i for i in data.by_class[class_name] if data.samples[i].image.stem == stem]
    return read_truth(data.name, data.samples[index])


def names_of(data: FewShotDataset) -> dict[str, list[str]]:
    return {name: [data.samples[i].image.stem for i in members] for name, members in data.by_class.items()}


# --- PASCAL --------------------------------------------------------------------------------------------


def save_labels(path: Path, labels: NDArray[np.uint8], *, palette: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette:
        image = image.convert("P")
        image.putdata(labels.ravel().tolist())
        image.putpalette([value for i in range(256) for value in (i, 255 - i, i)])
    image.save(path)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    labels = np.zeros((H, W), np.uint8)
    labels[BIG], labels[SMALL], labels[60:63] = 1, 12, 255  # aeroplane, a dog too small to use, undecided
    save_labels(root / "SegmentationClass" / "2007_000001.png", labels)
    labels[SMALL], labels[BIG] = 0, 8  # cat
    save_labels(root / "SegmentationClassAug" / "2007_000002.png", labels, palette=False)
    save_labels(root / "SegmentationClass" / "2007_000002.png", np.zeros((H, W), np.uint8))  # Aug comes first
    for name, label in (("2008_000003", 1), ("2008_000004", 20)):
        mat = np.zeros((H, W), np.uint8)
        mat[BIG] = label
        (tmp_path / "benchmark_RELEASE" / "dataset" / "cls").mkdir(parents=True, exist_ok=True)
        content = {"Boundaries": np.zeros(1), "Segmentation": mat}
        savemat(tmp_path / "benchmark_RELEASE" / "dataset" / "cls" / f"{name}.mat", {"GTcls": content})
    for name in ("2007_000001", "2007_000002", "2008_000003", "2008_000004"):
        save_photo(root / "JPEGImages" / f"{name}.jpg")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_000001\n2007_000002\n")
    (lists / "trainaug.txt").write_text(
        "/JPEGImages/2008_000003.jpg /SegmentationClassAug/2008_000003.png\n2008_000004\n"
    )
    return tmp_path


def test_pascal_reads_folds_labels_and_ignored_borders(voc: Path) -> None:
    for root in (voc, voc / "VOCdevkit", voc / "VOCdevkit" / "VOC2012"):
        data = load_dataset("pascal-5i", root, fold=0)
        assert names_of(data) == {"aeroplane": ["2007_000001"]}
    sample = data.samples[0]
    assert sample.present == ("dog",) and data.relative(sample.image) == "JPEGImages/2007_000001.jpg"
    truth = truth_of(data, "aeroplane", "2007_000001")
    expected, border = np.zeros((H, W), bool), np.zeros((H, W), bool)
    expected[BIG], border[60:63] = True, True
    assert np.array_equal(truth.mask, expected) and np.array_equal(truth.ignore, border)
    cats = load_dataset("pascal-5i", voc, fold=1)
    assert names_of(cats) == {"cat": ["2007_000002"]}
    assert np.array_equal(truth_of(cats, "cat", "2007_000002").mask, expected)
    with pytest.raises(InputError, match="no image of fold 2"):
        load_dataset("pascal-5i", voc, fold=2)  # the dog is too small


def test_pascal_training_has_no_picture_with_a_test_class(voc: Path) -> None:
    assert names_of(load_dataset("pascal-5i", voc, fold=0, split="train")) == {"tvmonitor": ["2008_000004"]}
    data = load_dataset("pascal-5i", voc, fold=1, split="train")
    assert names_of(data) == {"aeroplane": ["2008_000003"], "tvmonitor": ["2008_000004"]}
    assert truth_of(data, "tvmonitor", "2008_000004").mask[BIG].all()


def test_pascal_training_leaves_out_a_picture_of_both_kinds(voc: Path) -> None:
    """A large object of a training class does not bring in a picture with a pixel of a test class."""
    root = voc / "VOCdevkit" / "VOC2012"
    labels = np.zeros((H, W), np.uint8)
    labels[BIG], labels[0, 0] = 20, 1  # a television, and one pixel of an aeroplane
    save_labels(root / "SegmentationClass" / "2008_000005.png", labels)
    save_photo(root / "JPEGImages" / "2008_000005.jpg")
    names = root / "ImageSets" / "Segmentation" / "trainaug.txt"
    names.write_text(names.read_text() + "2008_000005\n")
    assert names_of(load_dataset("pascal-5i", voc, fold=0, split="train")) == {"tvmonitor": ["2008_000004"]}
    other = load_dataset("pascal-5i", voc, fold=1, split="train")  # where both are training classes
    assert names_of(other)["tvmonitor"] == ["2008_000004", "2008_000005"]


def test_pascal_names_what_is_missing(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="JPEGImages was not found"):
        load_dataset("pascal-5i", tmp_path / "benchmark_RELEASE", fold=0)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(MissingDependency, match=r"2008_000003\.mat is a MATLAB file"):
        load_dataset("pascal-5i", voc, fold=0, split="train")
    root = voc / "VOCdevkit" / "VOC2012"
    (root / "SegmentationClass" / "2007_000001.png").unlink()
    with pytest.raises(InputError, match=r"SegmentationClassAug/2007_000001\.png was not found, nor"):
        load_dataset("pascal-5i", voc, fold=0)
    (root / "JPEGImages" / "2007_000001.jpg").unlink()
    with pytest.raises(InputError, match=r"JPEGImages/2007_000001\.jpg was not found"):
        load_dataset("pascal-5i", voc, fold=0)
    (root / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(InputError, match=r"Segmentation/val\.txt was not found"):
        load_dataset("pascal-5i", voc, fold=0)


def test_a_coloured_label_map_is_refused(voc: Path) -> None:
    path = voc / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000001.png"
    Image.new("RGB", (W, H)).save(path)
    with pytest.raises(InputError, match="image in RGB, not a label map"):
        load_dataset("pascal-5i", voc, fold=0)


def test_pascal_folds() -> None:
    folds = [pascal.fold_classes(fold) for fold in range(pascal.FOLDS)]
    assert sum(folds, ()) == pascal.CLASSES and len(set(pascal.CLASSES)) == 20
    assert folds[0] == ("aeroplane", "bicycle", "bird", "boat", "bottle") and folds[3][-1] == "tvmonitor"


# --- COCO ----------------------------------------------------------------------------------------------

# Category ids of the published files for the classes used here; ids have gaps.
IDS = {"person": 1, "bicycle": 2, "airplane": 5, "dog": 18, "toothbrush": 90}


def polygon(box: tuple[slice, slice]) -> list[list[float]]:
    rows, columns = box
    corners = [(columns.start, rows.start), (columns.stop, rows.start)]
    corners += [(columns.stop, rows.stop), (columns.start, rows.stop)]
    return [[float(value) for corner in corners for value in corner]]


def column_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Run lengths down the columns, starting with zeros."""
    flat = mask.ravel(order="F")
    cuts = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    runs = np.diff(np.concatenate([[0], cuts, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    crowd = np.zeros((H, W), bool)
    crowd[40:80, 60:100] = True  # over a corner of the object
    blob = np.zeros((H, W), bool)
    blob[BIG] = True
    blob[30:40, 30:40] = False  # a hole no polygon could have
    packed = coco_mask.encode(np.asfortranarray(blob.astype(np.uint8)))
    packed = {"size": packed["size"], "counts": packed["counts"].decode()}
    entries = [
        (1, "person", polygon(BIG), 2500, 0),
        (1, "person", {"size": [H, W], "counts": column_runs(crowd)}, 1600, 1),
        (1, "dog", polygon(SMALL), 400, 0),
        (2, "airplane", packed, 2400, 0),
        (3, "person", polygon(BIG), 2500, 0),
        (3, "bicycle", {"size": [H, W], "counts": column_runs(crowd)}, 3600, 1),  # nothing but a crowd
    ]
    content = {
        "images": [{"id": i, "file_name": f"v_{i}.jpg", "height": H, "width": W} for i in (1, 2, 3)],
        "categories": [
            {"id": IDS.get(name, 100 + index), "name": name} for index, name in enumerate(coco.CLASSES)
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": IDS[c], "segmentation": s, "area": a, "iscrowd": k}
            for n, (i, c, s, a, k) in enumerate(entries)
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    save_photo(tmp_path / "val2014" / "v_1.jpg")
    save_photo(tmp_path / "val2014" / "v_2.jpg", grey=True)
    save_photo(tmp_path / "val2014" / "v_3.jpg", orientation=6)
    return tmp_path


def test_coco_draws_polygons_runs_and_crowds(coco_root: Path) -> None:
    data = load_dataset("coco-20i", coco_root, fold=0)
    assert names_of(data) == {"airplane": ["v_2"], "person": ["v_1", "v_3"]}
    truth = truth_of(data, "person", "v_1")
    expected, crowd = np.zeros((H, W), bool), np.zeros((H, W), bool)
    expected[BIG], crowd[40:80, 60:100] = True, True
    assert np.array_equal(truth.mask, expected) and np.array_equal(truth.ignore, crowd & ~expected)
    holed = truth_of(data, "airplane", "v_2")
    assert not holed.mask[30:40, 30:40].any() and holed.mask.sum() == 2400 and not holed.ignore.any()
    assert read_image(data.samples[data.by_class["airplane"][0]].image).shape == (H, W, 3)  # was grey
    assert data.samples[data.by_class["person"][0]].present == ("dog",)
    with pytest.raises(InputError, match="no image of fold 1"):
        load_dataset("coco-20i", coco_root, fold=1)  # a bicycle crowd and a small dog


def test_coco_masks_turn_with_their_photo(coco_root: Path) -> None:
    data = load_dataset("coco-20i", coco_root, fold=0)
    [index] = [i for i in data.by_class["person"] if data.samples[i].image.stem == "v_3"]
    truth = read_truth(data.name, data.samples[index])
    stored = np.zeros((H, W), bool)
    stored[BIG] = True
    assert np.array_equal(truth.mask, np.rot90(stored, k=-1))  # orientation 6: a viewer turns it clockwise
    assert read_image(data.samples[index].image).shape[:2] == truth.mask.shape == (W, H)


def test_coco_names_what_is_missing(coco_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instances_train2014\.json was not found"):
        load_dataset("coco-20i", coco_root, fold=0, split="train")
    (coco_root / "val2014" / "v_2.jpg").unlink()
    with pytest.raises(InputError, match=r"v_2\.jpg was not found"):
        load_dataset("coco-20i", coco_root, fold=0)
    (coco_root / "val2014").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="val2014 was not found"):
        load_dataset("coco-20i", coco_root, fold=0)


def test_damaged_annotations_are_named(coco_root: Path, tmp_path: Path) -> None:
    other = tmp_path / "damaged"
    (other / "annotations").mkdir(parents=True)
    (other / "val2014").mkdir()
    (other / "annotations" / "instances_val2014.json").write_text('{"images": [')
    with pytest.raises(InputError, match="cannot be read as COCO annotations"):
        load_dataset("coco-20i", other, fold=0)
    path = coco_root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = {"size": [H, W - 1], "counts": [H * (W - 1)]}
    path.write_text(json.dumps(content))
    sample = load_dataset("coco-20i", coco_root, fold=0).samples
    [first] = [s for s in sample if s.image.stem == "v_1"]
    with pytest.raises(InputError, match="annotation 0"):
        read_truth("coco-20i", first)


def test_coco_folds_are_every_fourth_class_and_protocols_differ() -> None:
    assert len(coco.CLASSES) == len(set(coco.CLASSES)) == 80
    assert (
        coco.fold_classes(0)[:3] == ("person", "airplane", "boat")
        and coco.fold_classes(3)[-1] == "toothbrush"
    )
    for fold in range(coco.FOLDS):
        test = set(coco.split_classes(fold, "test"))
        train = set(coco.split_classes(fold, "train"))
        assert (len(test), len(train)) == (20, 60) and not test & train
        parts = [set(coco.split_classes(fold, s, forty_twenty_twenty=True)) for s in ("train", "val", "test")]
        assert [len(part) for part in parts] == [40, 20, 20] and set.union(*parts) == set(coco.CLASSES)


# --- FSS-1000 ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fss_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fss")
    photo, mask = Image.new("RGB", (24, 24), (90, 120, 60)), np.zeros((24, 24, 3), np.uint8)
    mask[6:18, 6:18] = 255
    mask[5, 6:18], mask[6, 6:18] = 127, 128  # a soft border: below the middle, and above it
    for name in (*fss.TEST, *fss.VAL, "extra_class"):
        (root / "fewshot_data" / name).mkdir(parents=True)
        for index in (1, 2):
            photo.save(root / "fewshot_data" / name / f"{index}.jpg")
            Image.fromarray(mask).save(root / "fewshot_data" / name / f"{index}.png")
    return root


def test_fss_splits_and_masks(fss_root: Path) -> None:
    assert (len(set(fss.TEST)), len(set(fss.VAL))) == (240, 240) and not set(fss.TEST) & set(fss.VAL)
    data = load_dataset("fss-1000", fss_root)
    assert data.classes == sorted(fss.TEST) and len(data.samples) == 480
    assert load_dataset("fss-1000", fss_root / "fewshot_data", split="val").classes == sorted(fss.VAL)
    assert load_dataset("fss-1000", fss_root, split="train").classes == ["extra_class"]
    truth = truth_of(data, "abe's_flyingfish", "1")
    assert truth.mask.sum() == 144 and truth.mask[6:18, 6:18].all() and not truth.ignore.any()


def test_fss_names_what_is_missing(fss_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{fss.TEST[0]} was not found"):
        load_dataset("fss-1000", tmp_path)
    moved = fss_root / "fewshot_data" / "bus" / "2.png"
    moved.rename(tmp_path / "2.png")
    with pytest.raises(InputError, match=r"bus/2\.png was not found"):
        load_dataset("fss-1000", fss_root)
    (tmp_path / "2.png").rename(moved)
    data = load_dataset("fss-1000", fss_root)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read as a mask"):
        read_truth("fss-1000", dataclasses.replace(data.samples[0], mask=broken))


# --- your own folder -----------------------------------------------------------------------------------


def test_folder_ignores_255_of_a_palette(tmp_path: Path) -> None:
    labels = np.zeros((H, W), np.uint8)
    labels[BIG], labels[:5] = 1, 255
    for stem in "ab":
        save_photo(tmp_path / "dog" / f"{stem}.jpg")
        save_labels(tmp_path / "dog" / f"{stem}.png", labels)
    truth = truth_of(load_dataset("folder", tmp_path), "dog", "a")
    assert truth.mask.sum() == 2500 and truth.ignore[:5].all() and truth.ignore.sum() == 5 * W
    Image.fromarray((labels == 1).astype(np.uint8) * 255).save(tmp_path / "dog" / "b.png")
    plain = truth_of(load_dataset("folder", tmp_path), "dog", "b")
    assert plain.mask.sum() == 2500 and not plain.ignore.any()  # white is the object where it is grey


def test_parts_a_data_set_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="coco-20i has no split 'val'"):
        load_dataset("coco-20i", tmp_path, fold=0, split="val")
    with pytest.raises(UsageError, match="no sources"):
        load_dataset("fss-1000", tmp_path, sources=("voc",))
    for name in PROTOCOLS:
        with pytest.raises(InputError, match="nowhere is not a folder"):
            load_dataset(name, tmp_path / "nowhere", fold=0)
