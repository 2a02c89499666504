"""Adaptation through the command line: what it says, what answers then, and what a concept keeps of it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_small_segmenter, make_swift_segmenter
from PIL import Image
from test_adaptation import striped_patch
from typer.testing import CliRunner, Result

from diffseg_cli import adaptation, assembly
from diffseg_cli.cli import main
from diffseg_cli.config import AdaptConfig
from diffseg_cli.doctor import examine_file
from diffseg_cli.errors import WeightsError
from diffseg_cli.evaluation import evaluate as evaluation_module
from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.supports import support_check
from diffseg_cli.supports.concept import open_concept
from diffseg_cli.weights.files import read_safetensors, write_safetensors

TESTS = Path(__file__).parent
QUICK: dict[str, Any] = {"steps": 2, "batch_size": 1, "lr": 5e-3, "query_views": 2, "support_views": 2}
MOVES = {**QUICK, "found_enough": 2.0, "reach": 0.25}  # it follows the steps, however well it begins
ONE = ("-s", "a.png", "-m", "a_m.png")
TWO = (*ONE, "-s", "b.png", "-m", "b_m.png")
OTHER = ("-s", "other.png", "-m", "other_m.png")
THREE = (*TWO, "-s", "c.png", "-m", "c_m.png")


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main.app, [str(each) for each in arguments])


def done(*arguments: str | Path) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b", "c", "scene", "other")):
        image, mask = striped_patch(seed)
        Image.fromarray(image).save(f"{name}.png")
        Image.fromarray(mask).save(f"{name}_m.png")


@pytest.fixture(autouse=True)
def _loads(small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line loads the small segmenter, with its trained modules."""
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: small_segmenter)


def numbers(monkeypatch: pytest.MonkeyPatch, **values: Any) -> AdaptConfig:
    """The default numbers of an adaptation become these."""
    config = AdaptConfig(**values)
    monkeypatch.setattr(adaptation, "AdaptConfig", lambda: config)
    return config


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> AdaptConfig:
    return numbers(monkeypatch, **MOVES)


def score(folder: str = "diffseg_out", name: str = "scene") -> Any:
    return np.load(f"{folder}/{name}_score.npy")


# --- segment -------------------------------------------------------------------------------------------


def test_segment_answers_with_adapted_modules_and_says_so(
    small_segmenter: Segmenter, moves: AdaptConfig
) -> None:
    result = done("segment", *TWO, "--adapt", "--not", "other.png", "scene.png", "-f", "score", "--json")
    said = re.search(
        r"^Adapted to object: IoU of each support found with the others "
        r"(0\.\d\d) -> (0\.\d\d), reach 0\.25\.$",
        result.stderr,
        re.MULTILINE,
    )
    assert said, result.stderr
    record = json.loads(result.stdout)["adapted"]["object"]
    assert record["reach"] == 0.25
    assert (f"{record['before']:.2f}", f"{record['after']:.2f}") == said.groups()
    other = np.asarray(Image.open("other.png"))
    pairs = [("a.png", "a_m.png"), ("b.png", "b_m.png")]
    adapted = small_segmenter.adapt(pairs, negatives=[other], config=moves)
    assert adapted.trained.digest == record["digest"] != small_segmenter.trained.digest
    support = small_segmenter.encode_support(pairs)
    np.testing.assert_array_equal(score(), adapted.segment("scene.png", support).probability)
    assert not np.array_equal(score(), small_segmenter.segment("scene.png", support).probability)


@pytest.mark.parametrize(
    ("supports", "changes", "said"),
    [
        (
            THREE,
            {"found_enough": 0.0},
            r"Not adapted to object: IoU of each support found with the others is 0\.\d\d ",
        ),
        (ONE, {}, "Not adapted to object: one support says too little about its class, give two or more"),
    ],
)
def test_an_adaptation_that_is_not_followed_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, supports: tuple[str, ...], changes: dict[str, float], said: str
) -> None:
    numbers(monkeypatch, **{**QUICK, **changes})
    result = done("segment", *supports, "--adapt", "scene.png", "-f", "score", "--json")
    assert re.search(said, result.stderr), result.stderr
    assert json.loads(result.stdout)["adapted"]["object"]["reach"] == 0
    adapted = score()
    done("segment", *supports, "scene.png", "-f", "score")
    np.testing.assert_array_equal(adapted, score())


@pytest.mark.usefixtures("moves")
def test_ctrl_c_keeps_the_modules_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(steps(*arguments, **options))
        raise KeyboardInterrupt

    steps = adaptation.adapt_steps
    done("segment", *TWO, "scene.png", "-f", "score")
    plain = score()
    monkeypatch.setattr(adaptation, "adapt_steps", interrupted)
    result = done("segment", *TWO, "--adapt", "scene.png", "-f", "score", "--json")
    assert "note: The adaptation was stopped; the modules stay as they were." in result.stderr
    assert json.loads(result.stdout)["adapted"] == {}
    np.testing.assert_array_equal(plain, score())
    assert open_made("--adapt").adapted is None


def open_made(*more: str) -> Any:
    done("concept", "make", "dog.dsc", *TWO, *more)
    return open_concept(Path("dog.dsc"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("segment -s a.png -m a_m.png scene.png --not b.png", "--not names images that only --adapt learns"),
        ("segment -c dog.dsc scene.png --not b.png", "--not names images that only --adapt learns"),
        ("batch -s a.png -m a_m.png -q scene.png --not b.png", "--not names images that only --adapt learns"),
        ("segment -s a.png -m a_m.png scene.png --not b.png --not-mask b_m.png", "only --adapt learns from"),
        (
            "segment -s a.png -m a_m.png scene.png --adapt --not-mask b_m.png",
            "--not is given 0 times and --not",
        ),
        (
            "concept make b_m.png -s a.png -m a_m.png --adapt --not b.png --not-mask b_m.png",
            "would overwrite",
        ),
        (
            "segment -s a.png -m a_m.png scene.png --adapt --not a.png",
            "is a support and an image without",
        ),
        ("segment -c dog.dsc scene.png --adapt", "diffseg concept make --adapt"),
        ("concept make new.dsc -s a.png -m a_m.png --checkpoint x", "only --adapt reads"),
        ("concept make b.png -s a.png -m a_m.png --adapt --not b.png", "would overwrite an image"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: str, said: str) -> None:
    done("concept", "make", "dog.dsc", *ONE)
    before = {path: path.read_bytes() for path in Path().iterdir()}
    result = run(*arguments.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def test_there_must_be_modules_to_adapt(monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> None:
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: make_swift_segmenter(small_segmenter))
    result = run("segment", *ONE, "scene.png", "--adapt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "There are no trained modules to adapt." in result.stderr


# --- the concept's file --------------------------------------------------------------------------------


@pytest.mark.usefixtures("moves")
def test_a_concept_keeps_what_was_measured(small_segmenter: Segmenter) -> None:
    result = done("concept", "make", "dog.dsc", *TWO, "--adapt", "--json")
    assert "Adapted to dog: IoU of each support found with the others" in result.stderr
    first = Path("dog.dsc").read_bytes()
    done("concept", "make", "dog.dsc", *TWO, "--adapt")
    assert Path("dog.dsc").read_bytes() == first
    held, metadata = read_safetensors(Path("dog.dsc"))
    assert metadata["format_version"] == "2"
    modules = {name: tensor for name, tensor in held.items() if name.startswith("adapted.")}
    assert {tensor.dtype for tensor in modules.values()} == {torch.float16}
    told = done(
        "segment", *TWO, "--name", "dog", "--adapt", "scene.png", "-f", "score", "-o", "now", "--json"
    )
    later = done("segment", "-c", "dog.dsc", "scene.png", "-f", "score", "-o", "later", "--json")
    assert "dog: adapted modules of dog.dsc, reach 0.25." in later.stderr
    assert json.loads(told.stdout)["adapted"] == json.loads(later.stdout)["adapted"] != {}
    np.testing.assert_array_equal(score("now"), score("later"))
    concept = open_concept(Path("dog.dsc")).concept(small_segmenter)
    assert concept.answering(small_segmenter).trained.presence == small_segmenter.trained.presence


@pytest.mark.usefixtures("moves")
def test_show_and_doctor_say_what_is_in_it() -> None:
    assert open_made().adapted is None
    assert read_safetensors(Path("dog.dsc"))[1]["format_version"] == "1"
    assert "adapted" not in done("concept", "show", "dog.dsc").stdout
    saved = open_made("--adapt")
    (line,) = [each for each in done("concept", "show", "dog.dsc").stdout.splitlines() if "adapted" in each]
    assert re.fullmatch(r"  adapted   IoU 0\.\d\d -> 0\.\d\d, reach 0\.25", line)
    row = json.loads(done("concept", "show", "dog.dsc", "--json").stdout)["adapted"]
    assert (row["reach"], row["before"], row["after"]) == (0.25, saved.adapted.before, saved.adapted.after)
    assert "concept 'dog' of 2 supports, adapted, made with compact" in examine_file(Path("dog.dsc")).what


@pytest.mark.parametrize(("supports", "changes"), [(THREE, {"found_enough": 0.0}), (ONE, {})])
def test_a_concept_that_did_not_gain_answers_with_the_modules_in_use(
    monkeypatch: pytest.MonkeyPatch,
    small_segmenter: Segmenter,
    supports: tuple[str, ...],
    changes: dict[str, float],
) -> None:
    numbers(monkeypatch, **{**QUICK, **changes})
    done("concept", "make", "dog.dsc", *supports, "--adapt")
    saved = open_concept(Path("dog.dsc"))
    assert saved.adapted is not None and saved.adapted.reach == 0
    assert (saved.adapted.before is None) == (len(saved.sources) == 1)
    assert not [name for name in read_safetensors(saved.file)[0] if name.startswith("adapted.")]
    assert saved.concept(small_segmenter).answering(small_segmenter).trained is small_segmenter.trained
    assert "it did not help" in done("concept", "show", "dog.dsc").stdout


@pytest.mark.usefixtures("moves")
def test_check_asks_the_adapted_modules(monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> None:
    numbers(monkeypatch, **QUICK)
    done("concept", "make", "dog.dsc", *THREE, "--adapt")
    asked = []
    check = support_check.check_supports
    monkeypatch.setattr(
        support_check, "check_supports", lambda *given: asked.append(given[0].trained.digest) or check(*given)
    )
    done("concept", "check", "dog.dsc")
    adapted = open_concept(Path("dog.dsc")).concept(small_segmenter).adapted
    assert adapted is not None
    assert asked == [adapted.trained.digest]


def damaged(**record: Any) -> None:
    """Write the concept again with other values in the record of its modules."""
    held, metadata = read_safetensors(Path("dog.dsc"))
    told = json.dumps({**json.loads(metadata["adapted"]), **record})
    write_safetensors(Path("dog.dsc"), held, {**metadata, "adapted": told})


@pytest.mark.usefixtures("moves")
@pytest.mark.parametrize(
    "record",
    [
        *({"reach": 2.0}, {"reach": "all"}, {"reach": 0.5}, {"after": float("nan")}, {"mask_gamma": 0}),
        *({"mask_gamma": 2.0}, {"knowledge": "all"}, {"knowledge": 3}, {"presence": {"weights": [1]}}),
        *(
            {"presence": 5},
            {"before": None, "after": None},
            {"image_size": 1.5},
            {"digest": "other"},
            {"unknown": 1},
            {"start": None},
        ),
    ],
)
def test_a_record_that_somebody_edited_is_refused(small_segmenter: Segmenter, record: dict[str, Any]) -> None:
    open_made("--adapt")
    damaged(**record)
    with pytest.raises(WeightsError, match=r"dog\.dsc is damaged"):
        open_concept(Path("dog.dsc")).concept(small_segmenter)


@pytest.mark.usefixtures("moves")
def test_tensors_that_are_not_those_of_the_modules_are_refused(small_segmenter: Segmenter) -> None:
    open_made("--adapt")
    held, metadata = read_safetensors(Path("dog.dsc"))
    name = next(name for name in held if name.startswith("adapted."))
    rest = {other: tensor for other, tensor in held.items() if other != name}
    for tensors in (
        {**rest, name: torch.full_like(held[name], torch.nan)},
        {**rest, name: held[name].float()},
        {**rest, name: held[name] * 2},
        {**rest, name: held[name][None]},
        rest,
        {**held, "adapted.more": held[name]},
    ):
        write_safetensors(Path("dog.dsc"), tensors, metadata)
        with pytest.raises(WeightsError, match=r"dog\.dsc is damaged"):
            open_concept(Path("dog.dsc")).concept(small_segmenter)


@pytest.mark.usefixtures("moves")
def test_a_concept_fits_the_modules_it_was_adapted_from(small_segmenter: Segmenter) -> None:
    saved = open_made("--adapt")
    trained = small_segmenter.trained
    double = small_segmenter.with_trained(replace(trained, modules=trained.modules))
    assert saved.concept(double).adapted is not None
    other = small_segmenter.with_trained(replace(trained, mask_gamma=0.5))
    with pytest.raises(WeightsError, match=r"dog\.dsc was adapted from other SCM and PAM \(.*\) than those"):
        saved.concept(other)
    assert saved.concept(make_swift_segmenter(small_segmenter)).adapted is None  # a head that reads none


@pytest.mark.usefixtures("moves")
def test_in_half_precision_it_adapts_and_reads_what_full_precision_adapted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = make_small_segmenter()
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: full)
    saved = open_made("--adapt")
    modules = full.trained.modules.to(torch.bfloat16)
    half = replace(full, trained=replace(full.trained, modules=modules))
    half.backbone.to(dtype=torch.bfloat16)  # type: ignore[attr-defined]
    assert half.hed is not None
    half.hed.to(torch.bfloat16)
    read = saved.concept(half).adapted
    assert {value.dtype for value in read.trained.modules.state_dict().values()} == {torch.bfloat16}
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: half)
    row = json.loads(
        done("segment", *TWO, "--adapt", "scene.png", "-f", "score", "-o", "now", "--json").stdout
    )
    again = open_made("--adapt").concept(half).adapted
    assert again.trained.digest == row["adapted"]["object"]["digest"] != read.trained.digest
    assert np.isfinite(score("now")).all()


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conftest import make_small_segmenter
from diffseg_cli import adaptation, assembly
from diffseg_cli.cli import main
segmenter = make_small_segmenter()
assembly.load_segmenter = lambda **_: segmenter
def slow(*_, **__):
    Path("started").touch()
    time.sleep(600)
    yield
adaptation.adapt_steps = slow
main.app("concept make dog.dsc -s a.png -m a_m.png --adapt".split())
"""


def test_killed_while_adapting_leaves_nothing() -> None:
    before = {path: path.read_bytes() for path in Path().iterdir()}
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(TESTS)], env=environment)
    try:
        for _ in range(1200):
            if Path("started").exists() or child.poll() is not None:
                break
            time.sleep(0.1)
        assert child.poll() is None
    finally:
        child.kill()
        code = child.wait()
    assert code == -signal.SIGKILL
    Path("started").unlink()
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


# --- many images and several concepts ------------------------------------------------------------------


def test_a_batch_goes_on_only_with_the_same_adaptation(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list.txt").write_text("scene.png\nother.png\n")
    numbers(monkeypatch, **MOVES)
    assert batch_states() == {"done"}
    assert batch_states("--adapt") == {"done"}
    assert batch_states("--adapt") == {"skipped"}
    numbers(monkeypatch, **{**MOVES, "lr": 1e-3})
    assert batch_states("--adapt") == {"done"}
    rows = [json.loads(row) for row in Path("diffseg_out/manifest.jsonl").read_bytes().splitlines()]
    settings = [row["record"]["what"] for row in rows if "what" in row.get("record", {})]
    told = [each["concepts"][0].get("adapted") for each in settings]
    assert told[0] is None
    assert [record["reach"] for record in told[1:]] == [0.25, 0.25]


def batch_states(*arguments: str) -> set[str]:
    rows = done("batch", *TWO, "-q", "list.txt", "-f", "mask", "--json", *arguments).stdout
    return {json.loads(row)["state"] for row in rows.splitlines()}


@pytest.mark.usefixtures("moves")
def test_each_concept_is_answered_by_its_own_modules_and_images_are_encoded_once(
    monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter
) -> None:
    for name in "ab":
        done("concept", "make", f"{name}.dsc", *OTHER, "-s", f"{name}.png", "-m", f"{name}_m.png", "--adapt")
    done("concept", "make", "c.dsc", "-s", "c.png", "-m", "c_m.png")
    encoded = []
    encode = Segmenter.encode_queries
    monkeypatch.setattr(Segmenter, "encode_queries", lambda s, q: encoded.append(len(q)) or encode(s, q))
    concepts = ("-c", "a.dsc", "-c", "b.dsc", "-c", "c.dsc")
    row = json.loads(done("segment", *concepts, "scene.png", "-f", "score", "--json").stdout)
    assert encoded == [1]
    assert set(row["adapted"]) == {"a", "b"}
    for place, name in enumerate("abc"):
        concept = open_concept(Path(f"{name}.dsc")).concept(small_segmenter)
        alone = concept.answering(small_segmenter).segment("scene.png", concept.support)
        np.testing.assert_array_equal(score()[place], alone.probability)


# --- evaluate ------------------------------------------------------------------------------------------


def evaluate(*arguments: str) -> dict[str, Any]:
    result = done("evaluate", "--root", "classes", "--json", *arguments)
    record: dict[str, Any] = json.loads(result.stdout)
    return record


@pytest.fixture
def _classes() -> None:
    for number in range(8):
        image, mask = striped_patch(30 + number)
        folder = Path("classes", ("red", "striped")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.jpg")
        Image.fromarray(mask).save(folder / f"{number}.png")


@pytest.mark.usefixtures("moves", "_classes")
def test_evaluate_adapts_once_per_support_set_beside_the_plain_model(
    monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter
) -> None:
    presence = PresenceCalibration((1.0, 1.0, 1.0), 0.0)
    scored = small_segmenter.with_trained(replace(small_segmenter.trained, presence=presence))
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: scored)
    sets = []
    steps = adaptation.adapt_steps

    def counted(segmenter: Segmenter, pairs: Any) -> Iterator[Any]:
        sets.append(len(pairs))
        return steps(segmenter, pairs)

    monkeypatch.setattr(evaluation_module, "adapt_steps", counted)
    words = ("--shots", "2", "--episodes-per-class", "2", "--queries-per-set", "2")
    words = (*words, "--peer", "prototype-adapted")
    record = evaluate(*words, "--adapt", "--out", "report")
    assert sets == [2, 2]
    assert list(record["methods"]) == ["model", "adapted", "prototype-adapted"]
    assert record["adapted"]["share_moved"] == 1
    assert record["adapted"]["mean_reach"] == 0.25
    for name, row in record["adapted"]["classes"].items():
        before, after = (record["methods"][method]["per_class"][name] for method in ("model", "adapted"))
        assert (row["reach"], row["difference"]) == (0.25, after - before)
    assert (record["adapt"]["steps"], record["queries_per_set"]) == (AdaptConfig.steps, 2)
    assert evaluate(*words)["methods"]["model"] == record["methods"]["model"]
    rows = [json.loads(line) for line in Path("report/episodes.jsonl").read_bytes().splitlines()[1:]]
    assert len(rows) == 4
    assert all(row["adapted"]["reach"] == 0.25 for row in rows)
    assert all(set(row["presence"]) == {"model", "adapted"} for row in rows)
    assert "adapted" in Path("report/report.html").read_text()
    text = done("evaluate", "--root", "classes", *words, "--adapt", "--out", "report").stdout
    assert re.search(
        r"^adapted: modules moved in 100% of the episodes, mean reach 0\.25, \d+ s per support set; "
        r"\d+% of the classes fell by more than 0\.02$",
        text,
        re.M,
    )
    assert re.search(r"^  striped  0\.\d{3}    0\.\d{3}  [+-]0\.\d{3}   0\.25      \d\.\d$", text, re.M)
    assert re.search(
        r"^  presence, adapted: ROC AUC 0\.\d{3}, mean 0\.\d\d with the class, 0\.\d\d without$", text, re.M
    )
    assert sets == [2, 2]  # everything was there already


@pytest.mark.usefixtures("_classes")
def test_episodes_that_do_not_make_whole_sets_are_refused() -> None:
    result = run("evaluate", "--root", "classes", "--episodes-per-class", "4", "--queries-per-set", "3")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "4 episodes per class do not divide into sets of 3 queries." in result.stderr
