"""`diffseg serve` over HTTP: answers, refusals, limits, and who may ask."""

import base64
import errno
import io
import json
import logging
import os
import re
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

from diffseg_cli.adaptation import SupportViews, adapt_steps
from diffseg_cli.assembly import load_segmenter
from diffseg_cli.presence import PresenceCalibration
from diffseg_cli.results.probability import probability_levels
from diffseg_cli.results.render import png_bytes
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.serve import app as app_module
from diffseg_cli.serve import concepts, engine
from diffseg_cli.serve.app import create_app
from diffseg_cli.serve.engine import InferenceEngine, Order
from diffseg_cli.serve.guard import is_loopback
from diffseg_cli.serve.limits import Limits
from diffseg_cli.serve.replies import Reply
from diffseg_cli.specks import drop_specks
from diffseg_cli.supports.concept import SupportSet
from diffseg_cli.supports.mask_making import box_region, mask_from_box

REPOSITORY = Path(__file__).parents[1]
BIRD = REPOSITORY / "examples" / "bird"
HW = (48, 64)
TOKEN = "a-token-of-some-length"
MINE = {"Authorization": f"Bearer {TOKEN}"}

Pixels = NDArray[np.uint8]


def picture(seed: int, size_hw: tuple[int, int] = HW) -> Pixels:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize(size_hw[::-1], Image.Resampling.BICUBIC))


def box(size_hw: tuple[int, int] = HW) -> Pixels:
    mask = np.zeros(size_hw, dtype=np.uint8)
    mask[10:35, 20:50] = 255
    return mask


SUPPORT, MASK, QUERY = picture(0), box(), picture(2)
Parts = list[tuple[str, tuple[str, bytes, str]]]


def parts(**files: Pixels | bytes | Sequence[Pixels | bytes]) -> Parts:
    """Files of a multipart request; arrays are sent as PNG."""
    sent = []
    for field, contents in files.items():
        for content in contents if isinstance(contents, list) else [contents]:
            raw = content if isinstance(content, bytes) else png_bytes(content)
            sent.append((field, (f"{field}.png", raw, "application/octet-stream")))
    return sent


ONE = parts(support=SUPPORT, mask=MASK)
ASK = [*ONE, *parts(query=QUERY)]


def pixels(content: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture(scope="module")
def finder(small_segmenter: Segmenter) -> Segmenter:
    """Without random modules: its maps reach from 0 to 1, so that something is always found."""
    backbone, trained = small_segmenter.backbone, small_segmenter.trained
    return Segmenter(backbone=backbone, trained=trained, hed=None, head="attention")


@pytest.fixture(scope="module")
def client(finder: Segmenter) -> Iterator[TestClient]:
    with TestClient(create_app(finder), base_url="http://localhost") as client:
        yield client


def serve(segmenter: Segmenter, **limits: Any) -> TestClient:
    return TestClient(create_app(segmenter, limits=Limits(**limits)), base_url="http://localhost")


# --- answers -------------------------------------------------------------------------------------------


def test_a_query_gets_the_mask_the_segmenter_gives(client: TestClient, finder: Segmenter) -> None:
    support = finder.encode_support([(SUPPORT, MASK > 0)])
    expected = finder.segment(QUERY, support, threshold=0.4, refine=False)
    fields = {"threshold": "0.4", "refine": "false"}
    answer = client.post("/v1/segment", files=ASK, data=fields)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels(answer.content) > 0, expected.mask)
    assert float(answer.headers["x-diffseg-area"]) == pytest.approx(expected.mask.mean(), abs=1e-6)
    assert "x-diffseg-presence" not in answer.headers
    for form, channels in (("overlay", (3,)), ("heatmap", (3,)), ("cutout", (4,))):
        shown = pixels(client.post("/v1/segment", files=ASK, data={**fields, "format": form}).content)
        assert shown.shape == (*HW, *channels)


def test_json_holds_the_same_mask_in_every_form(client: TestClient, finder: Segmenter) -> None:
    support = finder.encode_support([(SUPPORT, MASK > 0)])
    expected = finder.segment(QUERY, support, threshold=0.45)
    include = ["rle", "polygons", "probability", "score_map"]
    fields = {"format": "json", "threshold": "0.45", "include": include}
    found = client.post("/v1/segment", files=ASK, data=fields).json()
    assert found["size_hw"] == list(HW) and found["threshold"] == 0.45 and found["presence"] is None
    assert found["pixels"] == expected.mask.sum() and found["mask_area"] == expected.mask.mean()
    runs = {"size": found["rle"]["size"], "counts": found["rle"]["counts"].encode()}
    np.testing.assert_array_equal(coco_mask.decode(runs), expected.mask)
    assert found["min_area"] == "1%"
    levels = pixels(base64.b64decode(found["probability_png"]))
    np.testing.assert_array_equal(drop_specks(levels > 90, "1%"), expected.mask)
    assert pixels(base64.b64decode(found["score_map_png"])).shape == HW
    assert all(len(ring) >= 6 and len(ring) % 2 == 0 for ring in found["polygons"])
    assert {"read", "encode"} <= set(found["seconds"])
    bare = client.post("/v1/segment", files=ASK, data={"format": "json"}).json()
    assert "rle" in bare and "polygons" not in bare and "probability_png" not in bare


def test_instances_are_told_apart_in_json_and_as_a_map() -> None:
    files = parts(
        support=(BIRD / "support.jpg").read_bytes(),
        mask=(BIRD / "support_mask.png").read_bytes(),
        query=(REPOSITORY / "examples" / "dog" / "query.jpg").read_bytes(),  # two heads, taken for birds
    )
    fields = {"format": "json", "instances": "true"}
    with serve(load_segmenter("compact", device="cpu")) as client:
        found = client.post("/v1/segment", files=files, data=fields).json()
        drawn = client.post("/v1/segment", files=files, data={"format": "instances"})
        plain = client.post("/v1/segment", files=files, data={"format": "json"}).json()
    assert found["count"] == len(found["instances"]) > 1
    masks = [
        coco_mask.decode({**each["rle"], "counts": each["rle"]["counts"].encode()})
        for each in found["instances"]
    ]
    whole = coco_mask.decode({**found["rle"], "counts": found["rle"]["counts"].encode()})
    np.testing.assert_array_equal(np.sum(masks, 0), whole)  # all of the mask, and nothing twice
    for each, mask in zip(found["instances"], masks, strict=True):
        x, y, w, h = each["box_xywh"]
        assert mask.sum() == mask[y : y + h, x : x + w].sum() == each["pixels"]
    ids = np.sum([each["id"] * m for each, m in zip(found["instances"], masks, strict=True)], 0)
    np.testing.assert_array_equal(pixels(drawn.content), ids)
    assert "instances" not in plain and plain["rle"] == found["rle"]


def test_an_empty_mask_has_neither_box_nor_outline(client: TestClient) -> None:
    fields = {"format": "json", "threshold": "0.999999", "include": ["rle", "polygons"]}
    found = client.post("/v1/segment", files=ASK, data=fields).json()
    assert (found["pixels"], found["box_xywh"], found["rle"], found["polygons"]) == (0, None, None, [])


probabilities = npst.arrays(np.float32, (4, 5), elements=st.floats(0, 1, width=32))


@given(probabilities)
def test_levels_are_cut_where_the_probability_is(probability: NDArray[np.float32]) -> None:
    for percent in range(1, 100):
        near = np.float32(percent / 100)
        probability[0, :3] = near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(1))
        cut = probability > percent / 100
        np.testing.assert_array_equal(probability_levels(probability) > 2 * percent, cut)


def test_the_shipped_model_answers_as_on_the_command_line() -> None:
    segmenter = load_segmenter("compact", device="cpu")
    pair = BIRD / "support.jpg", BIRD / "support_mask.png"
    expected = segmenter.segment(BIRD / "query.jpg", segmenter.encode_support([pair]))
    files = parts(
        support=pair[0].read_bytes(), mask=pair[1].read_bytes(), query=(BIRD / "query.jpg").read_bytes()
    )
    with serve(segmenter) as client:
        answer = client.post("/v1/segment", files=files)
        np.testing.assert_array_equal(pixels(answer.content) > 0, expected.mask)
        assert float(answer.headers["x-diffseg-presence"]) == pytest.approx(expected.presence, abs=1e-4)
        model = client.get("/v1/model").json()
        assert model["has_presence"] and "compact" in model["description"]
        fields = {"min_presence": "1", "format": "json"}
        assert client.post("/v1/segment", files=files, data=fields).json()["pixels"] == 0


def test_the_orientation_of_a_photograph_is_applied(client: TestClient) -> None:
    """A support whose EXIF block turns it fits a mask of the picture as it is shown."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(SUPPORT)).save(stream, "PNG", exif=exif)
    turned = [*parts(support=stream.getvalue(), mask=MASK), *parts(query=stream.getvalue())]
    plain = [*ONE, *parts(query=SUPPORT)]
    answers = [client.post("/v1/segment", files=files) for files in (turned, plain)]
    np.testing.assert_array_equal(pixels(answers[0].content), pixels(answers[1].content))


def test_a_box_becomes_the_mask_of_diffseg_mask(client: TestClient, finder: Segmenter) -> None:
    sides = {"x": "10", "y": "5", "width": "30", "height": "30"}
    answer = client.post("/v1/mask", files=parts(image=SUPPORT), data=sides)
    expected = mask_from_box(finder, SUPPORT, box_region((10, 5, 30, 30), HW))
    np.testing.assert_array_equal(pixels(answer.content) > 0, expected)
    outside = client.post("/v1/mask", files=parts(image=SUPPORT), data={**sides, "x": "500"})
    assert outside.status_code == 400 and "holds no pixel" in outside.json()["error"]


# --- masks in every form ---------------------------------------------------------------------------------


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, MASK > 0)
    return stream.getvalue()


COCO = {
    "images": [
        {"id": 1, "file_name": "folder/support.png", "height": 48, "width": 64},
        {"id": 2, "file_name": "other.png", "height": 48, "width": 64},
    ],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [
        {
            **{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0},
            "segmentation": [[20, 10, 50, 10, 50, 35, 20, 35]],
        }
    ],
}
SHARES = " ".join(
    str(value) for x, y in ((20, 10), (50, 10), (50, 35), (20, 35)) for value in (x / 64, y / 48)
)
LABELS = np.where(MASK > 0, 3, 0).astype(np.uint8)
LABELS[:5] = 7
FORMS: list[tuple[bytes | Pixels, dict[str, str]]] = [
    (npy(), {}),
    (json.dumps(COCO).encode(), {"category": "dog"}),
    (f"0 {SHARES}\n".encode(), {}),
    (LABELS, {"label": "3"}),
    (255 - MASK, {"invert_mask": "true"}),
    (np.kron(MASK, np.ones((2, 2), np.uint8)), {"fit_mask": "true"}),
]


@pytest.mark.parametrize(("mask", "fields"), FORMS)
def test_a_mask_may_have_every_form(client: TestClient, mask: bytes | Pixels, fields: dict[str, str]) -> None:
    answer = client.post("/v1/segment", files=parts(support=SUPPORT, mask=mask, query=QUERY), data=fields)
    assert answer.status_code == 200, answer.text
    assert answer.content == client.post("/v1/segment", files=ASK).content


def test_each_mask_has_a_choice_of_its_own(client: TestClient) -> None:
    other = np.where(LABELS == 3, 9, LABELS)
    files = parts(support=[SUPPORT] * 2, mask=[LABELS, other], query=QUERY)
    answer = client.post("/v1/segment", files=files, data={"label": ["3", "9"]})
    same = client.post("/v1/segment", files=parts(support=[SUPPORT] * 2, mask=[MASK] * 2, query=QUERY))
    assert answer.status_code == 200 and answer.content == same.content
    refused = client.post("/v1/segment", files=files, data={"label": ["3", "9", "9"]})
    assert refused.status_code == 400 and "label is given 3 times, for 2 masks" in refused.json()["error"]


def test_notes_name_no_folder_of_the_server(client: TestClient) -> None:
    document = {**COCO, "images": [COCO["images"][0] | {"file_name": "renamed.png"}]}
    files = parts(support=SUPPORT, mask=json.dumps(document).encode(), query=QUERY)
    notes = client.post("/v1/segment", files=files, data={"format": "json"}).json()["notes"]
    assert len(notes) == 1 and notes[0].startswith("mask 1 is about renamed.png, taken for ")
    assert "/" not in notes[0]


def test_how_a_mask_was_understood_is_told(client: TestClient) -> None:
    larger = np.kron(MASK, np.ones((2, 2), np.uint8))
    files = parts(support=SUPPORT, mask=larger, query=QUERY)
    found = client.post("/v1/segment", files=files, data={"fit_mask": "true", "format": "json"}).json()
    assert found["notes"] == ["mask 1 is 128 x 96 and was brought to the 64 x 48 of its image."]


# --- refusals ------------------------------------------------------------------------------------------

WRONG: list[tuple[Parts, dict[str, str], int, str]] = [
    (ONE, {}, 400, "query: Field required."),
    (parts(query=QUERY), {}, 400, "either a concept or supports"),
    (ASK, {"concept": "dog"}, 400, "either a concept or supports"),
    (parts(query=QUERY), {"concept": "dog"}, 404, "No concept is called dog."),
    (parts(query=QUERY, support=SUPPORT), {}, 400, "holds 1 support and 0 mask images"),
    (parts(query=QUERY, support=[SUPPORT] * 20, mask=[MASK] * 20), {}, 400, "16 supports at most"),
    (parts(query=QUERY), {"support": "dog.jpg", "mask": "dog.png"}, 400, "support: this must be a file"),
    (ASK, {"threshold": "1"}, 400, "threshold: "),
    (ASK, {"threshold": "nan"}, 400, "threshold: "),
    (ASK, {"min_area": "1 %"}, 400, "min_area: "),
    (ASK, {"format": "tiff"}, 400, "format: "),
    (ASK, {"min_presence": "0.5"}, 400, "no presence score"),
    (ASK, {"label": "1", "color": "ff0000"}, 400, "label and color each say"),
    (parts(query=b"no picture", support=SUPPORT, mask=MASK), {}, 422, "query is not an image"),
    (parts(query=b"", support=SUPPORT, mask=MASK), {}, 422, "query is empty"),
    (parts(query=png_bytes(QUERY)[:-90], support=SUPPORT, mask=MASK), {}, 422, "query is damaged"),
    (parts(query=QUERY, support=b"%PDF-1.7", mask=MASK), {}, 422, "support 1 is a PDF"),
    (parts(query=QUERY, support=SUPPORT, mask=MASK * 0), {}, 422, "mask 1 (64 x 48"),
    (parts(query=QUERY, support=SUPPORT, mask=b"[1, 2"), {}, 422, "mask 1"),
    (parts(query=QUERY, support=SUPPORT, mask=b"7 0.1 hello"), {}, 422, "mask 1"),
    (parts(query=QUERY, support=SUPPORT, mask=LABELS), {}, 422, "mask 1"),
    (parts(query=QUERY, support=[SUPPORT] * 2, mask=[MASK, box((60, 64))]), {}, 422, "mask 2 is 64 x 60"),
]


@pytest.mark.parametrize(("files", "fields", "status", "text"), WRONG)
def test_what_is_wrong_is_said_in_a_sentence(
    client: TestClient, files: Parts, fields: dict[str, str], status: int, text: str
) -> None:
    answer = client.post("/v1/segment", files=files, data=fields)
    body = answer.json()
    assert answer.status_code == status, body
    assert text in body["error"] and body["error"].endswith(".") and set(body) == {"error", "hint"}
    assert "diffseg-" not in answer.text and "--" not in answer.text  # neither our folders nor options


def test_what_is_not_there_is_refused_alike(client: TestClient) -> None:
    assert client.get("/nothing").json() == {"error": "Not Found.", "hint": None}
    assert client.put("/v1/segment").status_code == 405 and "error" in client.put("/v1/segment").json()
    assert client.get("/docs").status_code == 404  # it would load scripts from elsewhere


def test_an_error_of_our_own_leaves_without_its_details(
    finder: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(Segmenter, "segment_encoded", broken)
    app = create_app(finder)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.post("/v1/segment", files=ASK)
        assert answer.status_code == 500 and "secret" not in answer.text
        monkeypatch.undo()
        assert client.post("/v1/segment", files=ASK).status_code == 200


@pytest.mark.parametrize(("folder", "number"), [("/nowhere/at/all", errno.ENOENT), (None, errno.ENOSPC)])
def test_a_large_body_without_a_place_for_it_is_the_servers_fault(
    finder: Segmenter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    folder: str | None,
    number: int,
) -> None:
    """What is larger than a megabyte goes through TMPDIR."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    # A server in an earlier test may have ended both.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="uvicorn.error")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    if folder is None:
        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with serve(finder) as client:
        files = [*ONE, *parts(query=png_bytes(QUERY) + bytes(2_000_000))]
        answer = client.post("/v1/segment", files=files)
        assert answer.status_code == 500 and os.strerror(number) in answer.json()["error"]
        assert "nowhere" not in answer.text and os.strerror(number) in caplog.text
        monkeypatch.undo()
        assert client.post("/v1/segment", files=files).status_code == 200


# --- concepts ------------------------------------------------------------------------------------------


def test_a_concept_is_kept_used_and_forgotten(finder: Segmenter) -> None:
    fixed = SupportSet("sofa", [(SUPPORT, MASK > 0)]).concept(finder)
    app = create_app(finder, [fixed], Limits(concepts=2))
    with TestClient(app, base_url="http://localhost") as client:
        made = client.post("/v1/concepts", files=ONE, data={"name": "my dog"})
        assert made.status_code == 200 and made.json()["supports"] == 1
        shown = pixels(base64.b64decode(made.json()["preview"].partition(",")[2]))
        assert shown.ndim == 3 and max(shown.shape) <= 160
        listed = client.get("/v1/concepts").json()["concepts"]
        assert [(each["id"], each["fixed"]) for each in listed] == [("sofa", True), ("my dog", False)]
        by_concept = client.post("/v1/segment", files=parts(query=QUERY), data={"concept": "my dog"})
        assert by_concept.content == client.post("/v1/segment", files=ASK).content
        for name, text in (("My Dog", "is called My Dog already"), ("third", "keeps 2 concepts at most")):
            refused = client.post("/v1/concepts", files=ONE, data={"name": name})
            assert refused.status_code == 409 and text in refused.json()["error"]
        assert client.post("/v1/concepts", files=ONE, data={"name": "../x"}).status_code == 400
        assert client.post("/v1/concepts", data={"name": "x"}).status_code == 400
        assert client.delete("/v1/concepts/sofa").status_code == 409
        assert client.delete("/v1/concepts/my%20dog").status_code == 204
        assert client.delete("/v1/concepts/my%20dog").status_code == 404


def await_adaptation(client: TestClient, name: str) -> dict[str, Any]:
    for _ in range(1200):
        adaptation: dict[str, Any] = client.get(f"/v1/concepts/{name}").json()["adaptation"]
        if adaptation["stage"] != "adapting":
            return adaptation
        threading.Event().wait(0.05)
    raise AssertionError(adaptation)


def test_a_concept_is_adapted_in_the_background_and_used(small_segmenter: Segmenter) -> None:
    pairs, absent = [(picture(seed), MASK > 0) for seed in (0, 4, 5)], picture(9)
    files = [*parts(support=[pair[0] for pair in pairs], mask=[MASK] * 3), *parts(**{"not": absent})]
    (adapted,) = [
        step.adapted
        for step in adapt_steps(small_segmenter, pairs, negatives=[(absent, None)])
        if step.adapted
    ]
    support = small_segmenter.encode_support(pairs)
    expected = small_segmenter.with_trained(adapted.trained).segment(QUERY, support)
    with serve(small_segmenter) as client:
        made = client.post("/v1/concepts", files=files, data={"name": "bird", "adapt": "true"})
        assert made.status_code == 200 and made.json()["adaptation"]["stage"] == "adapting"
        busy = client.post("/v1/concepts", files=files, data={"name": "other", "adapt": "true"})
        assert busy.status_code == 503 and busy.headers["retry-after"].isdecimal()
        assert "adapting to bird" in busy.json()["error"]
        plain = client.post("/v1/segment", files=parts(query=QUERY), data={"concept": "bird"})
        assert plain.status_code == 200  # it is of use before
        said = await_adaptation(client, "bird")
        assert (said["reach"], said["before"], said["after"]) == (
            *(adapted.reach, adapted.before, adapted.after),
        )
        assert [each["id"] for each in client.get("/v1/concepts").json()["concepts"]] == ["bird"]
        found = client.post("/v1/segment", files=parts(query=QUERY), data={"concept": "bird"})
        np.testing.assert_array_equal(pixels(found.content) > 0, expected.mask)


def test_negatives_have_masks_as_on_the_command_line(
    small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first masks belong to the first images; without one an image is without the object as a whole."""
    seen = list[Any]()
    monkeypatch.setattr(concepts, "adapt_steps", lambda *_, negatives: seen.extend(negatives) or iter(()))
    files = parts(**{"not": [picture(8), picture(9)]}, not_mask=MASK)
    with serve(small_segmenter) as client:
        made = client.post("/v1/concepts", files=[*ONE, *files], data={"name": "dog", "adapt": "true"})
    assert made.status_code == 200, made.text
    (marked, region), (whole, nothing) = seen
    np.testing.assert_array_equal(marked, picture(8))
    np.testing.assert_array_equal(region, MASK > 0)
    np.testing.assert_array_equal(whole, picture(9))
    assert nothing is None


def test_adapting_can_be_stopped_and_the_concept_stays(small_segmenter: Segmenter) -> None:
    files = [*ONE, *parts(**{"not": picture(9)})]
    with serve(small_segmenter) as client:
        client.post("/v1/concepts", files=files, data={"name": "dog", "adapt": "true"})
        stopped = client.delete("/v1/concepts/dog/adaptation")
        assert stopped.status_code == 200 and stopped.json()["adaptation"] == {"stage": "cancelled"}
        by_concept = client.post("/v1/segment", files=parts(query=QUERY), data={"concept": "dog"})
        assert by_concept.content == client.post("/v1/segment", files=ASK).content
        assert client.delete("/v1/concepts/cat/adaptation").status_code == 404
        client.post("/v1/concepts", files=files, data={"name": "cat", "adapt": "true"})
        assert client.delete("/v1/concepts/cat").status_code == 204
        assert [each["id"] for each in client.get("/v1/concepts").json()["concepts"]] == ["dog"]


def test_requests_are_answered_while_supports_are_encoded(
    small_segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, begun, go = list[str](), threading.Event(), threading.Event()
    encode, find = SupportViews.add_support, engine.find_in

    def add_support(views: SupportViews, pair: Any) -> None:
        begun.set()
        assert go.wait(20)
        order.append("a support was encoded")
        encode(views, pair)

    def find_in(*arguments: Any) -> Any:
        order.append("a request was answered")
        return find(*arguments)

    monkeypatch.setattr(SupportViews, "add_support", add_support)
    monkeypatch.setattr(engine, "find_in", find_in)
    files = parts(support=[picture(0), picture(4)], mask=[MASK] * 2)
    with serve(small_segmenter) as client, ThreadPoolExecutor() as pool:
        client.post("/v1/concepts", files=files, data={"name": "bird", "adapt": "true"})
        assert begun.wait(20)
        answer = pool.submit(client.post, "/v1/segment", files=ASK)
        while "in_hand 1" not in client.get("/metrics").text:
            pass
        threading.Event().wait(0.2)  # it may still be read
        go.set()
        assert answer.result().status_code == 200
        await_adaptation(client, "bird")
    assert order == ["a support was encoded", "a request was answered", "a support was encoded"]


def test_one_support_alone_is_not_adapted_to(small_segmenter: Segmenter) -> None:
    with serve(small_segmenter) as client:
        client.post("/v1/concepts", files=ONE, data={"name": "dog", "adapt": "true"})
        said = await_adaptation(client, "dog")
        assert (said["stage"], said["reach"], said["before"], said["after"]) == ("done", 0, None, None)


def test_what_cannot_be_adapted_to_is_refused_and_not_kept(
    client: TestClient, small_segmenter: Segmenter
) -> None:
    data = {"name": "dog", "adapt": "true"}
    refused = client.post("/v1/concepts", files=ONE, data=data)
    assert refused.status_code == 400 and "no trained modules to adapt" in refused.json()["error"]
    assert not client.get("/v1/model").json()["can_adapt"]
    with serve(small_segmenter) as adapting:
        assert adapting.get("/v1/model").json()["can_adapt"]
        for files, fields, status, text in (
            ([*ONE, *parts(**{"not": QUERY})], {"name": "dog"}, 400, "The field not is for adapting"),
            ([*ONE, *parts(**{"not": b"no image"})], data, 422, "image 1 without the object is not an image"),
            ([*ONE, *parts(**{"not": [QUERY] * 17})], data, 400, "16 images without the object at most"),
            ([*ONE, *parts(not_mask=MASK)], data, 400, "holds 0 not and 1 not_mask images"),
            (
                [*ONE, *parts(**{"not": [SUPPORT, QUERY]}, not_mask=[MASK, box((20, 30))])],
                data,
                422,
                "mask of image 2 without the object is 30 x 20",
            ),
        ):
            answer = adapting.post("/v1/concepts", files=files, data=fields)
            assert answer.status_code == status and text in answer.json()["error"], answer.text
        assert adapting.get("/v1/concepts").json() == {"concepts": []}


# --- limits --------------------------------------------------------------------------------------------


def test_what_is_too_large_is_refused(finder: Segmenter) -> None:
    with serve(finder, body_bytes=30_000, pixels=5_000) as client:
        assert client.post("/v1/segment", files=ASK).status_code == 200
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        declared = client.post("/v1/segment", files=[*ONE, *parts(query=noise)])
        assert declared.status_code == 413 and "larger than 0.03 MB" in declared.json()["error"]
        whole = client.build_request("POST", "/v1/segment", files=[*ONE, *parts(query=noise)])
        content = whole.read()
        pieces = (content[at : at + 5000] for at in range(0, len(content), 5000))
        kind = {"Content-Type": whole.headers["Content-Type"]}
        undeclared = client.post("/v1/segment", content=pieces, headers=kind)
        assert undeclared.status_code == 413 and "larger than 0.03 MB" in undeclared.json()["error"]
        flat = np.zeros((300, 300, 3), dtype=np.uint8)
        for files, name in (
            ([*ONE, *parts(query=flat)], "query"),
            (parts(support=flat, mask=MASK, query=QUERY), "support 1"),
            (parts(support=SUPPORT, mask=flat, query=QUERY), "mask 1"),
        ):
            answer = client.post("/v1/segment", files=files)
            assert answer.status_code == 422
            wanted = f"{name} is too large (300 x 300): more than 0.005 megapixels."
            assert answer.json()["error"] == wanted


def test_small_uploads_that_unfold_are_refused(finder: Segmenter) -> None:
    """However few bytes: an array, brackets, many supports."""
    stream = io.BytesIO()
    np.savez_compressed(stream, mask=np.zeros((300, 300), dtype=np.uint8))
    assert len(stream.getvalue()) < 1000
    brackets = b'{"shapes": [' + b"[]," * 7_000_000 + b"[]]}"
    with serve(finder, pixels=5_000) as client:
        for mask, said in (
            (stream.getvalue(), "mask 1 holds an array of 300 x 300"),
            (brackets, "mask 1 would take 0."),
        ):
            answer = client.post("/v1/segment", files=parts(support=SUPPORT, mask=mask, query=QUERY))
            assert answer.status_code == 422 and said in answer.json()["error"]
        many = parts(support=[SUPPORT] * 4, mask=[MASK] * 4, query=QUERY)
        answer = client.post("/v1/segment", files=many)
        assert (
            answer.status_code == 422
            and "The supports have 0.0123 megapixels together" in answer.json()["error"]
        )


class Slow(InferenceEngine):
    """An engine that works when it is let."""

    begun, go = threading.Event(), threading.Event()

    def work(self, orders: Sequence[Order], wanted: Callable[[], bool]) -> list[Reply | Exception]:
        self.begun.set()
        assert self.go.wait(20)
        return super().work(orders, wanted)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    Slow.begun.clear()
    Slow.go.clear()
    monkeypatch.setattr(app_module, "InferenceEngine", Slow)
    return Slow


def test_a_full_server_sends_away_and_says_when_to_come_back(finder: Segmenter, slow: type[Slow]) -> None:
    with serve(finder, requests=2) as client, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(client.post, "/v1/segment", files=ASK) for _ in range(2)]
        while "in_hand 2" not in client.get("/metrics").text:
            pass
        refused = client.post("/v1/segment", files=ASK)
        assert refused.status_code == 503 and refused.headers["retry-after"].isdecimal()
        assert client.get("/healthz").json()["status"] == "ok"
        slow.go.set()
        assert [each.result().status_code for each in waiting] == [200, 200]
        assert client.post("/v1/segment", files=ASK).status_code == 200
        assert "diffseg_requests_in_hand 0" in client.get("/metrics").text


def test_a_request_that_takes_too_long_ends_and_its_work_is_not_begun(
    finder: Segmenter, slow: type[Slow]
) -> None:
    with serve(finder, seconds=0.3) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(client.post, "/v1/segment", files=ASK)
        assert slow.begun.wait(10)
        second = pool.submit(client.post, "/v1/segment", files=ASK)
        for each in (first, second):
            assert each.result().status_code == 504
            assert each.result().json()["error"] == "This took longer than 0.3 seconds."
        slow.go.set()
    with serve(finder) as client:
        assert client.post("/v1/segment", files=ASK).status_code == 200


@pytest.mark.parametrize("route", ["segment", "concepts", "mask"])
def test_work_ends_before_its_next_stage_once_its_time_is_over(finder: Segmenter, route: str) -> None:
    entered, over = list[str](), threading.Event()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        entered.append(name)
        if name in ("look", "crop"):
            assert over.wait(20)
        yield

    sent: dict[str, tuple[Parts, dict[str, str]]] = {
        "segment": (ASK, {}),
        "concepts": (parts(support=[SUPPORT] * 3, mask=[MASK] * 3), {"name": "dog"}),
        "mask": (parts(image=SUPPORT), {"x": "10", "y": "5", "width": "30", "height": "30"}),
    }
    files, data = sent[route]
    with serve(replace(finder, stage=stage), seconds=3) as client, ThreadPoolExecutor() as pool:
        ask = partial(client.post, f"/v1/{route}", files=files, data=data)
        assert [each.result().status_code for each in [pool.submit(ask) for _ in range(2)]] == [504, 504]
        over.set()
    # The one in hand had one stage left to leave, and the one behind it never began.
    assert entered[-1] in ("look", "crop") and entered.count(entered[-1]) == 1, entered


def test_requests_at_once_get_the_answers_they_get_alone(finder: Segmenter, slow: type[Slow]) -> None:
    queries = [[*ONE, *parts(query=picture(seed))] for seed in range(6)]
    bad = [*ONE, *parts(query=b"no picture")]
    with serve(finder) as client, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.post, "/v1/segment", files=files) for files in (*queries, bad)]
        slow.go.set()
        together = [each.result() for each in waiting]
        alone = [client.post("/v1/segment", files=files) for files in queries]
    assert [each.content for each in together[:6]] == [each.content for each in alone]
    assert together[6].status_code == 422


def test_a_batch_holds_what_waits_for_one_thing(finder: Segmenter, slow: type[Slow]) -> None:
    """As on a GPU; one picture that cannot be read does not harm the others."""
    queries = [[*ONE, *parts(query=picture(seed))] for seed in range(4)]
    bad = [*ONE, *parts(query=b"no picture")]
    with serve(finder, batch_size=8) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, "/v1/segment", files=queries[0])
        assert slow.begun.wait(10)
        rest = [pool.submit(client.post, "/v1/segment", files=files) for files in (*queries[1:], bad)]
        while "in_hand 5" not in client.get("/metrics").text:
            pass
        threading.Event().wait(0.2)  # the last of them may still be read
        slow.go.set()
        assert first.result().status_code == 200
        assert [each.result().status_code for each in rest] == [200, 200, 200, 422]
        counted = client.get("/metrics").text
    assert "diffseg_images_total 4\n" in counted and "diffseg_batches_total 2\n" in counted


def test_requests_with_other_options_are_no_batch(finder: Segmenter, slow: type[Slow]) -> None:
    """One picture, one support, at once: each option is that of its own request."""
    unsure = finder.with_trained(replace(finder.trained, presence=PresenceCalibration((0.0, 0.0, 0.0), 0.0)))
    asked = [{"threshold": "0.3"}, {"threshold": "0.6"}]
    asked += [{"threshold": "0.3", **more} for more in ({"refine": "false"}, {"min_presence": "0.9"})]
    with serve(unsure, batch_size=8) as client, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.post, "/v1/segment", files=ASK)]
        assert slow.begun.wait(10)
        waiting = [pool.submit(client.post, "/v1/segment", files=ASK, data=fields) for fields in asked]
        while "in_hand 5" not in client.get("/metrics").text:
            pass
        threading.Event().wait(0.2)  # the last of them may still be read
        slow.go.set()
        together = [each.result().content for each in waiting]
        alone = [client.post("/v1/segment", files=ASK, data=fields).content for fields in asked]
    assert together == alone and len(set(alone)) == len(asked)


@contextmanager
def listening(segmenter: Segmenter, **limits: Any) -> Iterator[tuple[str, int]]:
    """A server on a socket; its host and port."""
    app = create_app(segmenter, limits=Limits(**limits))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as opened:
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        yield opened.getsockname()
        server.should_exit = True
        thread.join()


def raw_request(client: TestClient) -> bytes:
    request = client.build_request("POST", "/v1/segment", files=ASK)
    body = request.read()
    lines = [f"{name}: {text}" for name, text in request.headers.items()]
    return "\r\n".join(["POST /v1/segment HTTP/1.1", *lines, "", ""]).encode() + body


def test_the_order_of_a_client_that_went_away_is_not_worked_on(
    client: TestClient, finder: Segmenter, slow: type[Slow]
) -> None:
    with listening(finder) as (host, port):

        def counted() -> str:
            return urllib.request.urlopen(f"http://{host}:{port}/metrics").read().decode()

        with socket.create_connection((host, port)) as stays, socket.create_connection((host, port)) as goes:
            stays.sendall(raw_request(client))
            assert slow.begun.wait(10)
            goes.sendall(raw_request(client))
            while "in_hand 2" not in counted():
                pass
            goes.close()
            while "in_hand 1" not in counted():
                pass
            slow.go.set()
            assert stays.recv(1000).startswith(b"HTTP/1.1 200")
        assert "diffseg_images_total 1\n" in counted() and 'status="499"' in counted()


def test_an_upload_that_stalls_is_ended(client: TestClient, finder: Segmenter) -> None:
    with listening(finder, seconds=0.3) as address, socket.create_connection(address) as caller:
        caller.sendall(raw_request(client)[:-1000])
        caller.settimeout(10)
        assert caller.recv(1000).startswith(b"HTTP/1.1 504")


# --- who may ask ---------------------------------------------------------------------------------------

HEADERS = [
    ({"Host": "localhost:8000"}, 200),
    ({"Host": "127.0.0.1"}, 200),
    ({"Host": "[::1]:8000"}, 200),
    ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
    ({"Host": "rebound.example"}, 403),
    ({"Host": "localhost.example"}, 403),
    ({"Host": "[::1"}, 403),
    ({"Host": ""}, 403),
    ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
    ({"Host": "localhost:8000", "Origin": "https://evil.example"}, 403),
    ({"Host": "localhost:8000", "Origin": "null"}, 403),
]


@pytest.mark.parametrize(("headers", "status"), HEADERS)
def test_without_a_token_only_this_machine_and_its_page_may_ask(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    assert client.get("/v1/model", headers=headers).status_code == status
    assert client.get("/", headers=headers).status_code == status


def test_with_a_token_everything_but_page_and_health_asks_for_it(finder: Segmenter) -> None:
    with TestClient(create_app(finder, token=TOKEN), base_url="http://gpu.example") as client:
        assert client.get("/").status_code == client.get("/healthz").status_code == 200
        for path in ("/v1/model", "/v1/concepts", "/metrics", "/openapi.json", "/nothing"):
            assert client.get(path).status_code == 401, path
        for wrong in ("Bearer nope", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é", TOKEN):
            refused = client.post(
                "/v1/segment", files=ASK, headers={"Authorization": wrong.encode("latin-1")}
            )
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/model", headers=MINE).status_code == 200
        assert client.post("/v1/segment", files=ASK, headers=MINE).status_code == 200


def test_loopback_is_told_without_asking_anyone() -> None:
    assert all(map(is_loopback, ("localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.com", "", "127.0.0.1.nip.io")))


# --- what is there -------------------------------------------------------------------------------------


def test_metrics_are_what_prometheus_reads(client: TestClient) -> None:
    client.post("/v1/segment", files=ASK)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    line = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+')
    for each in answer.text.splitlines():
        assert each.startswith("# ") or line.fullmatch(each), each
    assert 'diffseg_requests_total{path="/v1/segment",status="200"}' in answer.text
    assert 'diffseg_stage_seconds_total{stage="encode"}' in answer.text


def test_the_page_is_all_there_and_may_reach_nothing_else(client: TestClient) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert "http" not in policy and "script-src 'self';" in policy
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert " style=" not in answer.text and not re.search(r"<[^>]* on[a-z]+=", answer.text)
    files, looked_at = re.findall(r'(?:src|href)="(/page/[^"]+)"', answer.text), set[str]()
    while files:
        path = files.pop()
        looked_at.add(path)
        sent = client.get(path)
        assert sent.status_code == 200 and sent.headers["content-type"].startswith("text/"), path
        assert sent.headers["x-content-type-options"] == "nosniff"
        assert not re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", sent.text)  # no address of another server
        imported = re.findall(r'^import [^"]*"([^"]+)";$', sent.text, re.MULTILINE)
        files += {urljoin(path, name) for name in imported} - looked_at
    assert {"/page/search/zip.js", "/page/shared/mask.js", "/page/shared/base.css"} <= looked_at


# --- the description -----------------------------------------------------------------------------------


CHECKS = [
    schemathesis.checks.not_a_server_error,
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
]


def test_requests_of_all_kinds_get_described_answers(finder: Segmenter) -> None:
    """schemathesis sends what the description allows and what it does not."""
    app = create_app(finder, limits=Limits(concepts=3), token=TOKEN)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=MINE)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.label for operation in operations} >= {"POST /v1/segment", "DELETE /v1/concepts/{name}"}
    supports = {"support": [png_bytes(SUPPORT)], "mask": [png_bytes(MASK)]}
    real: dict[str, dict[str, Any]] = {
        "/v1/segment": {"query": png_bytes(QUERY), **supports},
        "/v1/concepts": {"name": "dog", **supports},
        "/v1/mask": {"image": png_bytes(QUERY), "x": 10, "y": 5, "width": 30, "height": 30},
    }
    answered = set()
    for operation in operations:
        kinds = [operation.as_strategy(mode) for mode in schemathesis.GenerationMode]

        @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(st.one_of(kinds), st.booleans())
        def check(case: schemathesis.Case, with_pictures: bool) -> None:
            if with_pictures and isinstance(case.body, dict):  # random bytes alone never get far
                kept = case.body.keys() & {"threshold", "refine", "format", "include", "fit_mask"}
                case.body = {field: case.body[field] for field in kept} | real[case.operation.path]
            answer = case.call_and_validate(headers=MINE, checks=CHECKS)
            answered.add((case.operation.label, int(answer.status_code)))

        check()
    assert {(f"POST /v1/{what}", 200) for what in ("segment", "mask", "concepts")} <= answered, answered
