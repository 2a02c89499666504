"""diffseg batch --engine ray: the bytes of the local engine, whatever dies, and what is refused."""

import dataclasses
import errno
import json
import os
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_swift_segmenter
from PIL import Image
from test_batch import HW, files, save
from typer.testing import CliRunner, Result

from diffseg_cli import assembly
from diffseg_cli.batch import ray_engine, store
from diffseg_cli.choices import AnswerChoice, ModelChoice
from diffseg_cli.cli import main
from diffseg_cli.errors import DiffsegError, MissingDependency, UsageError
from diffseg_cli.segmenter import Segmenter

REPOSITORY = Path(__file__).parents[1]


def batch(*arguments: str, out: str = "out", code: int = 0) -> Result:
    words = ["batch", "-s", "support.png", "-m", "support_m.png", "-q", "photos", "--recursive", "-o", out]
    formats = ["-f", "mask", "-f", "score", "-f", "coco", "-f", "json"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main.app, [*words, *formats, *arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def states(result: Result) -> dict[str, str]:
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return {Path(line["query"]).stem: line["state"] for line in lines}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save("support.png", 90)
    mask = np.zeros(HW, dtype=np.uint8)
    mask[10:35, 20:50] = 255
    Image.fromarray(mask).save("support_m.png")
    for seed, name in enumerate(["a", "b", "day1/c", "day1/d"]):
        save(f"photos/{name}.png", seed)
    return tmp_path


# --- two real workers ----------------------------------------------------------------------------------


class Mortal(ray_engine.RayWorker):
    """Is killed with its first group, as by the kernel when memory runs out; its successors live."""

    def __call__(self, group: dict[str, Any]) -> dict[str, list[str]]:
        if not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(group)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    for name, value in ray_engine.QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(300)
def test_engines_give_the_same_bytes_and_go_on_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("photos/bad.jpg").write_bytes(b"no picture")
    batch("--part", "2/2", out="both")  # bad.jpg belongs to the other half
    begun = len([name for name in files("both") if name.endswith("_mask.png")])
    assert 0 < begun < 4
    monkeypatch.setattr(ray_engine, "RayWorker", Mortal)
    went_on = batch("--engine", "ray", "--workers", "2", "--json", out="both", code=5)
    assert Path("died").exists() and "2 workers of Ray" in went_on.stderr
    counts = list(states(went_on).values())
    assert (counts.count("skipped"), counts.count("done"), counts.count("failed")) == (begun, 4 - begun, 1)
    again = states(batch("--json", out="both", code=5))
    assert again == {**dict.fromkeys("abcd", "skipped"), "bad": "failed"}
    batch(out="local", code=5)
    assert files("both") == files("local")


# --- one process in place of Ray -----------------------------------------------------------------------


class Alone:
    """Stands where Ray Data does: one worker, in this process."""

    def __init__(self, items: list[dict[str, str]], blocks: int) -> None:
        tasks = [item["task"] for item in items]
        self.groups = [list(group) for group in np.array_split(np.array(tasks, dtype=object), blocks)]

    def map_batches(self, worker: Any, fn_constructor_args: Any, **options: Any) -> "Alone":
        assert options["num_cpus"] == 1 and options["batch_size"] is None
        self.worker = worker(*fn_constructor_args)
        return self

    def iter_rows(self) -> Iterator[dict[str, str]]:
        for group in self.groups:
            yield from ({"told": told} for told in self.worker({"task": group})["told"])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter) -> Segmenter:
    swift = make_swift_segmenter(small_segmenter)
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: swift)
    data = types.SimpleNamespace(
        from_items=lambda items, override_num_blocks: Alone(items, override_num_blocks),
        ActorPoolStrategy=lambda size: size,
        DataContext=types.SimpleNamespace(get_current=types.SimpleNamespace),
    )
    stand_in = types.SimpleNamespace(
        data=data,
        is_initialized=lambda: True,
        init=lambda *_, **__: None,
        cluster_resources=lambda: {"CPU": 2.0},
        remote=lambda **_: lambda function: types.SimpleNamespace(remote=function),
        put=lambda value: value,
        get=lambda value: value,
    )
    exceptions = types.SimpleNamespace(RayError=ChildProcessError)
    for name, module in {"ray": stand_in, "ray.data": data, "ray.exceptions": exceptions}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return swift


RAY = ("--engine", "ray")


@pytest.mark.usefixtures("alone")
def test_a_failure_is_recorded_or_ends_the_run() -> None:
    Path("photos/a.png").write_bytes(b"")
    assert states(batch(*RAY, "--json", code=5)) == {"a": "failed", **dict.fromkeys("bcd", "done")}
    batch(out="local", code=5)
    assert files("out") == files("local")
    stopped = batch(*RAY, "--on-error", "stop", "--json", out="stop", code=5)
    assert states(stopped) == {"a": "failed"} and not Path("stop/index.html").exists()


@pytest.mark.usefixtures("alone")
def test_a_stop_keeps_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Alone.iter_rows

    def interrupted(self: Alone) -> Iterator[dict[str, str]]:
        for number, row in enumerate(rows(self)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(Alone, "iter_rows", interrupted)
        assert len(states(batch(*RAY, "--json", code=130))) == 3
    assert sorted(states(batch("--json")).values()) == ["done", "skipped", "skipped", "skipped"]


@pytest.mark.usefixtures("alone")
def test_a_lost_place_or_cluster_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = store.replace_file, [0]

    def full(path: Path, content: bytes, prefix: str) -> None:
        count[0] += 1
        if count[0] > 4:  # a picture has three files
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content, prefix)

    def dies(_: Alone) -> Iterator[dict[str, str]]:
        raise ChildProcessError("The actor died.\nMore of it")

    with monkeypatch.context() as patch:
        patch.setattr(store, "replace_file", full)
        patch.setattr(ray_engine, "THREADS", 1)
        assert "No space left on device. What was finished is kept." in batch(*RAY, code=3).stderr
    with monkeypatch.context() as patch:
        patch.setattr(Alone, "iter_rows", dies)
        assert "error: Ray gave up: The actor died.\n" in batch(*RAY, code=1).stderr
    assert sorted(states(batch(*RAY, "--json")).values()) == ["done", "done", "done", "skipped"]


@pytest.mark.usefixtures("alone")
def test_a_worker_that_is_not_like_the_others_is_refused(
    monkeypatch: pytest.MonkeyPatch, small_segmenter: Segmenter
) -> None:
    swift = make_swift_segmenter(small_segmenter)
    other = swift.with_trained(dataclasses.replace(swift.trained, presence=None))
    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "load_chosen", lambda _: other)
        assert "has other weights, another version of diffseg or another" in batch(*RAY, code=3).stderr
    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "to_path", lambda name: Path(name.replace("out", "unseen")))
        assert "does not see unseen." in batch(*RAY, code=3).stderr and not Path("unseen").exists()
    monkeypatch.setattr(assembly, "load_segmenter", lambda **_: other)
    assert "there is no presence score" in batch(*RAY, "--min-presence", "0.5", code=2).stderr


# --- refused -------------------------------------------------------------------------------------------


def test_options_of_the_other_engine_are_refused() -> None:
    assert "--address is for the engine ray." in batch("--address", "auto", code=2).stderr
    assert "--gpus-per-worker is for the engine ray." in batch("--gpus-per-worker", "0.5", code=2).stderr


@pytest.mark.usefixtures("alone")
def test_what_the_cluster_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "The cluster has no GPU." in batch(*RAY, "--gpus-per-worker", "0.5", code=2).stderr
    said = batch(*RAY, "--gpus-per-worker", "0.5", "--device", "cpu", code=2).stderr
    assert "--gpus-per-worker is for GPUs" in said

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore of it")

    monkeypatch.setattr(sys.modules["ray"], "init", unreachable)
    with (
        pytest.raises(UsageError, match="no Ray cluster at auto: Could"),
        ray_engine.connected("auto"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency) as caught, ray_engine.connected(None):
        pass
    assert caught.value.hint == "Install it with: pip install 'diffseg[ray]'"


@pytest.mark.parametrize(
    ("options", "has", "expected"),
    [
        (ray_engine.RayOptions(), {"CPU": 8.0}, (0.0, 8)),
        (ray_engine.RayOptions(), {"CPU": 8.0, "GPU": 2.0}, (1.0, 2)),
        (ray_engine.RayOptions(gpus=0.25), {"CPU": 8.0, "GPU": 2.0}, (0.25, 8)),
        (ray_engine.RayOptions(workers=3, gpus=0.5), {"CPU": 8.0, "GPU": 2.0}, (0.5, 3)),
    ],
)
def test_workers_fill_the_cluster(
    options: ray_engine.RayOptions, has: dict[str, float], expected: tuple[float, int]
) -> None:
    job = ray_engine.Job([], {}, AnswerChoice(), [])
    assert ray_engine._places(options, job, has) == expected
    on_cpu = ray_engine.Job([], {}, AnswerChoice(), [], model=ModelChoice(device="cpu"))
    if options.gpus:
        with pytest.raises(DiffsegError, match="--device is another"):
            ray_engine._places(options, on_cpu, has)
    else:
        assert ray_engine._places(options, on_cpu, has) == (0.0, 8)
