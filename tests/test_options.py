"""No verb ignores an option: each group, given whole and with no value that is its default, arrives."""

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_swift_segmenter
from PIL import Image
from typer.testing import CliRunner, Result

from diffseg_cli import adaptation, assembly, loading
from diffseg_cli.batch import session
from diffseg_cli.choices import (
    AdaptChoice,
    AnswerChoice,
    BackboneChoice,
    MaskChoice,
    ModelChoice,
    SupportChoice,
)
from diffseg_cli.choices.evaluation import EvaluationPlan
from diffseg_cli.choices.training import FormChoice, TrainPlan
from diffseg_cli.cli import inputs, main
from diffseg_cli.cli.options import FormatChoice
from diffseg_cli.config import LookConfig, ModulesConfig, PamConfig, ScmConfig, SegmentConfig
from diffseg_cli.errors import DiffsegError
from diffseg_cli.evaluation import benchmark
from diffseg_cli.reading import image_io
from diffseg_cli.results import outputs
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.supports.concept import SupportSet, source_of, write_concept
from diffseg_cli.training import jobs

Seen = list[dict[str, Any]]
HW = (48, 64)

# What is typed, and the value that must arrive: one for every field, and never its default.
BACKBONE = {
    "model": ("--model kandinsky-2-2", "kandinsky-2-2"),
    "device": ("--device cuda:3", "cuda:3"),
    "dtype": ("--dtype float16", "float16"),
    "offload": ("--offload", True),
    "support_crop": ("--support-crop whole", "whole"),
}
MODEL = {
    **BACKBONE,
    "checkpoint": ("--checkpoint x.safetensors", Path("x.safetensors")),
    "head": ("--head attention", "attention"),
    "fusion": ("--fusion mean", "mean"),
    "timesteps": ("--timesteps 10,50", (10, 50)),
    "cross_map": ("--cross-map contrast", "contrast"),
}
MASKS = {
    "label": ("--label 3", (3,)),
    "color": ("--color C81E28", ("C81E28",)),
    "category": ("--category dog", "dog"),
    "annotation": ("--annotation 5", ("5",)),
    "ignore_crowd": ("--ignore-crowd", True),
    "invert": ("--invert-mask", True),
    "fit": ("--fit-mask", True),
}
ANSWER = {
    "threshold": ("--threshold 0.25", 0.25),
    "min_presence": ("--min-presence 0.125", 0.125),
    "refine": ("--no-refine", False),
    "min_area": ("--min-area 2.5%", "2.5%"),
    "zoom": ("--zoom 7", "7"),
    "instances": ("--instances", True),
    "seed": ("--seed 7", 7),
}
ADAPT = {
    "adapt": ("--adapt", True),
    "negatives": ("--not scene.png --not other.png", (Path("scene.png"), Path("other.png"))),
    "negative_masks": ("--not-mask a_m.png", (Path("a_m.png"),)),
}
FORMATS = {
    "formats": ("-f cutout -f coco", ("cutout", "coco")),
    "matting": ("--matting", True),
}
SUPPORTS = "--support a.png --mask a_m.png"
VERBS = {
    "segment": f"segment {SUPPORTS} -q scene.png",
    "batch": f"batch {SUPPORTS} -q scene.png",
    "watch": f"watch inbox {SUPPORTS}",
    "attn": f"attn {SUPPORTS} -q scene.png",
    "serve": "serve --port 0",
    "evaluate": "evaluate --root classes",
    "bench": "bench",
    "concept make": f"concept make new.dsc {SUPPORTS}",
    "concept check": "concept check three.dsc",
}


class Reached(DiffsegError):
    """The value is there; nothing more needs to happen."""


def words(table: dict[str, tuple[str, Any]]) -> str:
    return " ".join(typed for typed, _ in table.values())


def values(table: dict[str, tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, (_, value) in table.items()}


def run(command: str) -> Result:
    result = CliRunner().invoke(main.app, command.split())
    assert "Usage:" not in result.output, result.output
    return result


def spy(patch: pytest.MonkeyPatch, owner: Any, name: str, told: Callable[..., dict[str, Any]]) -> Seen:
    """Write down what a function is called with, and go no further."""
    seen: Seen = []

    def instead(*arguments: Any, **options: Any) -> None:
        seen.append(told(*arguments, **options))
        raise Reached("reached")

    patch.setattr(owner, name, instead)
    return seen


def keywords(*_: Any, **options: Any) -> dict[str, Any]:
    return options


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    mask = np.zeros(HW, dtype=np.uint8)
    mask[10:35, 20:50] = 255
    for name in ("inbox", "classes/dog"):
        Path(name).mkdir(parents=True)
    for name in ("a", "scene", "other", "classes/dog/1", "classes/dog/2", "classes/dog/3"):
        image = Image.fromarray(generator.integers(0, 255, (*HW, 3), dtype=np.uint8))
        image.save(f"{name}.jpg" if "/" in name else f"{name}.png")
        Image.fromarray(mask).save(f"{name}.png" if "/" in name else f"{name}_m.png")
    pairs = [(np.asarray(image), mask > 0)] * 3
    sources = [source_of(Path("a.png"), Path("a_m.png"))] * 3
    write_concept(Path("three.dsc"), small_segmenter, SupportSet("dog", pairs, sources))


@pytest.fixture
def swift(monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> None:
    """A model with a presence score, so that every option of the answer may be asked for."""
    answer = make_swift_segmenter(small_segmenter)
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: answer)


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (BackboneChoice, BACKBONE),
        (ModelChoice, MODEL),
        (MaskChoice, MASKS),
        (AdaptChoice, ADAPT),
        (AnswerChoice, ANSWER),
        (FormatChoice, FORMATS),
    ],
)
def test_every_option_has_a_value_here_that_is_not_its_default(kind: Any, table: dict[str, Any]) -> None:
    assert {field.name for field in fields(kind)} == set(table)
    assert not [name for name, value in values(table).items() if value == getattr(kind(), name)]


@pytest.mark.parametrize(
    ("kind", "function", "own"),
    [
        (ModelChoice, assembly.load_segmenter, set()),
        (AnswerChoice, Segmenter.segment_encoded, {"self", "queries", "support"}),
        (MaskChoice, image_io.read_mask, {"source", "target", "most_pixels"}),
    ],
)
def test_fields_are_the_arguments_of_what_uses_them(
    kind: Any, function: Callable[..., Any], own: set[str]
) -> None:
    elsewhere = {"fit", "instances"}  # `read_pair` and `find_in` do those themselves
    assert {field.name for field in fields(kind)} - elsewhere == set(
        inspect.signature(function).parameters
    ) - own


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "concept make"])
def test_model_options_reach_the_loader(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    seen = spy(monkeypatch, assembly, "load_segmenter", keywords)
    run(f"{VERBS[verb]} {words(MODEL)}")
    assert seen == [values(MODEL)]


def test_a_concept_is_made_by_the_backbone_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch, assembly, "load_segmenter", keywords)
    run(f"{VERBS['concept make']} {words(BACKBONE)}")
    assert [{name: options[name] for name in BACKBONE} for options in seen] == [values(BACKBONE)]


@pytest.mark.parametrize("verb", ["segment", "batch", "watch", "attn", "concept make"])
def test_mask_options_reach_the_reader(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    seen = spy(monkeypatch, image_io, "read_pairs", lambda *given: vars(given[2]))
    run(f"{VERBS[verb]} {words(MASKS)}")
    assert seen == [values(MASKS)]


@pytest.mark.usefixtures("swift")
@pytest.mark.parametrize("verb", ["segment", "batch", "watch", "attn", "concept make"])
def test_an_adaptation_gets_its_negatives(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    seen = spy(monkeypatch, adaptation, "adapt_steps", keywords)
    run(f"{VERBS[verb]} {words(ADAPT)}")
    ((marked, whole),) = [options["negatives"] for options in seen]
    np.testing.assert_array_equal(marked[0], np.asarray(Image.open("scene.png")))
    np.testing.assert_array_equal(marked[1], np.asarray(Image.open("a_m.png")) > 0)
    np.testing.assert_array_equal(whole[0], np.asarray(Image.open("other.png")))
    assert whole[1] is None


@pytest.mark.usefixtures("swift")
@pytest.mark.parametrize("verb", ["segment", "batch"])
def test_answer_options_reach_the_segmenter(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    seen = spy(monkeypatch, Segmenter, "segment_encoded", keywords)
    run(f"{VERBS[verb]} {words(ANSWER)}")
    assert seen == [{name: value for name, value in values(ANSWER).items() if name != "instances"}]


def test_watch_works_as_batch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job is that of batch, whose answers are tested above."""
    seen = spy(monkeypatch, session, "Session", lambda job, *_, **__: {"answer": job.answer})
    run(f"{VERBS['watch']} {words(ANSWER)}")
    assert seen == [{"answer": AnswerChoice(**values(ANSWER))}]


@pytest.mark.parametrize("verb", ["segment", "batch", "watch"])
def test_format_options_reach_the_writer(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    seen = spy(
        monkeypatch,
        outputs,
        "choose_formats",
        lambda formats, matting, instances: {  # noqa: ARG005 - of the answer, tested above
            "formats": formats,
            "matting": matting,
        },
    )
    run(f"{VERBS[verb]} {words(FORMATS)}")
    assert seen == [values(FORMATS)]


@pytest.mark.usefixtures("swift")
def test_attn_looks_with_the_seed_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch, Segmenter, "look", keywords)
    run(f"{VERBS['attn']} --seed 7")
    assert [options["seed"] for options in seen] == [7]


def test_names_and_concepts_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in ("segment", "attn", "batch", "watch"):
        seen = spy(monkeypatch, inputs, "read_concepts", lambda supports, *_: vars(supports))
        run(f"{VERBS[verb]} -s b.png -m b_m.png -c three.dsc --name rex")
        files = [(Path("a.png"), Path("b.png")), (Path("a_m.png"), Path("b_m.png")), (Path("three.dsc"),)]
        assert seen == [vars(SupportChoice(*files, "rex"))], verb


# --- from the loader to the look -----------------------------------------------------------------------


def test_the_loader_hands_on_what_it_was_given(
    monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter
) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_backbone(*arguments: Any) -> Any:
        asked.append(arguments)
        return small_segmenter.backbone

    monkeypatch.setattr(loading, "load_backbone", load_backbone)
    loaded = assembly.load_chosen(
        ModelChoice(
            "kandinsky-2-2",
            "cpu",
            "bfloat16",
            True,
            "whole",
            head="attention",
            fusion="mean",
            timesteps=(10, 50),
            cross_map="balanced",
        )
    )
    assert asked[0][:4] == ("kandinsky-2-2", torch.device("cpu"), torch.bfloat16, True)
    assert loaded.head == "attention"
    assert loaded.settings == SegmentConfig((10, 50), "balanced", "whole", "mean")


def test_the_look_is_at_the_timesteps_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter
) -> None:
    looking = replace(make_swift_segmenter(small_segmenter), settings=SegmentConfig(timesteps=(10, 50)))
    seen = spy(monkeypatch, type(looking.backbone), "look", keywords)
    image = np.zeros((*HW, 3), np.uint8)
    mask = np.zeros(HW, bool)
    mask[10:30, 10:30] = True
    support = looking.encode_support([(image, mask)])
    with pytest.raises(Reached):
        looking.segment(image, support)
    with pytest.raises(Reached):
        looking.look(image, support)
    assert [options["timesteps"] for options in seen] == [(10, 50)] * 2


# --- verbs with options of their own -------------------------------------------------------------------


def test_train_ignores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch, jobs, "modules_job", vars)
    options = (
        "--dataset pascal-5i --fold 2 --split trn --val-split test --val-sources a,b --views 3 --cache c "
        "--init none --recipe paper --steps 5 --lr 0.5 --batch-size 2 --channel-dropout 0.25 "
        "--query-dropout 0.125 --validate-every 4 --save-every 3 --seed 9 --precision fp32 --tensorboard "
        "--modules pam --knowledge cross --pam-attentions conv,none,attention --image-size 128 "
        "--model kandinsky-2-2 --device cuda:3 --dtype float16 --timesteps 10,50 --cross-map balanced "
        "--support-crop whole"
    )
    run(f"train --root classes --out runs {options}")
    form = FormChoice(
        **{"modules": "pam", "knowledge": "cross", "pam_attentions": "conv,none,attention"},
        **{"image_size": 128, "channel_dropout": 0.25, "query_dropout": 0.125},
        **{"timesteps": (10, 50), "cross_map": "balanced", "support_crop": "whole"},
    )
    plan = TrainPlan(
        **{"root": Path("classes"), "out": Path("runs"), "dataset": "pascal-5i", "fold": 2, "split": "trn"},
        **{"val_split": "test", "val_sources": "a,b", "views": 3, "cache": Path("c"), "init": "none"},
        **{"recipe": "paper", "steps": 5, "lr": 0.5, "batch_size": 2, "validate_every": 4, "save_every": 3},
        **{"seed": 9, "precision": "fp32", "tensorboard": True},
        **{"model": "kandinsky-2-2", "device": "cuda:3", "dtype": "float16"},
        form=form,
    )
    assert seen == [vars(plan)]
    pam = PamConfig(modes=("conv", "none", "attention"), channel_dropout=0.25, query_dropout=0.125)
    look = LookConfig((10, 50), "balanced", "whole")
    assert jobs.modules_of(plan) == ModulesConfig(None, pam, "cross", 128, look)
    run("train --root classes --out runs --scm-scales 0,2 --scm-separate")
    assert jobs.modules_of(TrainPlan(**seen[1])).scm == ScmConfig(shared=False, scales=(0, 2))


def test_evaluate_ignores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = spy(monkeypatch, benchmark, "Benchmark", vars)
    options = (
        "--dataset coco-20i --fold 2 --split val --sources a,b --shots 5 --runs 3 --episodes-per-class 4 "
        "--seed 9 --episodes-in list.jsonl --peer prototype --peer matcher-lite --peer-weights peers "
        "--adapt --queries-per-set 2 --sweep support-crop,cross-map"
    )
    run(f"evaluate --root classes {options}")
    plan = EvaluationPlan(
        **{"root": Path("classes"), "dataset": "coco-20i", "fold": "2", "split": "val"},
        **{"sources": ("a", "b"), "shots": 5, "runs": 3, "episodes_per_class": 4, "seed": 9},
        **{"episodes_in": Path("list.jsonl"), "peers": ("prototype", "matcher-lite")},
        **{"peer_weights": Path("peers"), "adapt": True, "queries_per_set": 2},
        sweep="support-crop,cross-map",
    )
    assert seen == [vars(plan)]
