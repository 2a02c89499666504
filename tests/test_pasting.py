"""Large scenes made of labelled images, and what an evaluation says of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_cli_evaluate import run
from test_evaluation import write_classes

from diffseg_cli import assembly
from diffseg_cli.datasets.episode import draw_episode, read_folder
from diffseg_cli.datasets.pasting import SHARES, draw_scene
from diffseg_cli.datasets.truth import Truth, read_pair_truth
from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.reading.image_io import read_image
from diffseg_cli.segmenter import Segmenter


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("fire_hydrant", "firehydrant", "brick")
    return write_classes(tmp_path_factory.mktemp("classes"), names)


def test_a_scene_is_a_function_of_its_seed_and_holds_one_object(classes: Path) -> None:
    dataset = read_folder(classes)
    episode = draw_episode(dataset, 2, shots=1, seed=0)
    used = []

    def read(index: int) -> tuple[np.ndarray, Truth]:
        used.append(index)
        return read_image(dataset.samples[index].image), read_pair_truth(dataset.samples[index])

    scene, truth = draw_scene(dataset, episode, read, megapixels=0.3, seed=(0, 2))
    again = draw_scene(dataset, episode, read, megapixels=0.3, seed=(0, 2))
    other = draw_scene(dataset, episode, read, megapixels=0.3, seed=(0, 3))
    assert scene.tobytes() == again[0].tobytes()
    assert truth.mask.tobytes() == again[1].mask.tobytes()
    assert scene.tobytes() != other[0].tobytes()
    assert scene.shape == (474, 632, 3)
    assert truth.mask.shape == (474, 632)
    assert 0.9 * SHARES[0] < truth.mask.mean() < 1.1 * SHARES[1]
    assert episode.class_name == "firehydrant"
    background = {dataset.samples[index].class_name for index in used if index != episode.query}
    assert background == {"brick"}  # "fire_hydrant" is the same class, spelled by another source


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> None:
    trained = replace(small_segmenter.trained, presence=PresenceCalibration((1.0, 1.0, 1.0), -1.0))
    segmenter = small_segmenter.with_trained(trained)
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: segmenter)


@pytest.mark.usefixtures("calibrated")
def test_figures_by_the_size_of_the_object(classes: Path, tmp_path: Path) -> None:
    words = ["--root", classes, "--episodes-per-class", 2, "--paste-into", 0.1, "--zoom", 5]
    words += ["--peer", "slicing", "--out", tmp_path / "report"]
    code, text, _ = run(*words, "--json")
    assert code == 0
    record = json.loads(text)
    assert set(record["methods"]) == {"model", "zoom", "slicing"}
    assert record["paste_into"] == 0.1
    assert sum(row["episodes"] for row in record["shares"]) == record["episodes"] == 6
    for row in record["shares"]:
        methods = row["methods"]
        assert methods["model"]["looks"] == 1
        assert 1 < methods["zoom"]["looks"] <= 5
        assert methods["slicing"]["looks"] == 10
        assert all(0 <= figures["iou"] <= 1 for figures in methods.values())
    code, text, _ = run(*words)  # everything is there already
    assert code == 0
    assert "slicing" in text.split("scenes  method")[1]
    code, _, log = run(*words, "--paste-into", 0.2)
    assert code == 3
    assert "another run" in log or "another --out" in log


def test_closer_looks_need_a_presence_score(
    classes: Path, small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: small_segmenter)
    for words in (["--zoom", "auto"], ["--peer", "slicing"]):
        code, _, log = run("--root", classes, "--paste-into", 0.1, *words)
        assert code == 2
        assert "no presence score" in log
