"""Evaluations whole: lists of episodes, ignored pixels, resuming, and the same sums however divided."""

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffseg_cli import assembly
from diffseg_cli.choices import ModelChoice
from diffseg_cli.choices.evaluation import EvaluationPlan
from diffseg_cli.datasets.episode import draw_episode
from diffseg_cli.errors import InputError, MissingDependency, UsageError
from diffseg_cli.evaluation.benchmark import Benchmark, check_peers, choose_folds
from diffseg_cli.evaluation.episode_list import list_hash, read_list, write_list
from diffseg_cli.evaluation.evaluate import REMEMBERED, Evaluation
from diffseg_cli.evaluation.published import FIGURES, FOLDS, PAPER, published_figures
from diffseg_cli.evaluation.spread import run_benchmark
from diffseg_cli.evaluation.summary import EpisodeResult, summarise, telling_episodes
from diffseg_cli.segmenter import Segmenter


def write_classes(root: Path, classes: tuple[str, ...] = ("ball", "brick"), count: int = 4) -> Path:
    """Boxes in the middle of noise, in a palette PNG whose top rows are 255."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            generator = np.random.default_rng([number, index])
            image = generator.integers(60, 160, (48, 64, 3), dtype=np.uint8)
            labels = np.zeros((48, 64), np.uint8)
            top, left = generator.integers(8, 20, 2)
            labels[top : top + 20, left : left + 24] = 1
            labels[:6] = 255
            image[labels == 1] = (230, 60, 40) if number else (40, 90, 220)
            Image.fromarray(image).save(root / name / f"{index}.jpg", quality=95)
            mask = Image.fromarray(labels).convert("P")
            mask.putdata(labels.ravel().tolist())
            mask.putpalette([value for i in range(256) for value in (i, i, 255 - i)])
            mask.save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> Segmenter:
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: small_segmenter)
    return small_segmenter


@pytest.fixture
def plan(classes: Path) -> EvaluationPlan:
    return EvaluationPlan(classes, episodes_per_class=3, runs=2, peers=("prototype",))


# --- one process ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_ignored_pixels_are_not_counted(plan: EvaluationPlan) -> None:
    for result in run_benchmark(Benchmark(plan)):
        for counts in result.counts.values():
            assert counts[1] + counts[2] == 42 * 64 == counts[0] + counts[3]  # without the six rows of 255


@pytest.mark.usefixtures("small")
def test_encodings_are_forgotten_but_results_stay(plan: EvaluationPlan, monkeypatch) -> None:
    expected = list(run_benchmark(Benchmark(plan)))
    assert REMEMBERED >= 2
    monkeypatch.setattr("diffseg_cli.evaluation.evaluate.REMEMBERED", 2)
    assert list(run_benchmark(Benchmark(plan))) == expected


@pytest.mark.usefixtures("small")
def test_runs_draw_other_episodes_and_the_mean_is_over_them(plan: EvaluationPlan) -> None:
    run = Benchmark(plan)
    assert len(run.tasks) == 2 * 3 * 2
    first, second = ([t.episode for t in run.tasks if t.run == r] for r in (0, 1))
    usable = run.dataset(None).with_enough(1)
    assert first == [draw_episode(usable, i, shots=1, seed=0) for i in range(6)]
    done = [result.class_name for result in run_benchmark(run)]
    assert done == sorted(done)  # the encodings of a class are remembered
    assert second == [draw_episode(usable, i, shots=1, seed=1) for i in range(6)] != first
    record = run.record(list(run_benchmark(run)))
    figures = record["methods"]["model"]
    assert figures["mean_iou"]["all"] == pytest.approx(np.mean(figures["mean_iou_runs"]))
    assert len(figures["mean_iou_runs"]) == 2 and record["episodes"] == 12
    assert record["costs"]["model"]["seconds_per_episode"] > 0
    assert record["costs"]["model"]["weights_mib"] > record["costs"]["prototype"]["weights_mib"] > 0
    json.dumps(record, allow_nan=False)


@pytest.mark.usefixtures("small")
def test_a_list_of_episodes_goes_out_and_comes_back(plan: EvaluationPlan, tmp_path: Path) -> None:
    run = Benchmark(plan)
    path = tmp_path / "list.jsonl"
    write_list(path, run.about(), run.lines)
    about, rows = read_list(path)
    assert about["episodes_sha256"] == list_hash(run.lines) and len(rows) == len(run.tasks)
    assert rows[0]["query"]["image"].startswith("ball/") and rows[0]["query"]["mask"].endswith(".png")
    moved = write_classes(tmp_path / "moved")  # the same pictures elsewhere
    again = Benchmark(dataclasses.replace(plan, root=moved, seed=77, episodes_in=path))
    assert again.tasks == run.tasks and again.lines == run.lines
    with pytest.raises(UsageError, match="shots 1, and this run has shots 2"):
        Benchmark(dataclasses.replace(plan, shots=2, episodes_in=path))
    (moved / "ball" / "0.jpg").unlink()
    with pytest.raises(InputError, match=r"names in line \d+ what the data set does not hold"):
        Benchmark(dataclasses.replace(plan, root=moved, episodes_in=path))
    path.write_text("{}\n")
    with pytest.raises(InputError, match="is not a list of episodes"):
        Benchmark(dataclasses.replace(plan, episodes_in=path))


@pytest.mark.usefixtures("small")
def test_too_few_pictures_are_named(plan: EvaluationPlan) -> None:
    with pytest.raises(InputError, match="no class with 10 images"):
        Benchmark(dataclasses.replace(plan, shots=9))


# --- stopped, shared, divided --------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_a_stopped_run_goes_on(plan: EvaluationPlan, tmp_path: Path, monkeypatch) -> None:
    whole = list(run_benchmark(Benchmark(plan)))
    running = run_benchmark(Benchmark(plan), tmp_path)
    first = [next(running) for _ in range(5)]
    running.close()
    ledger = tmp_path / "episodes.jsonl"
    with ledger.open("a") as file:
        file.write('{"run": 0, "fold": null, "ind')  # the power went
    measured = []
    keep = Evaluation.measure

    def count(self: Evaluation, index: int, *args: object, **kwargs: object) -> EpisodeResult:
        measured.append(index)
        return keep(self, index, *args, **kwargs)

    monkeypatch.setattr(Evaluation, "measure", count)
    rest = list(run_benchmark(Benchmark(plan), tmp_path))
    assert rest == whole and first == whole[:5] and len(measured) == len(whole) - 5
    assert len(ledger.read_text().splitlines()) == 1 + len(whole)
    assert list(run_benchmark(Benchmark(plan), tmp_path)) == whole and len(measured) == len(whole) - 5


def test_a_ledger_of_another_run_is_refused(
    small: Segmenter, plan: EvaluationPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(run_benchmark(Benchmark(plan), tmp_path))
    other = dataclasses.replace(plan, seed=5)
    with pytest.raises(InputError, match="another run: seed, episodes_sha256 differ"):
        list(run_benchmark(Benchmark(other), tmp_path))
    with torch.no_grad():  # the same list with other weights is another run too
        weight = next(small.trained.modules["pam"].parameters())
        kept = weight.clone()
        weight += 1
        with pytest.raises(InputError, match="trained, digest differ"):
            list(run_benchmark(Benchmark(plan), tmp_path))
        weight.copy_(kept)
    for change in ({"mask_gamma": 0.5}, {"knowledge": "cross"}):
        changed = small.with_trained(dataclasses.replace(small.trained, **change))
        with monkeypatch.context() as patch:
            patch.setattr(assembly, "load_segmenter", lambda *_, found=changed, **__: found)
            with pytest.raises(InputError, match="trained, digest differ"):
                list(run_benchmark(Benchmark(plan), tmp_path))
    moved = small.with_trained(dataclasses.replace(small.trained, source="elsewhere"))
    monkeypatch.setattr(assembly, "load_segmenter", lambda *_, **__: moved)
    list(run_benchmark(Benchmark(plan), tmp_path))
    (tmp_path / "episodes.jsonl").write_text("no ledger\n")
    with pytest.raises(InputError, match="not a ledger"):
        list(run_benchmark(Benchmark(plan), tmp_path))


@pytest.mark.usefixtures("small")
def test_shares_of_several_machines_merge_exactly(
    plan: EvaluationPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Benchmark(plan)
    whole = run.record(list(run_benchmark(run)))
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        parts += list(run_benchmark(Benchmark(plan), tmp_path))
    assert run.record(parts)["methods"] == whole["methods"]
    assert len(list(tmp_path.glob("episodes.*.jsonl"))) == 3
    with pytest.raises(UsageError, match="meet in a folder"):
        next(run_benchmark(Benchmark(plan)))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    everything = list(run_benchmark(Benchmark(plan), tmp_path))  # nothing is left to do
    assert run.record(everything)["methods"] == whole["methods"]
    assert not (tmp_path / "episodes.jsonl").exists()


def test_processes_give_the_same_counts(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned processes load the shipped model themselves."""
    monkeypatch.setattr("diffseg_cli.evaluation.spread.CHUNK", 2)
    monkeypatch.setattr("os.cpu_count", lambda: torch.get_num_threads() * 2)  # as many threads there as here
    plan = EvaluationPlan(classes, episodes_per_class=2, model=ModelChoice(device="cpu"))
    run = Benchmark(plan)
    alone = list(run_benchmark(run))
    shared = list(run_benchmark(run, workers=2))
    assert sorted(shared, key=lambda r: r.place) == sorted(alone, key=lambda r: r.place)


@pytest.mark.nightly
def test_launched_processes_give_one_record(classes: Path, tmp_path: Path) -> None:
    words = ["-m", "diffseg_cli", "evaluate", "--root", str(classes), "--device", "cpu", "--json"]
    words += ["--episodes-per-class", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    records = []
    for command in ([sys.executable, *words], [*launch, *words, "--out", str(tmp_path)]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1  # the first process speaks for all
        records.append(json.loads(done.stdout))
    assert records[0]["methods"] == records[1]["methods"]


@pytest.mark.usefixtures("small")
def test_ray_spreads_chunks_or_is_named(plan: EvaluationPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match="Ray is not installed") as caught:
        list(run_benchmark(Benchmark(plan), ray=True))
    assert caught.value.hint == "pip install 'diffseg[ray]'"
    handed = []

    def remote(**options: int) -> object:
        def wrap(function: object) -> object:
            return types.SimpleNamespace(remote=lambda *args: handed.append(args[1]) or function(*args))

        assert options["num_cpus"] == 1
        return wrap

    stand_in = types.SimpleNamespace(
        init=lambda **_: None,
        remote=remote,
        wait=lambda refs, num_returns: (refs[-num_returns:], refs[:-num_returns]),  # the last is ready first
        get=lambda ref: ref,
    )
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    threads = torch.get_num_threads()
    spread = list(run_benchmark(Benchmark(plan), ray=True))
    torch.set_num_threads(threads)
    assert [len(chunk) for chunk in handed] == [8, 4]
    assert {r.place for r in spread} == {t.place for t in Benchmark(plan).tasks} and len(spread) == 12


# --- figures -------------------------------------------------------------------------------------------


def test_summary_equals_sums_by_hand() -> None:
    generator = np.random.default_rng(0)
    results = []
    for run in range(2):
        for fold in range(2):
            for index in range(6):
                hit, miss, back = (int(v) for v in generator.integers(1, 100, 3))
                counts = (hit, hit + miss, back, back + miss, hit // 2, hit)
                name = f"{'ab'[fold]}/{index % 3}"
                results.append(EpisodeResult(run, fold, index, name, {"model": counts}))
    figures = summarise(generator.permutation(np.array(results, dtype=object)))["model"]
    ious, fb = [], []
    for run in range(2):
        for fold in range(2):
            mine = [r for r in results if (r.run, r.fold) == (run, fold)]
            total = np.sum([r.counts["model"] for r in mine], axis=0)
            fb.append((total[0] / total[1] + total[2] / total[3]) / 2)
            for name in sorted({r.class_name for r in mine}):
                sums = np.sum([r.counts["model"] for r in mine if r.class_name == name], axis=0)
                ious.append((run, fold, sums[0] / sums[1], sums[4] / sums[5]))
    assert figures["mean_iou"]["all"] == pytest.approx(np.mean([i[2] for i in ious]))
    assert figures["mean_iou"]["a"] == pytest.approx(np.mean([i[2] for i in ious if i[1] == 0]))
    assert figures["per_fold"]["1"] == pytest.approx(np.mean([i[2] for i in ious if i[1] == 1]))
    assert figures["boundary_iou"]["all"] == pytest.approx(np.mean([i[3] for i in ious]))
    assert figures["fb_iou"] == pytest.approx(np.mean(fb))
    assert figures["per_class"]["a/0"] == pytest.approx(np.mean([ious[0][2], ious[6][2]]))
    low, high = figures["intervals"]["mean_iou"]
    assert low < figures["mean_iou"]["all"] < high
    low, high = figures["intervals"]["fb_iou"]
    assert low < figures["fb_iou"] < high


def test_one_episode_a_class_has_no_interval() -> None:
    results = [EpisodeResult(0, None, i, "ab"[i], {"model": (5, 9, 5, 9, 1, 2)}) for i in range(2)]
    assert summarise(results)["model"]["intervals"] is None


def test_best_median_and_worst_are_not_the_same_episodes() -> None:
    results = [EpisodeResult(0, None, i, "x", {"model": (i, 20, 1, 1, 1, 1)}) for i in range(11)]
    telling = telling_episodes(results[::-1], "model", 4)
    assert [r.index for r in telling["best"]] == [10, 9, 8]
    assert [r.index for r in telling["median"]] == [4, 5, 6]
    assert [r.index for r in telling["worst"]] == [0, 1, 2]
    assert len(telling_episodes(results[:1], "model", 4)["best"]) == 1


def test_protocols_are_never_mixed() -> None:
    def methods(*key: object) -> set[str]:
        return {row.method for row, _ in published_figures(*key)}

    assert "DiffSeg, the paper" in methods("pascal-5i", "test", 1, None)
    assert "DiffSeg, the paper" not in methods("coco-20i", "test", 1, None)  # it is 40 / 20 / 20
    assert methods("coco-40-20-20", "test", 5, None) == {"DiffSeg, the paper"}
    assert not methods("folder", "test", 1, None) and not methods("pascal-5i", "train", 1, None)
    assert not methods("pascal-5i", "test", 3, None)  # nobody published 3-shot
    assert not any("SegGPT" in row.method for rows in FIGURES.values() for row in rows)  # saw the classes
    by_fold = published_figures("pascal-5i", "test", 1, 2)
    assert {row.source for row, _ in by_fold} == {PAPER} and len(by_fold) == 4
    for (dataset, method), folds in FOLDS.items():
        [row] = [row for row in FIGURES[dataset] if row.method == method]
        for whole, of_folds in zip((row.one_shot, row.five_shot), folds, strict=True):
            # As printed: MIANet's mean on COCO is 0.2 from that of its folds.
            assert whole == pytest.approx(np.mean(of_folds), abs=0.21)


def test_folds_and_peers_a_user_names() -> None:
    assert choose_folds("folder", None) == (None,)
    assert choose_folds("pascal-5i", None) == choose_folds("pascal-5i", "all") == (0, 1, 2, 3)
    assert choose_folds("coco-20i", "2") == (2,)
    with pytest.raises(UsageError, match="no fold '4'"):
        choose_folds("coco-20i", "4")
    with pytest.raises(UsageError, match="fss-1000 has no folds"):
        choose_folds("fss-1000", "0")
    assert check_peers(["prototype", "attention", "prototype"]) == ("prototype", "attention")
    with pytest.raises(UsageError, match="Unknown peer 'sam'"):
        check_peers(["sam"])
