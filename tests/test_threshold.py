"""diffseg threshold: finished results at another cut are those of a run at that cut; nothing gets lost."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_swift_segmenter
from PIL import Image
from typer.testing import CliRunner, Result

from diffseg_cli import assembly
from diffseg_cli.batch import recut
from diffseg_cli.cli import main
from diffseg_cli.errors import InputError
from diffseg_cli.reading.input_files import InputFile
from diffseg_cli.results.probability import LEVELS, probability_png, read_probabilities
from diffseg_cli.segmenter import Segmenter

HW = (48, 64)
NAMES = ["a", "b", "day1/c"]
CUT = 0.35
FORMATS = [
    *("mask", "overlay", "cutout", "labelme", "yolo", "voc", "coco", "coco-polygons", "json", "heatmap"),
    *("instances", "probability"),
]
ALL = [word for name in FORMATS for word in ("-f", name)]


def save(path: str, seed: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(HW[::-1], Image.Resampling.BICUBIC).save(path)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(["../one", "../two", *NAMES]):
        save(f"photos/{name}.png", seed)
    for name, place in (("one", np.s_[10:35, 20:50]), ("two", np.s_[5:20, 5:30])):
        mask = np.zeros(HW, dtype=np.uint8)
        mask[place] = 255
        Image.fromarray(mask).save(f"{name}_m.png")
    swift = make_swift_segmenter(small_segmenter)
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: swift)
    for name in ("one", "two"):
        assert call(
            "concept", "make", f"{name}.dsc", "-s", f"{name}.png", "-m", f"{name}_m.png", "--name", name
        )
    return tmp_path


def call(*words: str, code: int = 0) -> Result:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main.app, list(words))
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def batch(*more: str, out: str = "out", concepts: tuple[str, ...] = ("one",)) -> Result:
    wanted = [word for name in concepts for word in ("-c", f"{name}.dsc")]
    return call("batch", *wanted, "-q", "photos", "--recursive", "-o", out, "--instances", *more)


def files(out: str) -> dict[str, Any]:
    """Contents below a folder; what the mean of the probability decides is rounded as it is kept."""
    found: dict[str, Any] = {}
    for path in sorted(Path(out).rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".json":
            found[name] = rounded(json.loads(path.read_text()))
        elif path.is_file() and "manifest" not in name and name != "index.html":
            found[name] = path.read_bytes()
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        skipped = ("threshold", "outputs", "seconds", "concept", "features", "query", "image")
        return {
            key: round(each, 2) if key == "score" else rounded(each)
            for key, each in value.items()
            if key not in skipped
        }
    return [rounded(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("concepts", [("one",), ("one", "two")])
def test_a_batch_cut_again_is_a_batch_at_that_cut(concepts: tuple[str, ...]) -> None:
    # Where concepts overlap, the higher probability decides, of which rounding loses ties.
    more = [*ALL, "-f", "score"] if len(concepts) > 1 else ALL
    batch(*more, "--threshold", str(CUT), out="expected", concepts=concepts)
    batch(*more, concepts=concepts)
    assert files("out") != files("expected")
    said = call("threshold", "out", "--at", str(CUT))
    assert "3 done, 0 skipped, 0 failed" in said.stderr and "out/coco.json" in said.stdout
    assert files("out") == files("expected")
    assert {row["threshold"] for row in json.loads(Path("out/run.json").read_text())["images"]} == {CUT}
    if concepts == ("one",):
        assert f'"../photos/a.png",["a_probability.png"],{CUT}]' in Path("out/index.html").read_text()
    assert "are as they were written" in call("batch", "--verify", "-o", "out").stderr
    assert "0 done, 3 skipped" in call("threshold", "out", "--at", str(CUT)).stderr


def test_a_resumed_batch_keeps_the_cuts() -> None:
    batch(*ALL)
    Path("cuts.json").write_text(json.dumps({"day1/c.png": CUT}))
    before = files("out")
    assert "1 done" in call("threshold", "out", "--cuts", "cuts.json").stderr
    cut = files("out")
    assert {name for name in before if before[name] != cut[name]} >= {"day1/c_mask.png", "coco.json"}
    assert cut["a_mask.png"] == before["a_mask.png"]
    save("photos/new.png", 9)
    assert "1 done, 3 skipped" in batch(*ALL).stderr
    assert files("out")["day1/c_mask.png"] == cut["day1/c_mask.png"]
    rows = json.loads(Path("out/run.json").read_text())["images"]
    assert [row["query"] for row in rows if "threshold" in row] == ["day1/c.png"]


def test_the_results_of_segment_too() -> None:
    asked = ["segment", "-c", "one.dsc", "photos/a.png", "photos/b.png", *ALL, "--instances"]
    call(*asked, "--threshold", str(CUT), "-o", "expected")
    call(*asked, "-o", "out")
    assert files("out") != files("expected")
    call("threshold", "out", "--at", str(CUT))
    assert files("out") == files("expected")
    rows = {row["key"]: row["threshold"] for row in json.loads(Path("out/run.json").read_text())["images"]}
    assert rows == {"a.png": CUT, "b.png": CUT}


def test_exact_scores_serve_any_cut() -> None:
    batch("-f", "mask", "-f", "score", "--threshold", "0.4321", out="expected")
    batch("-f", "mask", "-f", "score")
    call("threshold", "out", "--at", "0.4321")
    assert files("out") == files("expected")


def test_an_image_is_old_or_new_when_a_signal_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    batch(*ALL, "--threshold", str(CUT), out="expected")
    batch(*ALL)
    old, new = files("out"), files("expected")
    draw = recut.encode_image

    def interrupted(what: str, *arguments: Any, **named: Any) -> bytes:
        if what == "overlay":  # of the first image, when its mask is drawn already
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(recut, "encode_image", draw)
        return draw(what, *arguments, **named)

    monkeypatch.setattr(recut, "encode_image", interrupted)
    assert "once more" in call("threshold", "out", "--at", str(CUT), code=130).stderr
    now = files("out")
    for name in NAMES:
        own = [path for path in now if path.startswith(f"{name}_") or f"/{name}." in path]
        states = [{path: state[path] for path in own} for state in (old, new, now)]
        assert len(own) > 5 and states[2] == states[1 if name == "a" else 0]
    assert "2 done, 1 skipped" in call("threshold", "out", "--at", str(CUT)).stderr
    assert files("out") == new


def test_what_is_missing_is_named_and_the_rest_is_done() -> None:
    batch("-f", "mask", "-f", "probability")
    before = files("out")
    Path("out/a_probability.png").unlink()
    Image.new("RGB", HW).save("photos/b.png")
    said = call("threshold", "out", "--at", str(CUT), code=5).stderr
    assert "a_probability.png does not exist" in said and "b.png has changed since" in said
    assert "1 done, 0 skipped, 2 failed" in said
    assert files("out")["a_mask.png"] == before["a_mask.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--at", "1.5"], "not a number from 0 to 1"),
        ([], "No cut is given"),
        (["--cuts", "none.json"], "none.json holds no cuts"),
        (["--cuts", "list.json"], "list.json holds no cuts"),
        (["--cuts", "unknown.json"], "names no.png, which is not among the results"),
        (["--at", "0.4"], "The probabilities of a.png were not saved"),
    ],
)
def test_refusals(words: list[str], said: str) -> None:
    batch("-f", "mask")
    Path("list.json").write_text("[1]")
    Path("unknown.json").write_text('{"no.png": 0.4}')
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main.app, ["threshold", "out", *words])
    assert result.exit_code in (2, 3, 5) and said in result.output


def test_a_folder_without_results_is_refused() -> None:
    Path("empty").mkdir()
    assert "not the record of a run" in call("threshold", "empty", "--at", "0.4", code=3).output
    Path("empty/run.json").write_text('{"images": [{"key": "a"}]}')
    assert "not the record of a run" in call("threshold", "empty", "--at", "0.4", code=3).output


def test_masks_that_a_person_corrected_are_left_alone() -> None:
    batch("-f", "mask", "-f", "probability")
    before = files("out")
    Path("out/review.jsonl").write_text("")
    assert "corrected by hand" in call("threshold", "out", "--at", "0.4", code=2).stderr
    assert {**files("out")} == {**before, "review.jsonl": b""}


def test_levels_cut_where_the_numbers_do(tmp_path: Path) -> None:
    draw = np.random.default_rng(0).random((300, 400), dtype=np.float32)
    steps = (np.arange(LEVELS + 1) / LEVELS).astype(np.float32)
    draw[0, : LEVELS + 1] = steps  # ties, and their neighbours
    draw[1, : LEVELS + 1] = np.nextafter(steps, np.float32(2)).clip(0, 1)
    draw[2, : LEVELS + 1] = np.nextafter(steps, np.float32(-1)).clip(0, 1)
    content = probability_png(draw)
    (kept,) = read_probabilities(InputFile("p.png", content))
    assert np.abs(kept - draw).max() <= 0.5 / LEVELS + 1e-6
    for step in range(LEVELS):
        cut = np.float32(step / LEVELS)
        assert np.array_equal(kept > cut, draw > cut)
    assert len(content) < draw.nbytes / 3
    for other in (np.full((4, 4), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)):
        Image.fromarray(other).save(tmp_path / "mask.png")
        with pytest.raises(InputError, match="holds no probability"):
            read_probabilities(InputFile("mask.png", tmp_path / "mask.png"))
