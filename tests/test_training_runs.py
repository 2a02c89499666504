"""Training runs as a person meets them: killed, in two processes, on Kandinsky, on wrong folders."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from diffseg_cli import compute
from diffseg_cli.assembly import load_segmenter
from diffseg_cli.choices.training import FormChoice, TrainPlan
from diffseg_cli.cli.main import app
from diffseg_cli.config import FineTuneConfig, TrainConfig
from diffseg_cli.datasets.episode import read_folder
from diffseg_cli.errors import InputError, MissingDependency, UsageError
from diffseg_cli.loading import load_compact
from diffseg_cli.training.feature_cache import FeatureCache
from diffseg_cli.training.jobs import modules_job, start_of, train_config
from diffseg_cli.training.own_classes import hold_out
from diffseg_cli.training.plots import BOARD, CURVES
from diffseg_cli.training.process_group import ProcessGroup
from diffseg_cli.training.run_state import LOG, MODULES, STATE, read_log
from diffseg_cli.weights.checkpoint import read_checkpoint_info
from diffseg_cli.weights.files import read_safetensors
from tests import tiny_kandinsky

SMALL = ["--image-size", "128", "--batch-size", "2", "--views", "1", "--device", "cpu"]


def make_classes(root: Path, pictures: int = 6) -> Path:
    """Two classes of coloured shapes on noise."""
    generator = np.random.default_rng(0)
    for name, colour in (("ball", (230, 60, 40)), ("brick", (40, 90, 220))):
        (root / name).mkdir(parents=True)
        for index in range(pictures):
            noise = generator.integers(60, 160, (96, 128, 3), dtype=np.uint8)
            image, mask = Image.fromarray(noise), Image.new("L", (128, 96), 0)
            left, top = (int(v) for v in generator.integers(5, 50, 2))
            for canvas, fill in ((image, colour), (mask, 255)):
                ImageDraw.Draw(canvas).ellipse((left, top, left + 45, top + 40), fill=fill)
            image.save(root / name / f"{index}.jpg", quality=95)
            mask.save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classes(tmp_path_factory.mktemp("classes"))


def command(classes: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--root", str(classes), "--out", str(out), "--init", "none", *SMALL, *more]


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """A run of its own; one thread, because the number of threads decides the order of sums."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", *words], env=environment, stderr=subprocess.DEVNULL)


def test_a_run_killed_anywhere_ends_bit_for_bit_like_an_undisturbed_one(
    classes: Path, tmp_path: Path
) -> None:
    more = ["--steps", "30", "--save-every", "3", "--validate-every", "10"]
    undisturbed = start(["diffseg_cli", *command(classes, tmp_path / "whole", *more)])
    cut = ["diffseg_cli", *command(classes, tmp_path / "cut", *more)]
    generator = random.Random(0)
    # The first kill falls while the cache is built, the second while it trains.
    for awaited in (tmp_path / "cut" / "cache", tmp_path / "cut" / STATE):
        process = start(cut)
        while not awaited.exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(generator.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(cut).wait() == 0 and undisturbed.wait() == 0
    for name in (MODULES, STATE):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (tmp_path / "cut" / LOG).read_text() == (tmp_path / "whole" / LOG).read_text()
    steps = [record["step"] for record in read_log(tmp_path / "cut")]
    assert steps == sorted(set(steps)) and steps[-1] == 30


def test_two_processes_do_what_one_does(classes: Path, tmp_path: Path) -> None:
    """Through accelerate, dropout and all; only the order of sums differs."""
    more = ["--steps", "4", "--recipe", "paper", "--precision", "fp32", "--cache", str(tmp_path / "cache")]
    assert start(["diffseg_cli", *command(classes, tmp_path / "one", *more)]).wait() == 0
    # `accelerate launch` starts one process a GPU; on CPUs torch's own launcher starts several.
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "diffseg_cli"]
    assert start([*launch, *command(classes, tmp_path / "two", *more)]).wait() == 0
    one, two = (read_safetensors(tmp_path / name / STATE)[0] for name in ("one", "two"))
    weights = [name for name in one if name.startswith("model.")]
    apart = max(float((one[name] - two[name]).abs().max()) for name in weights)
    # The average lags behind the weights by about as much as they moved.
    moved = max(float((one[name] - one[name.replace("model", "average", 1)]).abs().max()) for name in weights)
    assert moved > 1e-4 and apart < 1e-3 * moved
    logs = [read_log(tmp_path / name)[-1]["losses"] for name in ("one", "two")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert read_checkpoint_info(tmp_path / "two" / MODULES).training["processes"] == 2


def test_several_processes_need_accelerate_and_an_even_batch(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [ProcessGroup(rank, 2).share(8) for rank in (0, 1)] == [slice(0, 4), slice(4, 8)]
    with pytest.raises(UsageError, match="shared evenly"):
        ProcessGroup(0, 2).share(7)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingDependency, match="accelerate"):
        next(modules_job(TrainPlan(classes, tmp_path)))


@pytest.fixture(scope="module")
def kandinsky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_kandinsky.build(tmp_path_factory.mktemp("kandinsky"))


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_kandinsky_trains_and_its_checkpoint_is_used(
    classes: Path, kandinsky: Path, tmp_path: Path, recipe: str
) -> None:
    words = ["train", "--root", str(classes), "--out", str(tmp_path), "--model", str(kandinsky)]
    words += ["--recipe", recipe, "--steps", "2", "--batch-size", "2", "--views", "1", "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    info = read_checkpoint_info(tmp_path / MODULES)
    assert info.backbone == "kandinsky-2-2" and info.training["init"] is None
    segmenter = load_segmenter(str(kandinsky), tmp_path / MODULES, "cpu")
    assert segmenter.head == "pam" and set(segmenter.trained.modules) == {"scm", "pam"}
    sample = classes / "ball" / "0.jpg"
    prediction = segmenter.segment(sample, segmenter.encode_support([(sample, sample.with_suffix(".png"))]))
    assert prediction.mask.shape == (96, 128)


def test_own_classes_start_from_the_shipped_modules_and_never_end_worse(
    classes: Path, tmp_path: Path
) -> None:
    """A learning rate that ruins everything leaves the weights it started from."""
    words = ["train", "--root", str(classes), "--out", str(tmp_path), "--steps", "3", "--lr", "10"]
    words += ["--batch-size", "2", "--views", "1", "--device", "cpu", "--tensorboard"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    log = read_log(tmp_path)
    assert log[0]["step"] == 0 and log[-1]["step"] == 3
    info = read_checkpoint_info(tmp_path / MODULES)
    assert info.metrics["all"] == max(record["validation"]["all"] for record in log if record["validation"])
    assert info.training["init"] == "shipped" and info.training["held_out_images"] == 4
    with Image.open(tmp_path / CURVES) as curves:
        assert curves.size[0] > 1000
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / BOARD)).Reload()
    assert {"loss/map", "lr", "mean_iou/all"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("lr")] == [0, 1, 2, 3]


def test_held_out_pictures_are_a_quarter_and_never_trained_on(classes: Path, tmp_path: Path) -> None:
    dataset = read_folder(classes)
    kept, held = hold_out(dataset, 0)
    assert held is not None and not {s.image for s in kept.samples} & {s.image for s in held.samples}
    assert [len(members) for members in held.by_class.values()] == [2, 2]
    assert len(kept.samples) + len(held.samples) == len(dataset.samples)
    few = read_folder(make_classes(tmp_path / "few", pictures=3))
    assert hold_out(few, 0) == (few, None)


def spoil(root: Path, how: str) -> None:
    if how == "mask missing":
        (root / "ball" / "3.png").unlink()
    elif how == "one picture":
        (root / "lone").mkdir()
        for suffix in (".jpg", ".png"):
            (root / "lone" / f"0{suffix}").write_bytes((root / "ball" / f"0{suffix}").read_bytes())
    elif how == "empty mask":
        Image.new("L", (128, 96), 0).save(root / "brick" / "2.png")
    else:
        Image.new("L", (64, 48), 255).save(root / "brick" / "2.png")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("mask missing", r"3\.jpg has no mask"),
        ("one picture", "lone holds a single image"),
        ("empty mask", r"brick/2\.png"),
        ("other size", r"brick/2\.png"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path, how: str, text: str) -> None:
    root = make_classes(tmp_path / "classes")
    spoil(root, how)
    plan = TrainPlan(root, tmp_path / "out", views=1, device="cpu")
    with pytest.raises(InputError, match=text):
        list(modules_job(plan))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"recipe": "home"}, "recipe 'home'"),
        ({"dataset": "pascal-5i"}, "one fold at a time"),
        ({"fold": 1}, "no fold 1"),
        ({"val_split": "val"}, "no splits"),
    ],
)
def test_plans_that_contradict_themselves(classes: Path, tmp_path: Path, changes: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        next(modules_job(TrainPlan(classes, tmp_path, **changes)))


@pytest.mark.parametrize("changes", [{"dataset": "folder"}, {"dataset": "pascal-5i", "fold": 0}])
def test_val_sources_without_a_val_split_are_refused(tmp_path: Path, changes: dict) -> None:
    (tmp_path / "index.csv").write_text("source,class,id,also_in_image,split\n")
    with pytest.raises(UsageError, match="of --val-split, which is missing"):
        next(modules_job(TrainPlan(tmp_path, tmp_path / "out", val_sources="voc", **changes)))


def test_another_run_in_the_same_folder_is_refused(classes: Path, tmp_path: Path) -> None:
    words = command(classes, tmp_path, "--steps", "1")
    assert CliRunner().invoke(app, words).exit_code == 0
    again = CliRunner().invoke(app, [*words, "--seed", "1"])
    assert again.exit_code == 3 and "another run" in again.stderr and "seed" in again.stderr


def test_fine_tuning_has_numbers_of_its_own(classes: Path, tmp_path: Path) -> None:
    tuned = train_config(TrainPlan(classes, tmp_path))
    fresh = train_config(TrainPlan(classes, tmp_path, init="none"))
    assert (tuned.steps, tuned.lr) == (FineTuneConfig.steps, FineTuneConfig.lr)
    assert (fresh.steps, fresh.lr) == (TrainConfig.steps, TrainConfig.lr)
    assert start_of(TrainPlan(classes, tmp_path, model="kandinsky-2-2")) is None
    for form in (FormChoice(modules="scm"), FormChoice(pam_attentions="conv,attention,attention")):
        assert start_of(TrainPlan(classes, tmp_path, form=form)) is None  # shipped weights do not fit these


def test_a_fold_of_pascal_is_trained_with_nothing_to_validate_on(tmp_path: Path) -> None:
    voc, generator = tmp_path / "VOC2012", np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    names = [f"2007_00000{index}" for index in range(6)]
    for index, name in enumerate(names):
        labels = np.zeros((80, 100), np.uint8)
        labels[10:60, 20:70] = (8, 12)[index % 2]  # cat and dog, not among the five of fold 0
        labels[60:63] = 255
        picture = generator.integers(0, 255, (80, 100, 3), np.uint8)
        Image.fromarray(picture).save(voc / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(labels).save(voc / "SegmentationClass" / f"{name}.png")
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("\n".join(names))
    words = ["train", "--dataset", "pascal-5i", "--fold", "0", "--root", str(tmp_path), *SMALL]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--steps", "2"])
    assert result.exit_code == 0, result.output
    info = read_checkpoint_info(tmp_path / "out" / MODULES)
    assert (info.training["dataset"], info.training["fold"], info.training["step"]) == ("pascal-5i", 0, 2)
    assert info.training["classes"] == 2 and info.training["held_out_images"] == 0
    assert load_segmenter(checkpoint=tmp_path / "out" / MODULES, device="cpu").backbone.image_size == 128


def test_float32_means_all_of_a_run(classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache, steps and validation; and a cache made in bfloat16 is not taken for it."""
    monkeypatch.setattr(compute, "has_bfloat16", lambda _device: True)
    formats, real = [], torch.autocast

    def autocast(*words: object, **options: object) -> torch.autocast:
        formats.append(options.get("enabled", True))
        return real(*words, **options)

    monkeypatch.setattr(torch, "autocast", autocast)
    words = command(classes, tmp_path / "out", "--steps", "1", "--precision", "fp32", "--image-size", "64")
    assert CliRunner().invoke(app, words).exit_code == 0
    assert len(formats) > 3 and not any(formats)
    backbone, dataset = load_compact(device=torch.device("cpu"), image_size=64), read_folder(classes)
    half, full = (
        FeatureCache(tmp_path, dataset, backbone, None, views=1, precision=precision).folder
        for precision in ("bf16", "fp32")
    )
    assert half != full
