"""The command line around masks: making them, annotation files, pipes, and the doctor."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from diffseg_cli import assembly
from diffseg_cli.cli import main
from diffseg_cli.segmenter import Segmenter

HW = (48, 64)


def run(*arguments: str | Path, stdin: bytes | None = None, columns: int = 200) -> Result:
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(main.app, [str(each) for each in arguments], input=stdin)


def disc(size_hw: tuple[int, int] = HW) -> NDArray[np.bool_]:
    y, x = np.ogrid[: size_hw[0], : size_hw[1]]
    return (y - size_hw[0] * 0.4) ** 2 + (x - size_hw[1] * 0.6) ** 2 < (size_hw[0] / 4) ** 2


def picture(size_hw: tuple[int, int] = HW) -> Image.Image:
    """A red disc on a green ground, both noisy."""
    colors = np.where(disc(size_hw)[..., None], (200, 40, 40), (40, 120, 60))
    noise = np.random.default_rng(0).integers(-25, 26, (*size_hw, 3))
    return Image.fromarray((colors + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    picture().save("dog.png")
    Image.fromarray(disc()).save("dog_m.png")
    return tmp_path


@pytest.fixture
def loads(small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    answer = Segmenter(
        backbone=small_segmenter.backbone, trained=small_segmenter.trained, hed=None, head="attention"
    )
    monkeypatch.setattr(assembly, "load_segmenter", lambda *_, **__: answer)
    return answer


def no_loading(*_: Any, **__: Any) -> None:
    raise AssertionError("loaded before the input was checked")


# --- making a mask -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("loads")
def test_a_mask_from_a_box_lies_in_it_and_finds_the_thing() -> None:
    picture((120, 160)).save("big.png")
    result = run("mask", "big.png", "--box", "66,18,60,60", "--out", "made/m.png")
    assert result.exit_code == 0 and result.stdout.splitlines() == ["made/m.png", "made/m_overlay.png"]
    made = np.asarray(Image.open("made/m.png")) > 0
    truth = disc((120, 160))
    assert (made & truth).sum() / (made | truth).sum() > 0.9
    box = np.zeros_like(truth)
    box[18:78, 66:126] = True
    assert not made[~box].any() and Image.open("made/m_overlay.png").size == (160, 120)
    assert run("segment", "-s", "big.png", "-m", "made/m.png", "-q", "dog.png").exit_code == 0


@pytest.mark.usefixtures("loads")
def test_a_mask_from_points_holds_them_and_not_the_others() -> None:
    result = run("mask", "dog.png", "--point", "38,19", "--point", "40, 22", "--not-point", "5,40", "--json")
    assert result.exit_code == 0
    row = json.loads(result.stdout)
    assert row["outputs"] == {"mask": "dog_mask.png", "overlay": "dog_mask_overlay.png"}
    made = np.asarray(Image.open("dog_mask.png")) > 0
    assert made[19, 38] and made[22, 40] and not made[40, 5]
    assert row["mask_area"] == made.mean()


def test_an_outline_is_taken_as_it_is_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "load_segmenter", no_loading)
    result = run("mask", "dog.png", "--polygon", "10,5,30,5,30,25,10,25")
    assert result.exit_code == 0
    made = np.asarray(Image.open("dog_mask.png"))
    assert made[5:26, 10:31].all() and made.sum() == 21 * 21 * 255


@pytest.mark.usefixtures("loads")
def test_a_box_round_the_whole_picture() -> None:
    assert run("mask", "dog.png", "--box", "-5,-5,900,900").exit_code == 0
    assert Image.open("dog_mask.png").size == (64, 48)


@pytest.mark.parametrize(
    ("arguments", "code", "says", "hints"),
    [
        ("dog.png", 2, "Nothing says where", "--box, --polygon and --point"),
        ("dog.png --box 1,1,9,9 --point 3,3", 2, "--box and --point are different ways", "one of"),
        ("dog.png --not-point 3,3", 2, "Nothing says where", "--point"),
        ("dog.png --box 1,1,9,9 --not-point 3,3", 2, "only where the object is not", "--point"),
        ("dog.png --box 1,1,9", 2, "'1,1,9' does not fit --box", "X,Y,WIDTH,HEIGHT"),
        ("dog.png --box 1,1,nan,9", 2, "'1,1,nan,9' does not fit --box", "X,Y,WIDTH,HEIGHT"),
        ("dog.png --box 1,1,1e999,9", 2, "does not fit --box", "X,Y,WIDTH,HEIGHT"),
        ("dog.png --box 70,1,9,9", 2, "holds no pixel of the image", "64 x 48"),
        ("dog.png --box 9,9,-5,-5", 2, "holds no pixel of the image", "64 x 48"),
        ("dog.png --polygon 1,1,9,9", 2, "does not fit --polygon", "X,Y,X,Y"),
        ("dog.png --polygon 1,1,9,9,3,4,5", 2, "does not fit --polygon", "X,Y,X,Y"),
        ("dog.png --polygon 100,1,120,9,110,30", 2, "encloses no pixel", "64 x 48"),
        ("dog.png --point 3", 2, "'3' is not a point", "--point 320,200"),
        ("dog.png --point 64,3", 2, "64,3 lies outside", "64 x 48"),
        ("dog.png --point 3,3 --not-point -1,3", 2, "'-1,3' is not a point", "--not-point"),
        ("no.png --box 1,1,9,9", 3, "no.png does not exist", "name"),
        ("dog.png --box 1,1,9,9 -o dog.png", 2, "dog.png would be overwritten", "--out"),
        ("dog.png --box 1,1,9,9 -o m.jpg", 2, "m.jpg does not end in .png", "PNG"),
        ("dog.png --box 1,1,9,9 -o dog.png/m.png", 3, "dog.png cannot be written", "may write"),
    ],
)
def test_what_mask_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, code: int, says: str, hints: str
) -> None:
    monkeypatch.setattr(assembly, "load_segmenter", no_loading)
    result = run("mask", *arguments.split())
    assert result.exit_code == code, result.output
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ") and says in error and hints in hint and result.stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == ["dog.png", "dog_m.png"]


# --- annotation files ----------------------------------------------------------------------------------


def coco() -> dict[str, Any]:
    def ring(left: int) -> list[list[int]]:
        return [[left, 5, left + 20, 5, left + 20, 40, left, 40]]

    return {
        "images": [{"id": 1, "file_name": "dog.png", "height": HW[0], "width": HW[1]}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "sofa"}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 1, "segmentation": ring(5)},
            {"id": 12, "image_id": 1, "category_id": 2, "segmentation": ring(35)},
        ],
    }


@pytest.mark.usefixtures("loads")
def test_segment_with_a_coco_file() -> None:
    Path("all.json").write_text(json.dumps(coco()))
    result = run("segment", "-s", "dog.png", "-m", "all.json", "-q", "dog.png")
    assert result.exit_code == 3 and "classes: dog (1), sofa (1)" in result.stderr
    for choice in (("--category", "sofa"), ("--annotation", "12"), ("--label", "2")):
        result = run("segment", "-s", "dog.png", "-m", "all.json", "-q", "dog.png", *choice)
        assert result.exit_code == 0, result.stderr
    assert run("attn", "-s", "dog.png", "-m", "all.json", "-q", "dog.png", "--category", "dog").exit_code == 0
    assert (
        "--label and --category"
        in run(
            *(
                "segment",
                "-s",
                "dog.png",
                "-m",
                "all.json",
                "-q",
                "dog.png",
                "--category",
                "1",
                "--label",
                "1",
            )
        ).stderr
    )


def test_each_support_has_a_choice_of_its_own(loads: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    document = coco()
    document["images"].append({"id": 2, "file_name": "cat.png", "height": HW[0], "width": HW[1]})
    document["annotations"] += [
        {**each, "id": each["id"] + 10, "image_id": 2, "segmentation": [[1, 1, 9, 1, 9, 5]]}
        for each in document["annotations"]
    ]
    Path("all.json").write_text(json.dumps(document))
    picture().save("cat.png")
    seen: list[int] = []
    encode = loads.encode_pairs

    def spy(pairs: Any) -> Any:
        seen.extend(int(mask.sum()) for _, mask in pairs)
        return encode(pairs)

    monkeypatch.setattr(loads, "encode_pairs", spy)
    both = ("segment", "-s", "dog.png", "-m", "all.json", "-s", "cat.png", "-m", "all.json", "-q", "dog.png")
    result = run(*both, "--annotation", "12", "--annotation", "21")
    assert result.exit_code == 0 and seen == [20 * 35, 16], result.stderr
    seen.clear()
    assert run(*both, "--label", "1").exit_code == 0 and seen == [20 * 35, 16]
    refused = run(*both, *("--annotation", "11") * 3)
    assert refused.exit_code == 2 and "--annotation is given 3 times, for 2 masks" in refused.stderr


@pytest.mark.usefixtures("loads")
def test_segment_fits_a_mask_when_asked() -> None:
    Image.fromarray(disc((24, 32))).save("small.png")
    refused = run("segment", "-s", "dog.png", "-m", "small.png", "-q", "dog.png")
    assert (
        refused.exit_code == 3 and "small.png is 32 x 24" in refused.stderr and "--fit-mask" in refused.stderr
    )
    fitted = run("segment", "-s", "dog.png", "-m", "small.png", "-q", "dog.png", "--fit-mask")
    assert (
        fitted.exit_code == 0 and "note: small.png is 32 x 24 and was brought to the 64 x 48" in fitted.stderr
    )


# --- pipes ---------------------------------------------------------------------------------------------

PIPE = ("segment", "-s", "dog.png", "-m", "dog_m.png", "--query", "-")


def test_a_picture_comes_in_and_its_mask_goes_out(loads: Segmenter, folder: Path) -> None:
    before = sorted(path.name for path in folder.iterdir())
    result = run(*PIPE, "--out", "-", stdin=Path("dog.png").read_bytes())
    assert result.exit_code == 0, result.stderr
    mask = np.asarray(Image.open(io.BytesIO(result.stdout_bytes)))
    expected = loads.segment("dog.png", loads.encode_support([("dog.png", "dog_m.png")])).mask
    np.testing.assert_array_equal(mask > 0, expected)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.usefixtures("loads")
def test_a_picture_comes_in_and_files_are_written() -> None:
    result = run(*PIPE, "--out", "results", stdin=Path("dog.png").read_bytes())
    assert result.exit_code == 0 and "results/stdin_mask.png" in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (("--out", "-"), b"", 3, "stdin is empty"),
        (("--out", "-"), b"no picture", 3, "stdin is not an image"),
        (("--out", "-", "--json"), b"", 2, "--out - writes one mask"),
        (("--out", "-", "-q", "dog.png"), b"", 2, "--out - writes one mask"),
        (("-q", "-"), b"", 2, "- is given twice"),
    ],
)
@pytest.mark.usefixtures("loads")
def test_pipes_that_cannot_be(arguments: tuple[str, ...], stdin: bytes, code: int, says: str) -> None:
    result = run(*PIPE, *arguments, stdin=stdin)
    assert result.exit_code == code and says in result.stderr and result.stdout_bytes == b""


def test_other_verbs_write_no_pipe() -> None:
    result = run("edges", "dog.png", "--out", "-")
    assert result.exit_code == 2 and "Give a folder" in result.stderr and not Path("-").exists()


# --- the doctor ----------------------------------------------------------------------------------------


def test_doctor_tells_versions_devices_and_models() -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0
    rows = {row["name"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert {"diffseg", "packages", "memory", "device", "model compact/encoder", "model kandinsky-2-2"} <= set(
        rows
    )
    assert "torch 2." in rows["packages"]["what"] and rows["device"]["status"] == "ok"
    assert "bfloat16 instructions" in rows["device"]["what"]
    assert all(row["status"] in ("ok", "absent") for row in rows.values())


def test_doctor_tells_what_files_are() -> None:
    Path("all.json").write_text(json.dumps(coco()))
    Path("cut.png").write_bytes(Path("dog.png").read_bytes()[:-200])
    Path("broken.json").write_text("{")
    labels = disc().astype(np.uint8)
    labels[:4] = 2
    Image.fromarray(labels).save("labels.png")
    np.save("array.npy", disc())
    Path("dog.txt").write_text("3 0.1 0.1 0.5 0.1 0.5 0.5\n")
    Path("tensors.safetensors").write_bytes(b"no tensors")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save("turned.jpg", exif=exif)
    names = [
        "dog.png",
        "dog_m.png",
        "turned.jpg",
        "array.npy",
        "dog.txt",
        "all.json",
        "labels.png",
        "cut.png",
    ]
    names += ["broken.json", "tensors.safetensors", "nowhere.png"]
    result = run("doctor", *names, "--json")
    assert result.exit_code == 4
    rows = {row["name"]: row for row in map(json.loads, result.stdout.splitlines())}
    expected = {
        "dog.png": ("ok", "image: PNG, RGB, 64 x 48", 0),
        "dog_m.png": ("ok", "mask: PNG, 1, 64 x 48, 1", 0),
        "turned.jpg": ("ok", "turned by its EXIF orientation", 0),
        "array.npy": ("ok", "mask: NumPy array", 0),
        "dog.txt": ("ok", "annotations: YOLO, of 3 (1)", 0),
        "all.json": ("unclear", "of dog (1), sofa (1)", 3),
        "labels.png": ("unclear", "holds more than one label", 3),
        "cut.png": ("bad", "damaged or cut short", 3),
        "broken.json": ("bad", "damaged, or not COCO", 3),
        "tensors.safetensors": ("bad", "tensors.safetensors", 4),
        "nowhere.png": ("bad", "does not exist", 3),
    }
    for name, (status, says, code) in expected.items():
        assert (rows[name]["status"], rows[name]["code"]) == (status, code), rows[name]
        assert says in rows[name]["what"]
        assert bool(rows[name]["hint"]) == (status != "ok")
    assert run("doctor", "dog.png", "labels.png").exit_code == 3
    assert run("doctor", "dog.png", "dog_m.png").exit_code == 0


def test_doctor_fits_the_terminal() -> None:
    result = run("doctor", "dog.png", "nowhere.png", columns=80)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "bad      nowhere.png" in result.stdout and "         does not exist." in result.stdout


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("verb", ["mask", "doctor"])
def test_help_fits_and_its_examples_are_valid(verb: str) -> None:
    lines = [line.rstrip() for line in run(verb, "--help", columns=80).stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    examples = [line.strip() for line in lines[lines.index(" Examples:") + 1 :] if line]
    assert len(examples) == 2
    picture((480, 640)).save("dog.jpg")
    Image.fromarray(disc((480, 640))).save("dog.png")
    document = coco()
    document["annotations"].pop()
    document["images"][0] |= {"file_name": "dog.jpg", "height": 480, "width": 640}
    Path("annotations.json").write_text(json.dumps(document))
    for example in examples:
        result = run(*example.split()[1:])
        assert result.exit_code == 0, result.output


def test_a_mask_that_is_there_is_replaced_only_when_asked(folder: Path) -> None:
    outline = ("mask", "dog.png", "--polygon", "10,5,30,5,30,25,10,25")
    (folder / "dog_mask.png").write_bytes(b"drawn by hand")
    result = run(*outline)
    assert result.exit_code == 2 and "dog_mask.png is there already." in result.stderr
    assert (folder / "dog_mask.png").read_bytes() == b"drawn by hand"
    assert run(*outline, "--overwrite").exit_code == 0
    assert (folder / "dog_mask.png").read_bytes() != b"drawn by hand"


def test_a_name_that_is_too_long_for_results_is_refused_at_once(folder: Path) -> None:
    name = f"{'n' * 245}.png"
    (folder / name).write_bytes((folder / "dog.png").read_bytes())
    result = run("segment", "-s", "dog.png", "-m", "dog_m.png", "-q", name)
    assert result.exit_code == 3 and "is too long: a result would have" in result.stderr
    assert "Rename the image." in result.stderr and not (folder / "diffseg_out" / name).exists()
