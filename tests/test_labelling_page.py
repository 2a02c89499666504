"""The labelling page in headless Chromium (`pytest -m browser`; needs chromium and chromedriver).

With DIFFSEG_SHOTS=FOLDER it also leaves screenshots there.
"""

import io
import json
import os
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from chromium import Chromium, is_installed
from conftest import make_swift_segmenter
from PIL import Image

from diffseg_cli.labelling.project import Project
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.serve.app import create_app

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not is_installed(), reason="chromedriver is not installed"),
]

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTOS = [
    "bird/query.jpg",
    "bird/query2.jpg",
    "bird/support.jpg",
    "hard_bird/query.jpg",
    "dog/query.jpg",
    "cat/query.jpg",
]
ENTER, ESCAPE, RIGHT, PAGE_DOWN = "\ue007", "\ue00c", "\ue014", "\ue00f"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in PHOTOS:
        shutil.copy(EXAMPLES / name, photos / name.replace("/", "_"))
    return Project(photos, tmp_path / "labels", ["bird"])


@contextmanager
def serving(segmenter: Segmenter, project: Project, port: int = 0) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(segmenter, project=project), log_level="warning"))
    with socket.create_server(("127.0.0.1", port)) as opened:
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser
        expected = ("status of", "ERR_CONNECTION_REFUSED")  # refusals, and a server that has ended
        complaints = browser.console()
        assert all(any(each in line for each in expected) for line in complaints), complaints


def shoot(browser: Chromium, name: str) -> None:
    if folder := os.environ.get("DIFFSEG_SHOTS"):
        time.sleep(0.6)
        browser.screenshot(Path(folder) / f"{name}.png")


def open_page(browser: Chromium, address: str) -> None:
    browser.open(address)
    browser.wait_for("document.body.dataset.ready")


def state(project: Project, key: str) -> str:
    project.refresh()
    return project.review(key).state.value


def wait_for_state(project: Project, key: str, expected: str) -> None:
    end = time.monotonic() + 20
    while state(project, key) != expected:
        assert time.monotonic() < end, state(project, key)
        time.sleep(0.1)


def saying(browser: Chromium, element: str) -> str:
    text: str = browser.run("return document.getElementById(arguments[0]).textContent", element)
    return text


def test_an_image_is_corrected_learned_from_and_the_rest_accepted(
    browser: Chromium, small_segmenter: Segmenter, project: Project
) -> None:
    with serving(make_swift_segmenter(small_segmenter), project) as address:
        open_page(browser, address)
        assert saying(browser, "left") == "correct an image first"
        first = browser.run("return document.querySelector('[aria-selected=true]').title")
        browser.press(ENTER)
        browser.wait_for("!document.getElementById('editor').hidden")
        browser.wait_for("document.getElementById('save').textContent === 'Accept'")
        time.sleep(1)
        browser.drag("#canvas", [(0.4, 0.4), (0.5, 0.5), (0.6, 0.6)])
        browser.wait_for("document.getElementById('save').textContent === 'Save correction'")
        shoot(browser, "editor")
        browser.press(ENTER)
        wait_for_state(project, first, "corrected")
        masks = project.masks(first)
        assert masks is not None
        h, w = masks[0].shape
        assert masks[0][h // 2, w // 2] and not masks[0][: h // 20].any()
        browser.press(ESCAPE)
        browser.wait_for("!document.getElementById('overview').hidden")
        browser.click("#learn")
        browser.wait_for("document.querySelectorAll('.tile[data-state=proposed]').length === 5")
        shoot(browser, "grid")
        assert state(project, first) == "corrected"
        chosen = browser.run("return document.querySelector('[aria-selected=true]').title")
        browser.run("document.getElementById('grid').focus()")
        browser.press("n")
        wait_for_state(project, chosen, "nothing here")


def test_polygon_box_click_and_undo_work_with_the_keyboard(
    browser: Chromium, small_segmenter: Segmenter, project: Project
) -> None:
    with serving(make_swift_segmenter(small_segmenter), project) as address:
        open_page(browser, address)
        browser.press(ENTER)
        time.sleep(1.5)
        browser.press("p", RIGHT, " ", *[RIGHT] * 9, " ", *["\ue015"] * 9, " ", ENTER)
        browser.wait_for("document.getElementById('save').textContent === 'Save correction'")
        browser.press("c", " ")
        browser.wait_for("!document.getElementById('stage').classList.contains('waiting')")
        browser.press("i")
        browser.wait_for("document.getElementById('instances').ariaPressed === 'true'")
        time.sleep(1.5)
        shoot(browser, "instances")
        browser.press("i", "x", " ", *[RIGHT] * 9, *["\ue015"] * 9, " ")
        browser.wait_for("!document.getElementById('stage').classList.contains('waiting')")
        for _ in range(3):
            browser.click("#undo")
        browser.wait_for("document.getElementById('save').textContent === 'Accept'")
        assert browser.run("return document.activeElement.id") == "canvas"


def test_a_server_that_was_gone_gets_what_was_drawn(
    browser: Chromium, small_segmenter: Segmenter, project: Project
) -> None:
    segmenter = make_swift_segmenter(small_segmenter)
    with serving(segmenter, project) as address:
        open_page(browser, f"{address}#image=dog_query.jpg")  # as the contact sheet links to it
        key = "dog_query.jpg"
        assert saying(browser, "editor-name") == key
        time.sleep(1.5)
        browser.drag("#canvas", [(0.4, 0.4), (0.6, 0.6)])
        browser.wait_for("document.getElementById('save').textContent === 'Save correction'")
    browser.press(ENTER)
    browser.wait_for("!document.getElementById('retry').hidden")
    assert "What you drew is kept" in saying(browser, "problem")
    with serving(segmenter, project, int(address.rsplit(":", 1)[1].strip("/"))):
        browser.click("#retry")
        wait_for_state(project, key, "corrected")


def test_what_somebody_else_decided_is_not_overwritten_unseen(
    browser: Chromium, small_segmenter: Segmenter, project: Project
) -> None:
    with serving(make_swift_segmenter(small_segmenter), project) as address:
        open_page(browser, address)
        key = browser.run("return document.querySelector('[aria-selected=true]').title")
        browser.press(ENTER)
        time.sleep(1.5)
        browser.drag("#canvas", [(0.4, 0.4), (0.6, 0.6)])
        Project(project.images, project.out).say_nothing(key, 0)
        browser.press(ENTER)
        browser.wait_for("document.getElementById('problem').textContent.includes('was changed meanwhile')")
        assert state(project, key) == "nothing here"
        browser.press(ENTER)
        wait_for_state(project, key, "corrected")
        browser.wait_for("document.getElementById('editor-state').textContent === 'untouched'")


def test_labels_are_downloaded(
    browser: Chromium, small_segmenter: Segmenter, project: Project, tmp_path: Path
) -> None:
    project.say_nothing(project.keys[0], 0)
    browser.allow_downloads(tmp_path)
    with serving(make_swift_segmenter(small_segmenter), project) as address:
        open_page(browser, address)
        browser.click("#export")
        archive = tmp_path / "labels-coco.zip"
        for _ in range(100):
            if archive.exists():
                break
            time.sleep(0.1)
        with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as files:
            assert len(json.loads(files.read("coco.json"))["images"]) == 1


def test_three_thousand_images_open_at_once(
    browser: Chromium, small_segmenter: Segmenter, tmp_path: Path
) -> None:
    photos = tmp_path / "many"
    photos.mkdir()
    content = io.BytesIO()
    Image.fromarray(np.zeros((90, 120, 3), dtype=np.uint8)).save(content, "JPEG")
    for number in range(3000):
        (photos / f"{number:04}.jpg").write_bytes(content.getvalue())
    project = Project(photos, tmp_path / "labels")
    with serving(make_swift_segmenter(small_segmenter), project) as address:
        open_page(browser, address)
        took = browser.run("return performance.now()")
        print(f"3000 images were open after {took:.0f} ms")
        assert browser.run("return document.querySelectorAll('.tile').length") < 150
        browser.run("document.getElementById('grid').scrollTop = 1e9")
        browser.wait_for("[...document.querySelectorAll('.tile')].some((tile) => tile.title === '2999.jpg')")
        browser.press("\ue010")
        assert browser.run("return document.querySelector('[aria-selected=true]').title") == "2999.jpg"
        browser.wait_for("[...document.querySelectorAll('.tile img')].every((image) => image.src)", 60)


@pytest.mark.parametrize(("width", "dark"), [(320, True), (1280, False), (3840, True)])
def test_it_fits_every_screen(
    browser: Chromium, small_segmenter: Segmenter, project: Project, width: int, dark: bool
) -> None:
    size = {"width": width, "height": 780 if width < 400 else 1000}
    browser.command("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=width < 400)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.command("Emulation.setEmulatedMedia", features=[scheme])
    for key in project.keys[:2]:
        h, w = np.asarray(Image.open(project.images / key)).shape[:2]
        mask = np.zeros((h, w), dtype=bool)
        mask[h // 3 : h // 2, w // 3 : w // 2] = True
        project.propose(key, 0, [mask], {"bird": 0.7}, 0.3)
    with serving(make_swift_segmenter(small_segmenter), project) as address:
        open_page(browser, address)
        shoot(browser, f"grid_{width}")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        browser.press(ENTER)
        time.sleep(1.5)
        shoot(browser, f"editor_{width}")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        nameless = (
            "return [...document.querySelectorAll('button, select, input, canvas, progress')]"
            ".filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.id)"
        )
        assert browser.run(nameless) == []
        own = (
            "return performance.getEntriesByType('resource').every((e) => e.name.startsWith(location.origin))"
        )
        assert browser.run(own)
