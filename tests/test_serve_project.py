"""A labelling project over HTTP: states, masks, decisions that collide, learning, exports, who may ask."""

import errno
import io
import itertools
import json
import logging
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import make_swift_segmenter
from numpy.typing import NDArray
from PIL import Image
from starlette.testclient import TestClient

from diffseg_cli import files
from diffseg_cli.adaptation import Adapted, AdaptStep, adapt_steps
from diffseg_cli.config import AdaptConfig
from diffseg_cli.errors import InputError
from diffseg_cli.labelling import export, teaching
from diffseg_cli.labelling.disk_cache import DiskCache
from diffseg_cli.labelling.growing import ClickGrower
from diffseg_cli.labelling.project import HIDDEN, Project
from diffseg_cli.labelling.query_cache import QueryCache
from diffseg_cli.labelling.teaching import Lesson, Taught, lesson_of, propose, teach_steps
from diffseg_cli.labelling.thumbnails import Thumbnails
from diffseg_cli.models.compact import CompactBackbone
from diffseg_cli.results.render import png_bytes
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.serve.app import create_app
from diffseg_cli.serve.limits import Limits
from diffseg_cli.serve.refusals import without_paths
from diffseg_cli.supports.concept import Concept
from tools import simulate_labelling

HW = (48, 64)
TOKEN = "a-token-of-some-length"
KEYS = ["a.png", "b.png", "day1/c.png"]


def labels(left: int = 20) -> NDArray[np.uint8]:
    mask = np.zeros(HW, dtype=np.uint8)
    mask[10:35, left : left + 30] = 1
    return mask


@pytest.fixture
def project(tmp_path: Path) -> Project:
    photos = tmp_path / "photos"
    (photos / "day1").mkdir(parents=True)
    for seed, key in enumerate(KEYS):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(HW[::-1], Image.Resampling.BICUBIC).save(photos / key)
    return Project(photos, tmp_path / "labels", ["bird"])


@pytest.fixture
def client(small_segmenter: Segmenter, project: Project) -> Iterator[TestClient]:
    app = create_app(make_swift_segmenter(small_segmenter), project=project)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def decide(client: TestClient, image: str, revision: int, decision: str, mask: Any = None) -> Any:
    files = {} if mask is None else {"mask": ("mask.png", png_bytes(mask), "image/png")}
    data = {"image": image, "revision": str(revision), "decision": decision}
    return client.post("/v1/project/decide", data=data, files=files or None)


def states(client: TestClient) -> dict[str, str]:
    rows = client.get("/v1/project/images").json()["images"]
    return {row["image"]: row["state"] for row in rows}


def learn(client: TestClient) -> dict[str, Any]:
    assert client.post("/v1/project/learn").status_code == 200
    for _ in range(600):
        progress: dict[str, Any] = client.get("/v1/project").json()["learning"]
        if progress["stage"] not in ("learning", "proposing"):
            return progress
        time.sleep(0.1)
    raise AssertionError(progress)


def test_a_project_is_listed_with_its_states(client: TestClient) -> None:
    overview = client.get("/v1/project").json()
    assert overview["classes"] == [{"name": "bird", "color": "#ff2d55"}]
    assert overview["states"] == {"untouched": 3} and overview["learning"] == {"stage": "idle"}
    listed = client.get("/v1/project/images").json()
    assert [row["image"] for row in listed["images"]] == KEYS
    assert {row["revision"] for row in listed["images"]} == {0}
    version = listed["version"]
    decide(client, "b.png", 0, "nothing")
    later = client.get("/v1/project/images", params={"since": version}).json()
    assert [(row["image"], row["state"]) for row in later["images"]] == [("b.png", "nothing here")]
    assert client.get("/v1/project/images", params={"since": later["version"]}).json()["images"] == []


def test_a_correction_comes_back_as_it_was_drawn(client: TestClient, project: Project) -> None:
    assert client.get("/v1/project/mask", params={"image": "a.png"}).status_code == 204
    answer = decide(client, "a.png", 0, "correct", labels())
    assert answer.json()["state"] == "corrected" and answer.json()["revision"] == 1
    sent = client.get("/v1/project/mask", params={"image": "a.png"})
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent.content))), labels())
    on_disk = np.asarray(Image.open(project.out / "a_mask.png"))
    np.testing.assert_array_equal(on_disk, labels() * 255)


def test_the_second_decision_about_one_revision_is_refused(client: TestClient) -> None:
    assert decide(client, "a.png", 0, "correct", labels()).status_code == 200
    answer = decide(client, "a.png", 0, "nothing")
    assert answer.status_code == 409 and "a.png is corrected at revision 1" in answer.json()["error"]
    assert states(client)["a.png"] == "corrected"
    assert decide(client, "a.png", 1, "reopen").json()["state"] == "proposed"
    assert decide(client, "a.png", 2, "accept").json()["state"] == "accepted"


@pytest.mark.parametrize(
    ("image", "decision", "mask", "status", "error"),
    [
        ("../labels/review.jsonl", "nothing", None, 422, "No image of this project is called"),
        ("a.png", "accept", None, 400, "no mask that could be accepted"),
        ("a.png", "correct", None, 400, "a correction needs one"),
        ("a.png", "correct", np.zeros((4, 4), dtype=np.uint8), 422, "mask has 4 x 4 pixels"),
        ("a.png", "correct", labels() * 2, 422, "mask holds the value 2"),
        ("a.png", "guess", None, 400, "decision"),
    ],
)
def test_what_cannot_be_decided_is_a_sentence(
    client: TestClient, image: str, decision: str, mask: Any, status: int, error: str
) -> None:
    answer = decide(client, image, 0, decision, mask)
    assert answer.status_code == status and error in answer.json()["error"], answer.text
    assert set(states(client).values()) == {"untouched"}


@pytest.mark.parametrize("route", ["thumbnail", "image", "mask"])
def test_no_file_beside_the_images_is_sent(client: TestClient, project: Project, route: str) -> None:
    secret = project.images.parent / "secret.png"
    Image.fromarray(labels()).save(secret)
    for image in ("../secret.png", str(secret), "day1/../../secret.png", "a.png/../../secret.png"):
        answer = client.get(f"/v1/project/{route}", params={"image": image})
        assert answer.status_code == 422 and "No image of this project" in answer.json()["error"]


def test_images_and_thumbnails_are_small_jpegs(client: TestClient, project: Project) -> None:
    wide = np.zeros((1000, 3000, 3), dtype=np.uint8)
    Image.fromarray(wide).save(project.images / "a.png")
    for route, most in (("image", 2048), ("thumbnail", 256)):
        answer = client.get(f"/v1/project/{route}", params={"image": "a.png"})
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == (most, round(most / 3))


def test_a_large_image_keeps_the_border_that_was_not_redrawn(client: TestClient, project: Project) -> None:
    """Its editor shows it smaller; only what changed there is drawn at that size."""
    Image.fromarray(np.zeros((1000, 4096, 3), dtype=np.uint8)).save(project.images / "a.png")
    fine = np.zeros((1000, 4096), dtype=bool)
    fine[101:301, 101:301] = True  # odd corners, which half the size cannot hold
    project.correct("a.png", 0, [fine])
    shown = np.asarray(
        Image.open(io.BytesIO(client.get("/v1/project/mask", params={"image": "a.png"}).content))
    ).copy()
    assert shown.shape == (500, 2048)
    shown[400:450, 1500:1600] = 1
    assert decide(client, "a.png", 1, "correct", shown).status_code == 200
    masks = project.masks("a.png")
    assert masks is not None
    np.testing.assert_array_equal(masks[0][:700, :2000], fine[:700, :2000])
    assert masks[0][800:900, 3000:3200].all() and masks[0].sum() == fine.sum() + 100 * 200


def test_learning_proposes_for_everything_that_is_open(client: TestClient, project: Project) -> None:
    (project.images / "b.png").write_bytes(b"no image at all")
    assert learn(client)["stage"] == "failed"
    assert "nothing to learn from yet" in client.get("/v1/project").json()["learning"]["error"]
    decide(client, "a.png", 0, "correct", labels())
    assert learn(client) == {"stage": "done", "done": 2, "total": 2, "supports": 1}
    assert states(client) == dict(zip(KEYS, ("corrected", "failed", "proposed"), strict=True))
    rows = {row["image"]: row for row in client.get("/v1/project/images").json()["images"]}
    assert 0 <= rows["day1/c.png"]["doubt"] <= 1 and 0 <= rows["day1/c.png"]["presence"]["bird"] <= 1
    assert str(project.images) not in json.dumps(rows["b.png"]) and "b.png" in rows["b.png"]["error"]
    masks = project.masks("a.png")
    assert masks is not None and (masks[0] == (labels() > 0)).all()


def test_learning_adapts_the_modules_that_are_trained(small_segmenter: Segmenter, project: Project) -> None:
    project.correct("a.png", 0, [labels() > 0])
    project.say_nothing("b.png", 0)
    before = small_segmenter.trained.digest
    queries = QueryCache(small_segmenter, project.out / "cache")
    steps = list(teach_steps(small_segmenter, project, queries, adapt=AdaptConfig(steps=2)))
    assert [(step.step, step.steps) for step in steps] == [(0, 2), (0, 2), (1, 2), (2, 2), (2, 2)]
    taught = steps[-1].taught
    assert taught is not None and taught.concepts[0].adapted is not None and taught.supports == 1
    assert small_segmenter.trained.digest == before
    review = propose(project, taught, queries, "day1/c.png")
    assert review.state.value == "proposed" and review.doubt is not None


def test_what_was_learned_is_there_after_a_restart(
    small_segmenter: Segmenter, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def teach(project: Project, given: Sequence[Concept] = ()) -> Taught:
        config = AdaptConfig(steps=2, found_enough=2.0)
        *_, last = teach_steps(small_segmenter, project, queries, given, adapt=config)
        assert last.taught is not None
        return last.taught

    def again() -> Project:
        return Project(project.images, project.out)

    queries = QueryCache(small_segmenter, project.out / "cache")
    for key in ("a.png", "b.png"):
        project.correct(key, 0, [labels() > 0])
    first = teach(project)
    adapted = first.concepts[0].adapted
    assert adapted is not None and adapted.reach > 0
    with monkeypatch.context() as patched:
        patched.setattr(teaching, "adapt_steps", lambda *_, **__: pytest.fail("learned again"))
        later = teach(again())
    assert (later.since, later.supports) == (first.since, first.supports)
    kept = later.concepts[0].adapted
    assert kept is not None and kept.trained.digest == adapted.trained.digest
    for taught in (first, later):
        assert propose(project, taught, queries, "day1/c.png").doubt is not None

    concept = project.out / "concepts" / "bird.dsc"
    whole = concept.read_bytes()
    for spoil in (
        lambda: concept.write_bytes(whole[:-10]),
        concept.unlink,
        lambda: project.say_nothing("b.png", 1),
    ):
        spoil()
        monkeypatch.setattr(teaching, "adapt_steps", counted := Mock(side_effect=adapt_steps))
        teach(again())
        assert counted.call_count == 1


@pytest.mark.parametrize("better", ["adapted", "plain"])
def test_later_decisions_judge_what_was_learned(
    small_segmenter: Segmenter, project: Project, monkeypatch: pytest.MonkeyPatch, better: str
) -> None:
    """Modules that mark everything are closer to a person's mask than those that mark nothing.

    Those that lose go on being learned and judged, beside what answers and what the concept's file holds.
    """
    everything = project.read("b.png"), np.ones(HW, dtype=bool)
    config = AdaptConfig(steps=20, lr=0.01, found_enough=2.0, reach=1.0)
    *_, last = adapt_steps(small_segmenter, [everything] * 2, config=config)
    assert last.adapted is not None and last.adapted.reach == 1
    eager = last.adapted.trained
    plain, adapted = (
        (small_segmenter.trained, eager) if better == "adapted" else (eager, small_segmenter.trained)
    )
    segmenter = small_segmenter.with_trained(plain)
    learned = AdaptStep(1, 1, 0.0, Adapted(adapted, 1.0, 0.5, 0.5))
    monkeypatch.setattr(teaching, "adapt_steps", lambda *_, **__: iter([learned]))
    queries = QueryCache(segmenter, project.out / "cache")

    def taught(project: Project) -> Concept:
        *_, last = teach_steps(segmenter, project, queries)
        assert last.taught is not None
        return last.taught.concepts[0]

    project.correct("a.png", 0, [labels() > 0])
    assert taught(project).adapted is not None
    years = itertools.count(2100)
    monkeypatch.setattr("diffseg_cli.labelling.project.now", lambda: f"{next(years)}-01-01T00:00:00Z")
    project.correct("day1/c.png", 0, [labels() > 0])
    for concept in (taught(project), taught(Project(project.images, project.out))):
        assert (concept.adapted is None) == (better == "plain")
    project.correct("b.png", 0, [labels() > 0])
    assert (taught(project).adapted is None) == (better == "plain")
    trial = project.remembered("bird")["trial"]
    assert trial[better] > 0.4 and sum(trial.values()) == trial[better]  # twice 750 of 3072 pixels


def test_what_is_proposed_already_is_not_proposed_again(client: TestClient, project: Project) -> None:
    decide(client, "a.png", 0, "correct", labels())
    assert learn(client)["total"] == 2
    time.sleep(1.1)  # times of decisions are whole seconds
    project.refresh()
    version = project.review("b.png").revision
    assert learn(client)["total"] in (0, 1, 2)  # those of the second in which it had learned
    decide(client, "b.png", project.review("b.png").revision, "reopen")
    assert learn(client)["total"] >= 1
    project.refresh()
    assert project.review("b.png").revision > version


def test_no_more_masks_are_read_than_are_learned_from(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in KEYS:
        project.correct(key, 0, [labels() > 0])
    monkeypatch.setattr(project, "masks", counted := Mock(side_effect=project.masks))
    assert len(lesson_of(project, 0, most_supports=1).supports) == 1 and counted.call_count == 1


def test_what_was_taken_away_teaches_what_a_class_is_not(project: Project, tmp_path: Path) -> None:
    project = Project(project.images, tmp_path / "two", ["bird", "nest"])
    bird, nest, empty = labels() > 0, labels(0) > 0, np.zeros(HW, dtype=bool)
    for key in KEYS:
        project.propose(key, 0, [bird, nest], {}, 0.5)
    project.correct("b.png", 1, [bird, empty])
    assert project.review("b.png").rejected == ["nest"]
    project.say_nothing("day1/c.png", 1)
    assert project.review("day1/c.png").rejected == ["bird", "nest"]
    project.correct("a.png", 1, [bird, nest])
    assert project.review("a.png").rejected == []
    assert lesson_of(project, 0) == Lesson(0, "bird", ["a.png", "b.png"], ["day1/c.png"])
    nests = lesson_of(project, 1)
    assert nests.supports == ["a.png"] and sorted(nests.negatives) == ["b.png", "day1/c.png"]
    project.correct("b.png", 2, [bird, empty])  # looked at once more
    assert Project(project.images, project.out).review("b.png").rejected == ["nest"]
    project.reopen("b.png", 3)
    assert lesson_of(project, 1).negatives == ["day1/c.png"] and project.review("b.png").rejected == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_decision_that_cannot_be_kept_is_the_servers_fault(
    client: TestClient,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def refuse(path: Path, *_: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    # A server in an earlier test may have ended both.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="uvicorn.error")
    monkeypatch.setattr(files, "replace_file", refuse)
    answer = decide(client, "a.png", 0, "correct", labels())
    assert answer.status_code == 500 and os.strerror(number) in answer.json()["error"]
    assert str(project.out) not in answer.text and str(project.out) in caplog.text
    monkeypatch.undo()
    assert states(client)["a.png"] == "untouched" and not project.mask_path("a.png").exists()
    assert decide(client, "a.png", 0, "correct", labels()).status_code == 200


def test_errors_do_not_tell_where_the_folders_are(client: TestClient, project: Project) -> None:
    (project.images / "a.png").write_bytes(b"spoiled")
    project.mask_path("b.png").write_bytes(b"spoiled")
    for what, key in (("image", "a.png"), ("mask", "b.png")):
        answer = client.get(f"/v1/project/{what}", params={"image": key})
        assert answer.status_code == 422 and key.removesuffix(".png") in answer.json()["error"]
        assert str(project.out.parent) not in answer.text


def test_a_failed_job_does_not_tell_where_the_folders_are(client: TestClient, project: Project) -> None:
    decide(client, "a.png", 0, "correct", labels())
    (project.images / "a.png").write_bytes(b"spoiled")
    failed = learn(client)
    assert failed["stage"] == "failed" and failed["error"].startswith("a.png is not an image")
    assert str(project.images.parent) not in failed["error"]


@pytest.mark.parametrize("folder", [Path("photos"), Path("/data/photos"), Path(), Path("a")])
def test_a_message_keeps_all_but_the_way_to_a_private_folder(folder: Path) -> None:
    message, hint = f"{folder / 'a' / 'b.png'} is spoiled.", "Look into data/photos or at the end. Or not."
    error = without_paths(InputError(message, hint), [folder])
    assert (error.message, error.hint) == ("a/b.png is spoiled.", hint)
    told = without_paths(InputError(f"Nothing is in {folder}. Look into {folder}/x."), [folder])
    assert (
        told.message == f"Nothing is in {folder.name or '.'}. Look into {'./' if not folder.name else ''}x."
    )


def test_learning_can_be_cancelled(client: TestClient) -> None:
    decide(client, "a.png", 0, "correct", labels())
    client.post("/v1/project/learn")
    assert client.delete("/v1/project/learn").json()["stage"] in ("cancelled", "done")


def test_learning_ends_before_its_next_stage(small_segmenter: Segmenter, project: Project) -> None:
    begun, go, entered = threading.Event(), threading.Event(), list[str]()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        entered.append(name)
        if name == "PAM":  # of the first look of the adaptation
            begun.set()
            assert go.wait(20)
        yield

    app = create_app(replace(small_segmenter, stage=stage), project=project)
    with TestClient(app, base_url="http://localhost") as client, ThreadPoolExecutor() as pool:
        for key in KEYS[:2]:
            decide(client, key, 0, "correct", labels())
        client.post("/v1/project/learn")
        assert begun.wait(60)
        cancelled = pool.submit(client.delete, "/v1/project/learn")
        time.sleep(0.2)
        go.set()
        assert cancelled.result().json() == {"stage": "cancelled"}
        assert entered[-1] == "PAM" and entered.count("PAM") == 1
        assert set(states(client).values()) == {"corrected", "untouched"}


def test_corrections_teach_before_accepted_ones(project: Project) -> None:
    mask = labels() > 0
    for key in KEYS[:2]:
        project.propose(key, 0, [mask], {}, 0.5)
    project.accept("a.png", 1)
    project.correct("b.png", 1, [mask])
    project.say_nothing("day1/c.png", 0)
    assert lesson_of(project, 0).supports == ["b.png", "a.png"]


def test_a_click_becomes_a_region_that_holds_it(client: TestClient) -> None:
    assert client.post("/v1/project/look", data={"image": "a.png"}).status_code == 204
    answer = client.post("/v1/project/click", data={"image": "a.png", "x": "0.5", "y": "0.5"})
    region = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert region.shape == HW and region[24, 32] == 255
    box = {"x": "0.2", "y": "0.2", "width": "0.5", "height": "0.5"}
    answer = client.post("/v1/project/box", data={"image": "a.png", **box})
    assert np.asarray(Image.open(io.BytesIO(answer.content))).shape == HW
    answer = client.post("/v1/project/click", data={"image": "a.png", "x": "1.5", "y": "0.5"})
    assert answer.status_code == 400


def test_clicks_do_not_wait_for_a_model_at_work(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an image was looked at, neither the worker nor the image file is needed."""
    click = {"image": "a.png", "x": "0.5", "y": "0.5"}
    first = client.post("/v1/project/click", data=click)
    monkeypatch.setattr(ClickGrower, "look", lambda *_: pytest.fail("looked again"))
    assert client.post("/v1/project/click", data=click).content == first.content
    box = {"image": "a.png", "x": "0.2", "y": "0.2", "width": "0.01", "height": "0.01"}
    answer = client.post("/v1/project/box", data=box)
    assert answer.status_code == 200, answer.text


def test_queries_are_encoded_once_and_the_same_from_the_cache(
    small_segmenter: Segmenter, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = project.item("a.png").path, project.out / "encoded"
    first = QueryCache(small_segmenter, folder).encode(path)
    exact = small_segmenter.encode_queries([path])
    torch.testing.assert_close(first.latents, exact.latents, rtol=0, atol=1e-3)
    assert first.edges is not None and exact.edges is not None
    torch.testing.assert_close(first.edges, exact.edges, rtol=0, atol=1e-3)
    with monkeypatch.context() as patched:
        patched.setattr(CompactBackbone, "encode_blocks", lambda *_: pytest.fail("encoded again"))
        again = QueryCache(small_segmenter, folder).encode(path)
    assert torch.equal(again.latents, first.latents) and again.edges is not None
    assert torch.equal(again.edges, first.edges)
    (kept,) = folder.iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])  # a crash left half of it
    assert torch.equal(QueryCache(small_segmenter, folder).encode(path).latents, first.latents)
    project.item("b.png").path.replace(path)  # another image of this name
    assert not torch.equal(QueryCache(small_segmenter, folder).encode(path).latents, first.latents)
    assert len(list(folder.iterdir())) == 2


def test_a_cache_drops_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", most_bytes=1000)
    for name in "abc":
        cache.put(name, bytes(300))
        os.utime(tmp_path / "cache" / name, ns=(0, "abc".index(name)))
    assert cache.get("a") == bytes(300)  # now it is the last one used
    cache.put("d", bytes(300))
    assert [name for name in "abcd" if cache.get(name)] == ["a", "d"]
    shutil.rmtree(tmp_path / "cache")
    assert cache.get("a") is None
    cache.put("a", b"again")
    assert cache.get("a") == b"again"


def pack(client: TestClient, **choices: str) -> tuple[str, dict[str, Any]]:
    """The name of an export, and how packing it ended."""
    file = client.post("/v1/project/export", data=choices).json()["file"]
    for _ in range(600):
        progress: dict[str, Any] = client.get("/v1/project/export").json()
        if progress["stage"] != "packing":
            return file, progress
        time.sleep(0.05)
    raise AssertionError(progress)


def fetch(client: TestClient, file: str) -> zipfile.ZipFile:
    answer = client.get(f"/v1/project/export/{file}")
    assert answer.headers["content-disposition"] == f'attachment; filename="{file}"'
    return zipfile.ZipFile(io.BytesIO(answer.content))


def test_an_export_is_a_zip_of_its_files(client: TestClient, project: Project) -> None:
    file, end = pack(client, format="yolo")
    assert end["stage"] == "failed" and "accepted, corrected or known to be empty" in end["error"]
    assert client.get(f"/v1/project/export/{file}").status_code == 404
    decide(client, "day1/c.png", 0, "correct", labels())
    decide(client, "a.png", 0, "nothing")
    file, end = pack(client, format="yolo")
    assert end == {"stage": "done", "done": 2, "total": 2} and file == "labels-yolo.zip"
    with fetch(client, file) as archive:
        assert sorted(archive.namelist()) == ["data.yaml", "labels/a.txt", "labels/day1/c.txt"]
        assert archive.read("labels/day1/c.txt").startswith(b"0 ")
    assert [path.name for path in (project.out / HIDDEN / "exports").iterdir()] == [file]
    for outside in ("%2e%2e", "..%2f..%2freview.jsonl", "%2e%2e/%2e%2e/review.jsonl"):
        assert client.get(f"/v1/project/export/{outside}").status_code == 404


def test_an_export_may_take_longer_than_a_request(
    small_segmenter: Segmenter, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other requests are answered between two of its images, and a second export waits its turn."""
    encode, go = export.encode_image, threading.Event()

    def slow(*arguments: Any) -> bytes:
        assert go.wait(20)
        return encode(*arguments)

    monkeypatch.setattr(export, "encode_image", slow)
    for key in KEYS:
        project.correct(key, 0, [labels() > 0])
    app = create_app(make_swift_segmenter(small_segmenter), limits=Limits(seconds=1), project=project)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post("/v1/project/export", data={"format": "mask"}).status_code == 200
        time.sleep(1.5)
        refused = client.post("/v1/project/export", data={"format": "coco"})
        assert refused.status_code == 503 and refused.headers["retry-after"].isdecimal()
        assert client.get("/v1/project/export").json() == {"stage": "packing"}
        go.set()
        while client.get("/v1/project/export").json()["stage"] == "packing":
            time.sleep(0.05)
        with fetch(client, "labels-mask.zip") as archive:
            assert len(archive.namelist()) == 3


def test_an_export_that_fails_leaves_nothing(client: TestClient, project: Project) -> None:
    for key in KEYS:
        decide(client, key, 0, "correct", labels())
    project.mask_path("b.png").write_bytes(b"spoiled")
    _, end = pack(client, format="mask")
    assert end["stage"] == "failed" and "b_mask.png is no mask file, or is damaged" in end["error"]
    assert str(project.out) not in end["error"]
    assert list((project.out / HIDDEN / "exports").iterdir()) == []


def test_objects_in_a_mask_are_told_apart(client: TestClient) -> None:
    mask = np.zeros(HW, dtype=np.uint8)
    mask[5:20, 5:20] = mask[5:20, 30:45] = 1
    answer = client.post("/v1/project/instances", files={"mask": ("m.png", png_bytes(mask), "image/png")})
    numbers = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert numbers[10, 10] == 1 and numbers[10, 40] == 2 and ((numbers > 0) == (mask > 0)).all()
    overview = client.get("/v1/project").json()
    assert overview["instances"] is False
    decide(client, "a.png", 0, "correct", mask)
    for form, count in (({}, 1), ({"instances": "true"}, 2)):
        with fetch(client, pack(client, format="coco", **form)[0]) as archive:
            assert len(json.loads(archive.read("coco.json"))["annotations"]) == count


def test_thumbnails_stay_within_their_bound(project: Project) -> None:
    thumbnails = Thumbnails(project, most_bytes=2500)
    sizes = [len(thumbnails.get(key)) for key in KEYS * 2]
    kept = list((project.out / HIDDEN / "thumbnails").glob("*.jpg"))
    assert 0 < sum(path.stat().st_size for path in kept) <= 2500 + max(sizes)


def test_a_thumbnail_is_made_once_for_a_mask(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    thumbnails = Thumbnails(project)
    first = thumbnails.get("a.png")
    with monkeypatch.context() as patched:
        patched.setattr(Thumbnails, "_draw", lambda *_: pytest.fail("drawn again"))
        assert thumbnails.get("a.png") == first
    project.correct("a.png", 0, [labels() > 0])
    masked = thumbnails.get("a.png")
    assert masked != first
    project.instances = True  # numbers are drawn
    assert thumbnails.get("a.png") not in (first, masked)


def test_everything_of_a_project_asks_for_the_token(small_segmenter: Segmenter, project: Project) -> None:
    app = create_app(make_swift_segmenter(small_segmenter), token=TOKEN, project=project)
    with TestClient(app, base_url="http://localhost") as client:
        paths = list(client.get("/openapi.json", headers=_mine()).json()["paths"])
        own = [path for path in paths if path.startswith("/v1/project")]
        assert len(own) >= 10
        for path in own:
            for method in ("GET", "POST", "DELETE"):
                assert client.request(method, path).status_code == 401, (method, path)
        assert client.get("/").status_code == 200
        assert client.get("/v1/project", headers=_mine()).status_code == 200


def _mine() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


def test_pages_of_other_servers_cannot_decide(client: TestClient) -> None:
    data = {"image": "a.png", "revision": "0", "decision": "nothing"}
    answer = client.post("/v1/project/decide", data=data, headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403 and states(client)["a.png"] == "untouched"


def test_the_page_loads_from_this_server_alone(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "http" not in policy and "unsafe" not in policy
    assert client.get("/page/../app.py").status_code == 404
    assert client.get("/page/none.js").status_code == 404
    assert client.get("/search").status_code == 200


def test_alive_can_be_asked_without_a_body(client: TestClient) -> None:
    answer = client.head("/healthz")
    assert answer.status_code == 200 and answer.content == b""


def test_a_person_is_simulated(small_segmenter: Segmenter, project: Project) -> None:
    segmenter = make_swift_segmenter(small_segmenter)
    truths = {key: labels() > 0 for key in KEYS}
    queries = QueryCache(segmenter, project.out / "cache")
    rows = list(
        simulate_labelling.simulate(
            segmenter,
            project,
            truths,
            queries,
            order="doubt",
            adapt_from=None,
            milestones=(1, 2),
            seed=0,
        )
    )
    assert [row["corrected"] for row in rows] == [1, 2]
    for row in rows:  # what is corrected counts with 1, the rest as it was found
        assert row["folder"] == pytest.approx((row["corrected"] + (3 - row["corrected"]) * row["open"]) / 3)


def test_a_simulation_goes_on_where_it_stopped(
    small_segmenter: Segmenter,
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each image is encoded once for all runs, the table has mean and spread, and no run is done twice."""
    images = tmp_path / "classes" / "bird"
    images.mkdir(parents=True)
    for number, key in enumerate(KEYS):
        shutil.copy(project.images / key, images / f"{number}.jpg")
        Image.fromarray(labels() * 255).save(images / f"{number}.png")
    kept = tmp_path / "rows.jsonl"
    words = f"simulate {images.parent} --classes bird --json {kept} --runs 2 --adapt-from"
    segmenter, put = make_swift_segmenter(small_segmenter), Mock(side_effect=DiskCache.put)
    monkeypatch.setattr("sys.argv", words.split())
    monkeypatch.setattr(DiskCache, "put", lambda *given: put(*given))
    monkeypatch.setattr(simulate_labelling, "load_segmenter", lambda: segmenter)
    monkeypatch.setattr(simulate_labelling, "MILESTONES", (1, 2))

    def table() -> list[str]:
        simulate_labelling.main()
        return capsys.readouterr().out.splitlines()[-4:]

    shown = table()
    assert put.call_count == len(KEYS)
    ways = [line.split()[:3] for line in shown]
    assert ways == [[order, "False", count] for order in ("doubt", "random") for count in "12"]
    assert all(line.count(" ± ") == 2 for line in shown)
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0] * 4 + [1] * 4
    kept.write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows[:4])
    )  # killed before the second run was done
    table()
    again = [json.loads(line) for line in kept.read_text().splitlines()]
    assert again[:4] == rows[:4] and [row["open"] for row in again] == [row["open"] for row in rows]
    monkeypatch.setattr(simulate_labelling, "simulate", lambda *_, **__: pytest.fail("done again"))
    assert [line.split()[:3] for line in table()] == ways
