"""diffseg evaluate as a user sees it: text, JSON, files and exit codes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diffseg_cli import assembly
from diffseg_cli.cli.main import app
from diffseg_cli.config import SegmentConfig
from diffseg_cli.evaluation.sweep import settings_of
from diffseg_cli.segmenter import Segmenter

H, W = 60, 80


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> None:
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: small_segmenter)


def draw(image: Path, mask: Path, number: int, label: int) -> None:
    generator = np.random.default_rng(number)
    labels = np.zeros((H, W), np.uint8)
    labels[4:54, 10:60], labels[:3] = label, 255
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 255, (H, W, 3), dtype=np.uint8)).save(image)
    palette = Image.fromarray(labels).convert("P")
    palette.putdata(labels.ravel().tolist())
    palette.putpalette([value for i in range(256) for value in (i, i, i)])
    palette.save(mask)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        stem = tmp_path / "mine" / "ab"[number % 2] / str(number)
        draw(stem.with_suffix(".jpg"), stem.with_suffix(".png"), number, 1)
    return tmp_path / "mine"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two pictures of one class of each fold."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    names = []
    for number in range(8):
        names.append(f"2007_{number:06}")
        image, mask = (root / part / names[-1] for part in ("JPEGImages", "SegmentationClass"))
        draw(image.with_suffix(".jpg"), mask.with_suffix(".png"), number, 1 + 5 * (number // 2))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(names))
    return tmp_path / "VOCdevkit"


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr


def test_a_folder_of_classes(folder: Path, tmp_path: Path) -> None:
    out, episodes = tmp_path / "report", tmp_path / "episodes.jsonl"
    words = ["--root", folder, "--episodes-per-class", 2, "--peer", "prototype", "--peer", "attention"]
    code, text, log = run(*words, "--out", out, "--episodes-out", episodes)
    assert code == 0
    assert "1-shot, 4 episodes of 2 classes, seed 0" in text and "Published" not in text
    assert "\nprototype, threshold 0.15\n" in text and "\nattention, threshold 0.5\n" in text
    assert "boundary IoU all" in text and "(95 %: " in text and "time per episode" in text
    assert f"Report: {out / 'report.html'}" in log
    files = {"episodes.jsonl", "per_class.svg", "record.json", "report.html"}
    assert {path.name for path in out.iterdir()} == files
    assert len(episodes.read_text().splitlines()) == 5
    code, again, _ = run(*words, "--json", "--out", out)  # everything is there already
    record = json.loads(again)
    assert code == 0 and again.count("\n") == 1
    assert record["methods"] == json.loads((out / "record.json").read_text())["methods"]
    assert record["episodes"] == 4 and set(record["methods"]) == {"model", "prototype", "attention"}
    code, replayed, _ = run("--root", folder, "--episodes-in", episodes, "--json")
    assert json.loads(replayed)["methods"]["model"] == record["methods"]["model"]


def test_pascal_beside_published_figures(voc: Path) -> None:
    words = ["--dataset", "pascal-5i", "--root", voc, "--episodes-per-class", 1]
    code, text, _ = run(*words, "--checkpoint", "mine.safetensors", "--peer", "prototype")
    assert code == 0 and "4 episodes of 4 classes" in text and "mean IoU fold 3" in text
    trained, free = text.split("Published, trained on other classes")[1].split("Published, training-free")
    assert " 69.3  DiffSeg, the paper, Kandinsky 2.2" in trained and " 72.1  GF-SAM" in free
    assert "> model, this run" in trained and "> prototype" not in trained
    assert "> prototype, this run" in free and "> model" not in free
    _, text, log = run(*words)
    assert "DiffSeg, the paper" in text and "this run" not in text  # it was trained on these classes
    assert "not a few-shot figure of this protocol" in log
    code, text, _ = run(*words, "--fold", 1, "--shots", 1)
    assert code == 0 and " 75.8  DiffSeg, the paper" in text and "HSNet" not in text  # no folds printed
    record = json.loads(run(*words, "--fold", 1, "--json")[1])
    assert record["folds"] == [1] and record["methods"]["model"]["per_fold"].keys() == {"1"}
    assert list(record["methods"]["model"]["per_class"]) == ["bus"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--root", "nowhere"], 3, "error: nowhere is not a folder"),
        (["--dataset", "coco-20i", "--root", "."], 3, "instances_val2014.json was not found"),
        (["--dataset", "fss-1000", "--root", "."], 3, "does not hold FSS-1000"),
        (["--root", ".", "--peer", "sam"], 2, "Unknown peer 'sam'"),
        (["--root", ".", "--zoom", "1"], 2, "neither auto nor off"),
        (["--root", ".", "--paste-into", "0"], 2, "paste-into"),
        (["--root", ".", "--paste-into", "101"], 2, "paste-into"),
        (["--root", ".", "--fold", "1"], 2, "folder has no folds"),
        (["--dataset", "pascal-5i", "--root", ".", "--fold", "7"], 2, "There is no fold '7'"),
        (["--dataset", "coco", "--root", "."], 2, "coco"),
        (["--shots", "1"], 2, "--root"),
    ],
)
def test_mistakes_are_named(words: list[str], code: int, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done, text, log = run(*words)
    assert done == code and text == ""
    assert message in " ".join(log.replace("│", " ").split())


def test_absent_peer_weights_and_other_runs(folder: Path, tmp_path: Path) -> None:
    words = ["--root", folder, "--episodes-per-class", 1]
    code, _, log = run(*words, "--peer", "seggpt", "--peer-weights", tmp_path)
    assert code == 4 and "seggpt was not found on disk" in log and "hf download BAAI/seggpt" in log
    assert run(*words, "--out", tmp_path / "out")[0] == 0
    code, _, log = run(*words, "--out", tmp_path / "out", "--seed", 4)
    assert code == 3 and "another run: seed, episodes_sha256 differ" in log and "hint:" in log


def test_a_backbone_with_one_view_of_supports_has_two_crops(
    small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(settings_of(small_segmenter, ["support-crop"])) == {
        "--support-crop object",
        "--support-crop whole",
    }
    monkeypatch.setattr(small_segmenter.backbone, "support_margin", None)
    assert set(settings_of(small_segmenter, ["support-crop"])) == {"--support-crop whole"}
    settings = SegmentConfig(support_crop="whole")
    assert set(settings_of(replace(small_segmenter, settings=settings), ["support-crop"])) == {
        "--support-crop both"
    }


def test_a_sweep_names_the_setting_to_use(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    words = ["--root", folder, "--episodes-per-class", 2, "--sweep", "cross-map,support-crop", "--out", out]
    code, text, log = run(*words)
    assert code == 0, log
    table = text.split("Settings, best first")[1]
    crops = ["--support-crop object", "--support-crop whole"]
    names = ["--cross-map balanced", "--cross-map contrast", *crops]
    names += [f"{name} {crop}" for name in names[:2] for crop in crops]
    assert sorted(line.split("  ")[-1] for line in table.splitlines()[1:-1]) == sorted([*names, "as given"])
    assert table.splitlines()[-1].startswith("Use: ") and "\n--cross-map" not in text
    record = json.loads(run(*words, "--json")[1])  # from the ledger
    rows = record["sweep"]["rows"]
    assert [row["mean_iou"] for row in rows] == sorted((row["mean_iou"] for row in rows), reverse=True)
    for row in rows:
        assert row["mean_iou"] == record["methods"][row["method"]]["mean_iou"]["all"]
        assert row["method"] == "model" or row["interval"][0] <= row["interval"][1]
    assert "<h2>Settings</h2>" in (out / "report.html").read_text()
    code, _, log = run("--root", folder, "--sweep", "timesteps")
    assert code == 2 and "compact adds no noise, so it has no timesteps" in log
    code, _, log = run("--root", folder, "--sweep", "cross-map,size")
    assert code == 2 and "There is no 'size' to sweep." in log and "support-crop, cross-map" in log
