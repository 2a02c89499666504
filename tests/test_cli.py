"""The command line: what it prints where, what it writes, and how it refuses."""

import errno
import fcntl
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner, Result

from diffseg_cli import assembly
from diffseg_cli.choices import ModelChoice
from diffseg_cli.cli import evaluate, main, train
from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.supports.concept import SupportSet, source_of, write_concept

REPOSITORY = Path(__file__).parents[1]
HW = (48, 64)


def run(*arguments: str | Path, columns: int = 200) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(main.app, [str(each) for each in arguments])


def picture(seed: int, size_hw: tuple[int, int] = HW) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size_hw[::-1], Image.Resampling.BICUBIC)


def box(size_hw: tuple[int, int] = HW) -> NDArray[np.uint8]:
    mask = np.zeros(size_hw, dtype=np.uint8)
    mask[10:35, 20:50] = 255
    return mask


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with supports, masks and queries, good and bad."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", "scene", "other")):
        picture(seed).save(f"{name}.png")
    for name in ("a", "b"):
        Image.fromarray(box()).save(f"{name}_m.png")
    picture(4, (30, 40)).save("small.png")
    Image.fromarray(box((30, 40))).save("small_m.png")
    Image.fromarray(np.zeros(HW, np.uint8)).save("empty_m.png")
    Image.fromarray(np.full(HW, 255, np.uint8)).save("full_m.png")
    labels = box() // 255
    labels[40:44, 5:60] = 2
    Image.fromarray(labels).save("labels_m.png")
    colors = np.where(box()[..., None] > 0, (200, 30, 40), (90, 90, 90)).astype(np.uint8)
    Image.fromarray(colors).save("colors_m.png")
    Path("zero.png").write_bytes(b"")
    Path("text.png").write_text("no picture at all\n")
    Path("cut.png").write_bytes(Path("scene.png").read_bytes()[:-900])
    Path("a_file").write_text("not a folder")
    Path("sub").mkdir()
    picture(9).save("sub/scene.jpg")
    picture(9).save("sub/scene.png")
    return tmp_path


class Loads:
    """What the command line asked `load_segmenter` for, and a small segmenter as the answer."""

    def __init__(self, answer: Segmenter) -> None:
        self.answer = answer
        self.calls: list[ModelChoice] = []

    def __call__(self, **options: Any) -> Segmenter:
        self.calls.append(ModelChoice(**options))
        return self.answer


@pytest.fixture
def loads(small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> Loads:
    backbone, trained = small_segmenter.backbone, small_segmenter.trained
    loads = Loads(Segmenter(backbone=backbone, trained=trained, hed=None, head="attention"))
    monkeypatch.setattr(assembly, "load_segmenter", loads)
    return loads


ONE = ("--support", "a.png", "--mask", "a_m.png")


def read(path: str | Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


# --- segment -------------------------------------------------------------------------------------------


def test_segment_writes_three_pictures_and_says_where(loads: Loads) -> None:
    result = run("segment", *ONE, "--query", "scene.png")
    assert result.exit_code == 0
    names = [f"diffseg_out/scene_{what}.png" for what in ("mask", "heatmap", "overlay")]
    assert result.stdout.splitlines() == names
    using, line = result.stderr.splitlines()
    assert using == f"Using {loads.answer.description}."
    assert re.fullmatch(r"scene\.png: object, \d+\.\d% of the image, \d+ regions?", line)
    mask, heat, over = map(read, names)
    assert mask.shape == HW and set(np.unique(mask)) == {0, 255}
    assert heat.shape == over.shape == (*HW, 3)
    assert sorted(path.name for path in Path("diffseg_out").iterdir()) == sorted(
        Path(name).name for name in names
    )
    prediction = loads.answer.segment("scene.png", loads.answer.encode_support([("a.png", "a_m.png")]))
    np.testing.assert_array_equal(mask > 0, prediction.mask)


def test_what_does_not_seem_to_be_there_is_said(loads: Loads) -> None:
    absent = replace(loads.answer.trained, presence=PresenceCalibration((0.0, 0.0, 0.0), -2.0))
    loads.answer = loads.answer.with_trained(absent)
    lines = run("segment", *ONE, "scene.png", "-f", "mask").stderr.splitlines()[1:]
    assert re.fullmatch(r"scene\.png: object, presence 0\.12, \d+\.\d% of the image, \d+ regions?", lines[0])
    assert lines[1:] == ["note: scene.png: the object does not seem to be there (presence 0.12)."]
    assert read("diffseg_out/scene_mask.png").any()
    lines = run("segment", *ONE, "scene.png", "-f", "mask", "--min-presence", "0.5").stderr.splitlines()[1:]
    assert lines == [
        "scene.png: object, presence 0.12, 0.0% of the image, 0 regions",
        "note: scene.png: the object does not seem to be there (presence 0.12); the mask is empty.",
    ]


@pytest.mark.usefixtures("loads")
def test_queries_are_named_in_any_way_and_mirror_their_folders_where_names_meet() -> None:
    result = run("segment", *ONE, "-f", "mask", "-q", "scene.png", "other.png", "b.png")
    assert result.stdout.split() == [f"diffseg_out/{name}_mask.png" for name in ("scene", "other", "b")]
    result = run("segment", "scene.png", "sub/scene.jpg", *ONE, "-f", "mask", "-o", "met")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == ["met/scene_mask.png", "met/sub/scene_mask.png"]
    assert all(Path(line).is_file() for line in result.stdout.split())


def test_segment_as_json_for_several_queries_encodes_supports_once(
    loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = Segmenter.encode_support
    monkeypatch.setattr(
        Segmenter, "encode_support", lambda self, pairs: encoded.append(len(pairs)) or encode(self, pairs)
    )
    more = ("-s", "b.png", "-m", "b_m.png", "-q", "scene.png", "-q", "other.png", "-o", "deep/down")
    result = run("segment", *ONE, *more, "--threshold", "0.4", "--seed", "5", "--json")
    assert result.exit_code == 0 and encoded == [2] and len(loads.calls) == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["query"] for row in rows] == ["scene.png", "other.png"]
    for row in rows:
        stem = Path(row["query"]).stem
        assert row["outputs"] == {
            what: f"deep/down/{stem}_{what}.png" for what in ("mask", "heatmap", "overlay")
        }
        assert row["size_hw"] == list(HW)
        assert row["mask_area"] == pytest.approx((read(row["outputs"]["mask"]) > 0).mean())
        facts = {"model": "compact", "head": "attention", "device": "cpu", "dtype": "float32"}
        assert facts.items() <= row.items()
        assert (row["threshold"], row["seed"], row["presence"]) == (0.4, 5, None)
        assert {"load", "support", "read", "encode", "write"} <= set(row["seconds"])
        assert all(seconds >= 0 for seconds in row["seconds"].values())


def test_segment_hands_the_model_options_on(loads: Loads) -> None:
    options = ("--model", "kandinsky-2-2", "--checkpoint", "x.safetensors", "--head", "attention")
    rest = ("--fusion", "mean", "--device", "cpu", "--dtype", "bfloat16", "--offload", "--timesteps", "10,50")
    assert run("segment", *ONE, "-q", "scene.png", *options, *rest).exit_code == 0
    assert loads.calls == [
        ModelChoice(
            **{"model": "kandinsky-2-2", "checkpoint": Path("x.safetensors"), "device": "cpu"},
            **{"dtype": "bfloat16", "head": "attention", "fusion": "mean", "offload": True},
            timesteps=(10, 50),
        )
    ]


@pytest.mark.usefixtures("loads")
def test_results_have_the_orientation_a_viewer_shows() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(2).save("turned.jpg", exif=exif)
    assert run("segment", *ONE, "-q", "turned.jpg").exit_code == 0
    for what in ("mask", "heatmap", "overlay"):
        assert read(f"diffseg_out/turned_{what}.png").shape[:2] == HW[::-1]
    assert run("edges", "turned.jpg", "--size", "32").exit_code == 0
    assert read("diffseg_out/turned_edges.png").shape == HW[::-1]


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize(
    ("mask", "flags"),
    [
        ("labels_m.png", ("--label", "1")),
        ("colors_m.png", ("--color", "C81E28")),
        ("inverted_m.png", ("--invert-mask",)),
    ],
)
def test_flags_that_say_what_a_mask_means(mask: str, flags: tuple[str, ...]) -> None:
    Image.fromarray(255 - box()).save("inverted_m.png")
    assert run("segment", *ONE, "-q", "scene.png", "-o", "plain").exit_code == 0
    assert run("segment", "-s", "a.png", "-m", mask, *flags, "-q", "scene.png", "-o", "told").exit_code == 0
    np.testing.assert_array_equal(read("plain/scene_mask.png"), read("told/scene_mask.png"))


def test_notes_go_to_stderr_once(loads: Loads, small_segmenter: Segmenter) -> None:
    loads.answer = small_segmenter  # its PAM is random and never sure of anything
    Image.fromarray(box()).resize((320, 240)).resize(HW[::-1], Image.Resampling.BOX).save("soft_m.png")
    result = run("segment", "-s", "a.png", "-m", "soft_m.png", "-q", "scene.png", "--threshold", "0.9999")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 3
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert "soft_m.png (64 x 48, grey) has soft borders" in notes[0]
    assert "scene.png: no pixel is above the threshold 0.9999" in notes[1]
    assert not read("diffseg_out/scene_mask.png").any()


# --- refusals ------------------------------------------------------------------------------------------

# argv after the verb, exit code, what the error says, what the hint says
BEFORE_LOADING: list[tuple[str, str, int, str, str]] = [
    ("segment", "-s nowhere.png -m a_m.png -q scene.png", 3, "nowhere.png does not exist", "Check the name"),
    ("segment", "-s a.png -m nowhere.png -q scene.png", 3, "nowhere.png does not exist", "Check the name"),
    ("segment", "-s a.png -m a_m.png -q nowhere.png", 3, "nowhere.png does not exist", "Check the name"),
    ("segment", "-s zero.png -m a_m.png -q scene.png", 3, "zero.png is empty (0 bytes)", "again"),
    ("segment", "-s text.png -m a_m.png -q scene.png", 3, "text.png is not an image", "PNG"),
    ("segment", "-s cut.png -m a_m.png -q scene.png", 3, "cut.png is damaged or cut short", "again"),
    ("segment", "-s a.png -m a_m.png -q zero.png", 3, "zero.png is empty (0 bytes)", "again"),
    ("segment", "-s a.png -m a_m.png -q sub", 2, "sub is a folder", "diffseg batch --queries sub"),
    ("attn", "-s a.png -m a_m.png -q sub", 3, "sub is a folder", "Name one image"),
    (
        "segment",
        "-s a.png -m small_m.png -q scene.png",
        3,
        "64 x 48 pixels and small_m.png is 40 x 30",
        "size",
    ),
    (
        "segment",
        "-s a.png -m empty_m.png -q scene.png",
        3,
        "empty_m.png (64 x 48, grey) is empty",
        "right file",
    ),
    ("segment", "-s a.png -m full_m.png -q scene.png", 3, "full_m.png (64 x 48, grey) is full", "right file"),
    (
        "segment",
        "-s a.png -m labels_m.png -q scene.png",
        3,
        "more than one label: 0 (",
        "--label 1 or --label 2",
    ),
    ("segment", "-s a.png -m labels_m.png --label 7 -q scene.png", 3, "has no label 7", "one of these"),
    ("segment", "-s a.png -m colors_m.png -q scene.png", 3, "several colours: #5A5A5A (", "--color '#"),
    ("segment", "-s a.png -m b.png -q scene.png", 3, "b.png (64 x 48, colours) holds", "swapped"),
    (
        "segment",
        "-s a.png -m a_m.png -m b_m.png -q scene.png",
        2,
        "--support is given once and --mask 2 times",
        "one --mask for each",
    ),
    (
        "segment",
        "-s a.png -m a_m.png --label 1 --color red -q scene.png",
        2,
        "--label and --color",
        "one of them",
    ),
    (
        "segment",
        "-s a.png -m a_m.png --color reddish -q scene.png",
        2,
        "'reddish' is not a colour",
        "#RRGGBB",
    ),
    (
        "segment",
        "-s a.png -m a_m.png -q sub/scene.png -q sub/scene.jpg",
        2,
        "sub/scene.png and sub/scene.jpg would both be written to diffseg_out/scene",
        "--out",
    ),
    ("segment", "-s a.png -m a_m.png", 2, "There is no image to search", "scene.jpg"),
    ("segment", "-s a.png -m a_m.png https://host/a.jpg", 2, "https://host/a.jpg is a URL", "diffseg batch"),
    (
        "segment",
        "-s a.png -m scene_mask.png -q scene.png -o .",
        2,
        "scene_mask.png is read by this run",
        "--out",
    ),
    ("segment", "-s a.png -m a_m.png -q scene.png -o a_file", 3, "a_file cannot be written", "--out"),
    (
        "segment",
        "-s a.png -m a_m.png -q scene.png -o a_file/below",
        3,
        "a_file/below cannot be written",
        "--out",
    ),
    ("attn", "-s a.png -m a_m.png -q cut.png", 3, "cut.png is damaged or cut short", "again"),
    ("attn", "-s a.png -m a_m.png -q scene.png --point 3", 2, "'3' is not a point", "X,Y"),
    ("attn", "-s a.png -m a_m.png -q scene.png --point 64,0", 2, "64,0 lies outside", "64 x 48"),
    (
        "attn",
        "-s a.png -m a_m.png -q scene.png --point 1,1 --region a_m.png",
        2,
        "--point and --region",
        "one of them",
    ),
    ("attn", "-s a.png -m a_m.png -q scene.png --region small_m.png", 3, "small_m.png is 40 x 30", "size"),
    ("edges", "zero.png", 3, "zero.png is empty", "again"),
    ("edges", "sub/scene.png sub/scene.jpg", 2, "would both be written", "--out"),
    ("edges", "scene.png -o a_file", 3, "a_file cannot be written", "--out"),
]


@pytest.mark.parametrize(("verb", "arguments", "code", "says", "hints"), BEFORE_LOADING)
def test_refused_before_anything_is_loaded_or_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str, arguments: str, code: int, says: str, hints: str
) -> None:
    def no_loading(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded before the input was checked")

    monkeypatch.setattr(assembly, "load_segmenter", no_loading)
    monkeypatch.setattr("diffseg_cli.weights.edge_detectors.load_hed", no_loading)
    Image.fromarray(box()).save("scene_mask.png")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = run(verb, *arguments.split())
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: ") and says in error
    assert hint.startswith("hint: ") and hints in hint
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        "segment -s a.png -m a_m.png -q scene.png --threshold 0",
        "segment -s a.png -m a_m.png -q scene.png --threshold 1",
        "segment -s a.png -m a_m.png -q scene.png --threshold nan",
        "segment -s a.png -m a_m.png -q scene.png --threshold half",
        "segment -s a.png -m a_m.png -q scene.png --head sam",
        "segment -s a.png -m a_m.png -q scene.png --seed -1",
        "segment -s a.png -m a_m.png -q scene.png --seed 99999999999999999999",
        "segment -s a.png -m a_m.png -q scene.png --treshold 0.5",
        "segment -s a.png -m a_m.png -q scene.png --timesteps soon",
        "attn -s a.png -m a_m.png -q scene.png --arrays h5",
        "edges",
        "edges scene.png --size 8",
        "sgment",
    ],
)
def test_usage_errors_are_typers_own(loads: Loads, arguments: str) -> None:
    result = run(*arguments.split())
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert "Usage: " in result.stderr and loads.calls == []


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ("--model nothing", 2, "Unknown model 'nothing'"),
        ("--device cuda:7", 2, "The device 'cuda:7' is not there"),
        ("--device npu", 2, "There is no device 'npu'"),
        ("--dtype int3", 2, "There is no dtype 'int3'"),
        ("--checkpoint nowhere.safetensors", 4, "nowhere.safetensors cannot be read"),
        ("--checkpoint a_file", 4, "a_file is damaged or is not a safetensors file"),
    ],
)
def test_refusals_of_the_real_loader(flags: str, code: int, says: str) -> None:
    result = run("segment", *ONE, "-q", "scene.png", *flags.split())
    assert result.exit_code == code and result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert says in error and hint.startswith("hint: ")
    assert not Path("diffseg_out").exists()


@pytest.mark.usefixtures("loads")
def test_a_query_that_proves_damaged_stops_the_run_and_leaves_no_half_results() -> None:
    result = run("segment", *ONE, "-q", "scene.png", "-q", "cut.png", "-q", "other.png")
    assert result.exit_code == 3 and "error: cut.png is damaged" in result.stderr
    assert len(result.stdout.splitlines()) == 3  # what was finished before
    assert {path.name for path in Path("diffseg_out").iterdir()} == {
        f"scene_{what}.png" for what in ("mask", "heatmap", "overlay")
    }


def test_weights_that_are_no_numbers_are_an_error_and_no_empty_mask(loads: Loads) -> None:
    weight = loads.answer.backbone.get_parameter("encoder.stem.weight")
    kept = weight.clone()
    weight[0, 0, 0, 0] = float("nan")
    try:
        result = run("segment", *ONE, "-q", "scene.png")
    finally:
        weight.copy_(kept)
    error, hint = result.stderr.splitlines()[-2:]
    assert result.exit_code == 1 and result.stdout == "" and "half precision" in error
    assert hint.startswith("hint: Use --dtype float32") and not list(Path().glob("diffseg_out/*"))


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(assembly, "load_segmenter", interrupted)
    result = run("segment", *ONE, "-q", "scene.png")
    assert result.exit_code == 130 and result.stdout == "" and "Interrupted" in result.stderr


def test_the_unexpected_is_one_line_and_the_traceback_is_there_for_the_asking(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a number\nsecond line")

    monkeypatch.setattr(assembly, "load_segmenter", broken)
    monkeypatch.setattr(sys, "argv", ["diffseg", "segment", *ONE, "--query", "scene.png"])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: ZeroDivisionError: a number" and "DIFFSEG_DEBUG=1" in hint
    monkeypatch.setenv("DIFFSEG_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main.main()


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment", *ONE, "--query", "closed/a.png"),
        ("segment", *ONE, "--query", "scene.png", "--model", "closed/model"),
        ("batch", *ONE, "--queries", "closed"),
        ("batch", "--verify", "--out", "closed/out"),
        ("watch", "closed", *ONE),
        ("doctor", "closed/a.png"),
        ("serve", "--queries", "closed", "--out", "labels", "--class", "dog"),
    ],
)
def test_a_folder_that_may_not_be_entered_is_named(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    is_dir = Path.is_dir

    def refuse(self: Path, **options: Any) -> bool:
        if "closed" in self.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return is_dir(self, **options)

    monkeypatch.setattr(Path, "is_dir", refuse)
    result = run(*arguments)
    assert result.exit_code == 3, result.output
    assert re.search(r"closed\S*\s+cannot be reached: Permission denied", result.output)


def test_no_memory_left_says_what_to_try(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def hungry(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr(assembly, "load_segmenter", hungry)
    monkeypatch.setattr(sys, "argv", ["diffseg", "segment", *ONE, "--query", "scene.png"])
    with pytest.raises(SystemExit):
        main.main()
    assert "--offload" in capsys.readouterr().err


# --- attn and edges ------------------------------------------------------------------------------------


def test_attn_writes_a_sheet_and_the_arrays(loads: Loads) -> None:
    result = run("attn", *ONE, "-q", "scene.png", "--out", "maps")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["maps/scene_attn.png", "maps/scene_attn.npz"]
    assert result.stderr == f"Using {loads.answer.description}.\n"
    assert read("maps/scene_attn.png").shape[2] == 3
    with np.load("maps/scene_attn.npz", allow_pickle=False) as arrays:
        assert {"score_map", "cross_map", "affinity", "info"} <= set(arrays.files)
        info = json.loads(str(arrays["info"]))
    assert (info["query"], info["region"], info["seed"]) == ("scene.png", "M_a above 0.5", 0)
    assert (info["model"], info["head"]) == ("compact", "attention")


@pytest.mark.usefixtures("loads")
def test_attn_details_as_json_and_safetensors() -> None:
    details = ("--layers", "--heads", "--tokens", "--matrices")
    result = run(
        "attn", *ONE, "-q", "scene.png", "--point", "30, 20", *details, "--arrays", "safetensors", "--json"
    )
    assert result.exit_code == 0
    row = json.loads(result.stdout)
    assert row["region"] == "point 30,20"
    kinds = {"layers", "heads", "tokens"}
    assert row["outputs"] == {
        "sheet": "diffseg_out/scene_attn.png",
        **{kind: f"diffseg_out/scene_attn_{kind}.png" for kind in kinds},
        "arrays": "diffseg_out/scene_attn.safetensors",
    }
    from safetensors.numpy import load_file

    arrays = load_file(row["outputs"]["arrays"])
    assert {name: list(array.shape) for name, array in arrays.items()} == row["arrays"]
    assert {"layers/stride_16/t0/tokens", "scales/8x8/self"} <= set(arrays)
    assert (arrays["region"] > 0).sum() == 1


@pytest.mark.usefixtures("loads")
def test_attn_takes_a_region() -> None:
    assert run("attn", *ONE, "-q", "scene.png", "--region", "b_m.png").exit_code == 0
    with np.load("diffseg_out/scene_attn.npz") as arrays:
        covered = Image.fromarray(box()).resize(arrays["region"].shape[::-1], Image.Resampling.BOX)
        np.testing.assert_array_equal(arrays["region"] > 0, np.asarray(covered) > 0)


def test_edges_lie_where_the_borders_are() -> None:
    Image.fromarray(
        np.where(box((96, 128))[..., None] > 0, (220, 60, 40), (40, 60, 90)).astype(np.uint8)
    ).save("box.png")
    result = run("edges", "box.png", "a.png", "--out", "e", "--json")
    assert result.exit_code == 0 and result.stderr.startswith("Using HED on cpu")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["edges"] for row in rows] == ["e/box_edges.png", "e/a_edges.png"]
    found = read("e/box_edges.png").astype(int)
    assert found.shape == (96, 128)
    on_border = np.r_[found[10, 25:45], found[34, 25:45], found[15:30, 20], found[15:30, 49]]
    assert on_border.mean() > found[60:, 70:].mean() + 80


def test_edges_with_weights_of_another_kind() -> None:
    result = run("edges", "a.png", "--hed", "a_m.png")
    assert result.exit_code == 4 and "a_m.png" in result.stderr and not Path("diffseg_out").exists()


def test_a_name_of_any_bytes_comes_out_as_it_went_in(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    name = os.fsdecode(b"caf\xe9 \xe7\x8c\xab.png")  # Latin-1 and UTF-8 in one
    picture(1).save(name)
    monkeypatch.setattr(sys, "argv", ["diffseg", "edges", name])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 0
    written = capfdbinary.readouterr().out.rstrip(b"\n")
    assert written == b"diffseg_out/caf\xe9 \xe7\x8c\xab_edges.png" and os.path.isfile(written)  # noqa: PTH113


# --- help, version, terminals --------------------------------------------------------------------------


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*words, name))


@pytest.mark.parametrize(("words", "command"), list(commands(get_command(main.app))))
def test_help_fits_the_terminal_and_ends_with_two_examples(words: tuple[str, ...], command: Any) -> None:
    """What stands for a value is never broken, and no type is told where it tells nothing."""
    result = run(*words, "--help", columns=80)
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert not re.search(r"<(bool|str|path|int|float|list)\b", result.stdout)
    for option in command.params:
        shown = option.metavar or ("" if option.is_flag else option.display_type_rich(None))
        assert shown in result.stdout, option.name
    examples = [line.strip() for line in lines[lines.index(" Examples:") + 1 :] if line]
    assert len(examples) == 2 and all(" ".join(["diffseg", *words]) in each for each in examples)


@pytest.mark.parametrize("verb", ["segment", "batch", "attn", "edges"])
def test_examples_of_the_help_are_valid(loads: Loads, verb: str) -> None:
    for name in ("dog.jpg", "c.jpg", "d.jpg", "a.jpg", "b.jpg", "photos/c.jpg", "photos/cc/c.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        picture(1, (240, 400)).save(name)
    picture(2, (240, 400)).save("scene.jpg")
    for name in ("dog.png", "a.png", "b.png"):
        Image.fromarray(box((240, 400))).save(name)
    for name in ("dog", "sofa"):
        pairs = [(np.asarray(picture(3)), box() > 0)]
        supports = SupportSet(name, pairs, [source_of(Path("a.png"), Path("a_m.png"))])
        write_concept(Path(f"{name}.dsc"), loads.answer, supports)
    examples = re.findall(r"^ +diffseg (.*)$", sys.modules[f"diffseg_cli.cli.{verb}"].EXAMPLES, re.MULTILINE)
    assert len(examples) == 2
    for example in examples:
        result = run(*shlex.split(example.replace("*", "c")))
        assert result.exit_code == 0, result.output


def test_version_and_no_arguments() -> None:
    from diffseg_cli import __version__

    assert run("--version").stdout == f"diffseg {__version__}\n"
    assert "Find" in run().output and "Train and measure" in run().output


TRACK = """
import sys, time
from diffseg_cli.cli import console
for index in console.track(range(3), 3, "pictures"):
    console.result(f"line {index}")
    time.sleep(0.15)
with console.working("thinking"):
    time.sleep(0.15)
print([name for name in ("rich",) if name in sys.modules])
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_only_on_a_terminal_and_results_never_through_it(terminal: bool) -> None:
    ours, theirs = pty.openpty() if terminal else os.pipe()
    done = subprocess.Popen(
        [sys.executable, "-c", TRACK], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # the other end has closed
        pass
    os.close(ours)
    stdout, _ = done.communicate()
    assert done.returncode == 0 and stdout.splitlines()[:3] == ["line 0", "line 1", "line 2"]
    if terminal:
        assert b"pictures" in shown and b"thinking" in shown and b"line" not in shown
    else:
        assert shown == b"" and stdout.splitlines()[3] == "[]"


LONG = "diffseg_out/" + "day/" * 30
BUSY = f"""
import time
from diffseg_cli.cli import console
for index in console.track(range(3), 3, "images"):
    console.result("{LONG}" + str(index))
    console.note("a sentence that is longer than the terminal is wide, as those about an image often are")
    time.sleep(0.15)
"""


def screen(shown: str, width: int) -> list[str]:
    """What a terminal shows in the end; knows what rich uses: colours, lines up, clearing a line."""
    rows = [""]
    x = y = 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.|\n", shown, re.DOTALL):
        if part[0] == "\x1b":
            y -= int(part[2:-1] or 1) if part[-1] == "A" else 0
            rows[y] = "" if part[-1] == "K" else rows[y]
        elif part == "\r":
            x = 0
        elif part == "\n":
            y += 1
        else:
            if x == width:
                x, y = 0, y + 1
            rows += [""] * (y + 1 - len(rows))
            rows[y] = rows[y][:x].ljust(x) + part + rows[y][x + 1 :]
            x += 1
        rows += [""] * (y + 1 - len(rows))
    return [row for row in rows if row]


@pytest.mark.parametrize("width", [60, 80])
def test_results_and_a_bar_share_a_terminal(width: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    done = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=REPOSITORY, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the other end has closed
        while block := os.read(ours, 4096):
            shown += block
    os.close(ours)
    assert done.wait() == 0 and b"images " in shown
    said = "note: a sentence that is longer than the terminal is wide, as those about an image often are"
    lines = [line for index in range(3) for line in (f"{LONG}{index}", said)]
    wrapped = [line[start : start + width] for line in lines for start in range(0, len(line), width)]
    assert screen(shown.decode(), width) == wrapped


def test_training_and_evaluation_are_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from diffseg_cli.training.jobs import Progress

    steps = [Progress("modules", step, 3, {"loss": 1 / step}, step == 3) for step in (1, 2, 3)]
    train.show_progress(iter(steps))
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "modules 3/3 loss 0.3333\n"
    record = {
        **{"model": "compact", "head": "pam", "fusion": "mean"},
        **{"shots": 1, "seed": 0, "episodes": 40, "classes": 2},
        **{"thresholds": {"diffseg": 0.5}, "adapted": None, "shares": None},
        "methods": {
            "diffseg": {"mean_iou": {"all": 0.5}, "fb_iou": 0.75, "per_class": {"cat": 0.4, "dog": 0.6}}
        },
    }
    evaluate.show_figures(record, as_json=False)
    text = capsys.readouterr().out
    assert "1-shot, 40 episodes of 2 classes" in text and re.search(r"mean IoU all +0\.500", text)
    assert re.search(r"FB-IoU +0\.750", text) and re.search(r"dog +0\.600", text)
    evaluate.show_figures(record, as_json=True)
    assert json.loads(capsys.readouterr().out) == record
