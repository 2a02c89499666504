"""The Python API as somebody at a notebook meets it: its page, what values look like, and mistakes."""

import contextlib
import io
import json
import re
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from repository import REPOSITORY

import diffseg
from diffseg_cli.prediction import Prediction
from diffseg_cli.results.formats import format_of
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.supports.concept import SupportSet, load_concept, source_of, write_concept

BIRD = REPOSITORY / "examples" / "bird"
SNIPPETS = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documentation names, as the current one."""
    for name in ("dog", "scene", "other"):
        shutil.copy(BIRD / ("support.jpg" if name == "dog" else "query.jpg"), tmp_path / f"{name}.jpg")
    shutil.copy(BIRD / "support_mask.png", tmp_path / "dog.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pair(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.array(Image.open(folder / "dog.jpg")), np.array(Image.open(folder / "dog.png")) > 127


@pytest.fixture
def prediction(small_segmenter: Segmenter, files: Path) -> Prediction:
    support = small_segmenter.encode_support([pair(files)])
    middle = float(np.median(small_segmenter.segment("scene.jpg", support).probability))
    return small_segmenter.segment("scene.jpg", support, threshold=middle)


# --- documentation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_every_snippet_runs(page: str, files: Path) -> None:
    segmenter = diffseg.load_segmenter(device="cpu")
    supports = SupportSet("dog", [pair(files)], [source_of(files / "dog.jpg", files / "dog.png")])
    write_concept(files / "dog.dsc", segmenter, supports)
    snippets = SNIPPETS.findall((REPOSITORY / page).read_text(encoding="utf-8"))
    assert snippets
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for number, snippet in enumerate(snippets):
            exec(compile(snippet, f"{page}, snippet {number}", "exec"), names)
    assert "single pair" in printed.getvalue() or page == "README.md"
    assert names["prediction"].mask.any()
    assert len(snippets) < 2 or repr(names["segmenter"]) in snippets[0]


# --- what objects look like ----------------------------------------------------------------------------


def test_every_value_says_in_one_short_line_what_it_is(
    small_segmenter: Segmenter, prediction: Prediction, files: Path
) -> None:
    support = small_segmenter.encode_support([pair(files)] * 2)
    supports = SupportSet("dog", [pair(files)], [source_of(files / "dog.jpg", files / "dog.png")])
    saved = write_concept(files / "dog.dsc", small_segmenter, supports)
    queries = small_segmenter.encode_queries(["scene.jpg"])
    seen = {
        type(each).__name__: repr(each)
        for each in (
            *(small_segmenter, small_segmenter.trained, support, prediction, queries),
            *(supports.concept(small_segmenter), saved, small_segmenter.look("scene.jpg", support)),
        )
    }
    assert all(len(text) < 120 and "\n" not in text and "tensor" not in text for text in seen.values()), seen
    assert seen["SupportFeatures"] == "SupportFeatures(2 of compact, latents 32 x 16)"
    assert seen["Segmenter"] == "Segmenter(compact, head pam, 128 px, cpu, float32)"
    assert seen["Trained"] == "Trained(PAM and SCM, without a presence score)"
    assert seen["SavedConcept"].endswith("dog.dsc)") and "Concept(dog, " in seen["Concept"]
    assert re.fullmatch(r"Prediction\(scene\.jpg, \d+ x \d+ px, [\d.]+% object\)", seen["Prediction"])


def test_a_notebook_shows_a_prediction_as_an_overlay(prediction: Prediction) -> None:
    shown = np.array(Image.open(io.BytesIO(prediction._repr_png_())))
    assert np.array_equal(shown, np.array(prediction.overlay()))
    assert not np.array_equal(shown, prediction.image)
    left, top, width, height = prediction.box or [0, 0, 0, 0]
    assert prediction.mask[top : top + height, left : left + width].sum() == prediction.mask.sum()


def test_save_writes_what_the_name_or_the_format_says(prediction: Prediction, files: Path) -> None:
    prediction.save("any.png")
    assert np.array_equal(np.array(Image.open("any.png")) > 0, prediction.mask)
    prediction.save(files / "scene_overlay.png")
    assert np.array_equal(np.array(Image.open("scene_overlay.png")), np.array(prediction.overlay()))
    prediction.save("maps.npy")
    assert np.array_equal(np.load("maps.npy"), prediction.probability)
    prediction.save("scene.json")
    assert json.loads((files / "scene.json").read_text())["imagePath"] == "scene.jpg"
    prediction.save("apart.png", format="cutout")
    assert Image.open("apart.png").mode == "RGBA"
    prediction.save("numbered.png", format="instances")
    assert (np.array(Image.open("numbered.png")) > 0).sum() == prediction.mask.sum()
    for name, form in (("scene.jpg", None), ("scene", None), ("a.png", "coco"), ("a.png", "nothing")):
        with pytest.raises(diffseg.DiffsegError, match="no format for one image"):
            prediction.save(name, format=form)
    assert [format_of(name) for name in ("a.txt", "a_labelme.json", "a_score.npy")] == [
        *("yolo", "labelme", "score")
    ]


def test_an_array_has_no_path_for_labelme(small_segmenter: Segmenter, files: Path) -> None:
    support = small_segmenter.encode_support([pair(files)])
    prediction = small_segmenter.segment(pair(files)[0], support)
    assert prediction.path is None
    with pytest.raises(diffseg.DiffsegError, match="is no file"):
        prediction.save("scene.json")


def test_another_cut_is_that_of_the_model(
    small_segmenter: Segmenter, prediction: Prediction, files: Path
) -> None:
    support = small_segmenter.encode_support([pair(files)])
    higher = float(np.quantile(prediction.probability, 0.7))
    for least in ("0", "40", "1%"):
        fresh = small_segmenter.segment("scene.jpg", support, threshold=higher, min_area=least)
        assert np.array_equal(prediction.at(higher, least).mask, fresh.mask)
    assert prediction.at(higher).threshold == higher and prediction.at(higher).path == prediction.path


def test_a_list_of_queries_and_a_saved_concept(small_segmenter: Segmenter, files: Path) -> None:
    supports = SupportSet("dog", [pair(files)], [source_of(files / "dog.jpg", files / "dog.png")])
    write_concept(files / "dog.dsc", small_segmenter, supports)
    queries = ["scene.jpg", files / "dog.jpg", Image.open("scene.jpg"), pair(files)[0]]
    found = small_segmenter.segment(queries, load_concept("dog.dsc"), threshold=0.4)
    encoded = small_segmenter.encode_support([pair(files)])
    assert [each.path for each in found] == [Path("scene.jpg"), files / "dog.jpg", None, None]
    assert {(each.name, each.threshold) for each in found} == {("dog", 0.4)}
    for query, each in zip(queries, found, strict=True):
        alone = small_segmenter.segment(query, encoded, threshold=0.4)
        assert np.array_equal(each.probability, alone.probability)
    assert small_segmenter.segment([], encoded) == []


# --- mistakes ------------------------------------------------------------------------------------------

IMAGE, MASK = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), bool)
MASK[10:20, 10:30] = True
Doing = Callable[[Segmenter], Any]


@pytest.mark.parametrize(
    ("doing", "said", "hint"),
    [
        (lambda s: s.encode_support((IMAGE, MASK)), "a single pair", "list of pairs"),
        (lambda s: s.encode_support(("a.jpg", "a.png")), "a single pair", "list of pairs"),
        (lambda s: s.encode_support("a.jpg"), "not the path 'a.jpg'", "list of pairs"),
        (lambda s: s.encode_support(["a.jpg", "b.jpg", "c.jpg"]), "Support 1 is the path", "list of pairs"),
        (lambda s: s.encode_support([(IMAGE, MASK), IMAGE]), "Support 2 is a ndarray", "list of pairs"),
        (lambda s: s.encode_support(Segmenter), "the class Segmenter itself", "list of pairs"),
        (lambda s: s.encode_support(None), "not None", "list of pairs"),
        (lambda s: s.encode_support([]), "no support image", "its mask"),
        (lambda s: s.encode_support([(IMAGE, MASK[:30])]), "60 x 40 pixels and its mask is 60 x 30", "size"),
        (lambda s: s.encode_support([(IMAGE, None)]), "None is not a mask", "Give a path"),
        (lambda s: s.encode_support([(MASK, IMAGE)]), "this array is bool", "(image, mask)"),
        (lambda s: s.segment(IMAGE, [(IMAGE, MASK)]), "and not for a list", "encode_support"),
        (lambda s: s.segment(IMAGE, diffseg.SupportFeatures), "the class SupportFeatures", "encode_support"),
        (lambda s: s.segment(IMAGE, load_concept), "and not for a function", "encode_support"),
        (lambda s: s.encode_queries([Image.Image]), "The class Image itself is not", "PIL image"),
        (lambda s: s.encode_queries([None]), "None is not an image", "PIL image"),
        (lambda s: s.encode_queries([{}]), "A dict is not an image", "PIL image"),
        (lambda s: s.encode_queries([IMAGE * 1.0 + 200]), "is float64", "0..255"),
        (lambda s: s.encode_queries([IMAGE / np.float32(255)]), "is float32", "0..1"),
        (lambda s: s.encode_queries([IMAGE.astype(int) - 3]), "is int64", "-3..-3"),
        (lambda s: s.encode_queries([IMAGE.transpose(2, 0, 1)]), "3 x 40 x 60", "np.moveaxis"),
        (lambda s: s.encode_queries([IMAGE[None]]), "1 x 40 x 60 x 3", "list(images)"),
        (lambda s: s.encode_queries(["dog.png.txt"]), "does not exist", "name"),
        (lambda s: s.encode_queries([__file__]), "is not an image in a format", "PNG"),
        (lambda s: s.encode_queries(["."]), "is a folder", "one image"),
    ],
)
def test_mistakes_have_a_sentence_and_a_hint(
    small_segmenter: Segmenter, doing: Doing, said: str, hint: str
) -> None:
    with pytest.raises(diffseg.DiffsegError) as raised:
        doing(small_segmenter)
    assert said in raised.value.message and hint in (raised.value.hint or "")
    assert "\n" not in raised.value.message
    traceback_end = "".join(traceback.format_exception_only(raised.value))  # a notebook shows the same text
    assert traceback_end.endswith(f"{raised.value.message}\n{raised.value.hint}\n")
