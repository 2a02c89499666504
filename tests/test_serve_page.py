"""The page of `diffseg serve` in headless Chromium (`pytest -m browser`; needs chromium and chromedriver).

With DIFFSEG_SHOTS=FOLDER it also leaves pictures of the page there.
"""

import base64
import os
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from chromium import Chromium, is_installed
from PIL import Image

from diffseg_cli.assembly import load_segmenter
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.serve.app import create_app
from diffseg_cli.serve.limits import Limits
from diffseg_cli.specks import drop_specks

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not is_installed(), reason="chromedriver is not installed"),
]

EXAMPLES = Path(__file__).parents[1] / "examples"
BIRD, DOG = EXAMPLES / "bird", EXAMPLES / "dog"
TOKEN = "a-token-of-some-length"
ALL_DONE = "cards.every((card) => card.found || card.error) && !running && timer === null"
BRUSH = 0.025  # radius as a share of the picture's longer side


def strokes_over(mask_file: Path) -> list[list[tuple[float, float]]]:
    """Strokes to and fro that cover a mask, in shares of width and height."""
    mask = np.asarray(Image.open(mask_file).convert("L")) > 127
    (h, w), radius = mask.shape, BRUSH * max(mask.shape)
    strokes = []
    for y in np.arange(np.flatnonzero(mask.any(1))[0] + radius, h, 1.5 * radius):
        inside = np.flatnonzero(mask[int(y)])
        if len(inside) > 2 * radius:
            strokes.append([(x / w, y / h) for x in (inside[0] + radius, inside[-1] - radius)])
    return strokes


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load_segmenter("compact", device="cpu")


def start(segmenter: Segmenter, token: str | None = None) -> Iterator[str]:
    """The address of a running server."""
    app = create_app(segmenter, limits=Limits(body_bytes=4_000_000), token=token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as opened:
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture
def address(segmenter: Segmenter) -> Iterator[str]:
    yield from start(segmenter)


@pytest.fixture
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser
        complaints = browser.console()
        assert not [line for line in complaints if "status of" not in line], complaints


def shoot(browser: Chromium, name: str) -> None:
    if folder := os.environ.get("DIFFSEG_SHOTS"):
        time.sleep(0.5)
        browser.screenshot(Path(folder) / f"{name}.png")


def open_support(browser: Chromium, path: Path) -> None:
    browser.choose_files("#support-file", [path])
    browser.wait_for("!document.getElementById('painter').hidden")


def paint_bird(browser: Chromium, support: Path = BIRD / "support.jpg") -> None:
    open_support(browser, support)
    size = 100 * ((BRUSH - 1.5 / 720) / 0.2) ** (2 / 3)
    browser.run("document.getElementById('size').value = arguments[0]; resize(0)", size)
    for stroke in strokes_over(BIRD / "support_mask.png"):
        browser.drag("#marks", stroke)
    browser.run("document.activeElement.blur()")
    browser.wait_for("support.blob")


def share_found(browser: Chromium, card: int = 0) -> float:
    script = "const m = cutMask(cards[arguments[0]]); return m.reduce((sum, v) => sum + v, 0) / m.length"
    share: float = browser.run(script, card)
    return share


def test_painting_and_dropping_shows_what_is_found_at_once(
    browser: Chromium, address: str, tmp_path: Path
) -> None:
    browser.allow_downloads(tmp_path)
    browser.open(address)
    shoot(browser, "empty")
    paint_bird(browser)
    shoot(browser, "painted")
    queries = [BIRD / "query.jpg", BIRD / "query2.jpg", DOG / "query.jpg"]
    browser.choose_files("#query-file", queries)
    browser.wait_for(f"cards.length === 3 && {ALL_DONE}")
    shoot(browser, "results")
    assert 0.15 < share_found(browser) < 0.35  # the true share is 0.24
    assert browser.run("return cards[0].found.presence") > 0.9
    assert "presence" in browser.run("return cards[0].facts.textContent")
    before = share_found(browser)
    requests = browser.run("return performance.getEntriesByName(location.href + 'v1/segment').length")
    browser.run("const s = document.getElementById('threshold'); s.value = 90; s.oninput()")
    assert share_found(browser) < before
    assert browser.run("return performance.getEntriesByName(location.href + 'v1/segment').length") == requests
    for view in ("heat", "mask", "picture", "overlay"):
        browser.click(f"input[name=show][value={view}]")
        shoot(browser, f"view_{view}")
    browser.click("#results li:first-child .save")
    saved = tmp_path / "query_mask.png"
    for _ in range(100):
        if saved.exists():
            break
        time.sleep(0.05)
    mask = np.asarray(Image.open(saved).convert("L"))
    assert mask.shape == Image.open(queries[0]).size[::-1] and set(np.unique(mask)) == {0, 255}
    assert (mask > 0).mean() == pytest.approx(share_found(browser), abs=1e-6)
    browser.click("#save-all")
    archive = tmp_path / "masks.zip"
    for _ in range(100):
        if archive.exists():
            break
        time.sleep(0.05)
    with zipfile.ZipFile(archive) as files:
        assert files.testzip() is None
        assert files.namelist() == ["query_mask.png", "query2_mask.png", "query_2_mask.png"]
        assert files.read("query_mask.png") == saved.read_bytes()
    browser.run("const s = document.getElementById('min-presence'); s.value = 100; s.oninput()")
    assert "taken for absent" in browser.run("return cards[2].facts.textContent")
    browser.click("#remove-all")
    assert browser.run("return cards.length") == 0


DROP = """
const [selector, content] = arguments, moved = new DataTransfer();
const bytes = Uint8Array.from(atob(content), (char) => char.charCodeAt(0));
moved.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
for (const kind of ["dragenter", "dragover", "drop"])
  document.querySelector(selector).dispatchEvent(
    new DragEvent(kind, { dataTransfer: moved, bubbles: true, cancelable: true }));
"""


def test_pictures_are_dropped_where_they_belong(browser: Chromium, address: str) -> None:
    browser.open(address)
    support, query = (
        base64.b64encode((BIRD / name).read_bytes()).decode() for name in ("support.jpg", "query.jpg")
    )
    browser.run(DROP, "#object", support)
    browser.wait_for("!document.getElementById('painter').hidden && support.file.name === 'dropped.jpg'")
    browser.run(DROP, "#where", query)
    browser.wait_for("cards.length === 1 && cards[0].picture")
    assert browser.run("return document.getElementById('state').textContent") == "Paint the object first."
    assert not browser.run("return document.querySelector('.over')")


def test_a_second_support_joins_the_first(browser: Chromium, address: str) -> None:
    browser.open(address)
    paint_bird(browser)
    browser.run("adding = true")  # as the button does before it opens the dialog for files
    browser.choose_files("#support-file", [BIRD / "query.jpg"])
    browser.wait_for("more.length === 1 && support.file.name === 'query.jpg' && !support.blob")
    sent = "const form = new FormData(); supportForm(form); return form.getAll('support').map((f) => f.name)"
    assert browser.run(sent) == ["support.jpg"]
    browser.drag("#marks", [(0.5, 0.4), (0.6, 0.5)])
    browser.wait_for("support.blob")
    assert browser.run(sent) == ["support.jpg", "query.jpg"]
    shoot(browser, "supports")
    browser.click("#more button")
    assert browser.run(sent) == ["query.jpg"]


def test_a_box_becomes_a_mask_that_can_be_undone(browser: Chromium, address: str) -> None:
    browser.open(address)
    open_support(browser, DOG / "support.jpg")
    browser.click("input[name=tool][value=box]")
    browser.drag("#marks", [(0.2, 0.2), (0.5, 0.5), (0.8, 0.9)])
    browser.wait_for("support.blob && !busyBox")
    shoot(browser, "box")
    browser.click("#undo")
    browser.wait_for("!support.blob && document.getElementById('undo').disabled")


def test_the_keyboard_paints_too(browser: Chromium, address: str) -> None:
    browser.open(address)
    open_support(browser, BIRD / "support.jpg")
    browser.run("marks.focus()")
    right, space = "\ue014", " "
    browser.press("b", right, space, right, space, right, space)
    browser.wait_for("support.blob && support.history.length === 3")
    browser.press("e", space)
    browser.wait_for("support.history.length === 4 && tool === 'eraser'")
    browser.press("x", space, right, right, right, "\ue015", "\ue015", "\ue015", space)
    browser.wait_for("busyBox || support.history.length === 5 || !document.getElementById('problem').hidden")


def test_a_concept_is_kept_and_used(browser: Chromium, address: str) -> None:
    browser.open(address)
    paint_bird(browser)
    browser.click("#keep")
    browser.type("#concept-name", "kingfisher")
    browser.click("#keep")
    browser.wait_for("chosen === 'kingfisher' && !document.getElementById('choosing').hidden")
    browser.choose_files("#query-file", [BIRD / "query.jpg"])
    browser.wait_for(f"cards.length === 1 && {ALL_DONE}")
    shoot(browser, "concept")
    assert browser.run("return cards[0].found.name") == "kingfisher" and share_found(browser) > 0.15
    browser.click("#concepts button")
    browser.wait_for("!document.getElementById('no-concepts').hidden")


def test_what_goes_wrong_is_a_sentence(browser: Chromium, address: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    (tmp_path / "text.jpg").write_text("no picture at all")
    Image.open(BIRD / "query.jpg").save(tmp_path / "odd.ico", sizes=[(64, 64)])  # shown by browsers only
    browser.open(address)
    browser.choose_files("#support-file", [tmp_path / "text.jpg"])
    browser.wait_for("!document.getElementById('problem').hidden")
    problem = "return document.getElementById('problem').firstElementChild.textContent"
    assert browser.run(problem) == "text.jpg cannot be shown by this browser. Save it as PNG or JPEG."
    paint_bird(browser)
    assert browser.run("return document.getElementById('problem').hidden")
    browser.choose_files("#query-file", [tmp_path / name for name in ("large.png", "text.jpg", "odd.ico")])
    browser.wait_for(f"cards.length === 3 && {ALL_DONE}")
    shoot(browser, "errors")
    said = [browser.run("return cards[arguments[0]].facts.textContent", index) for index in range(3)]
    assert said[0].startswith("large.png is too large: 7 MB, and this server takes 4 MB")
    assert said[1].startswith("text.jpg cannot be shown")
    assert said[2] == "query is not an image in a format that is read here. Use PNG, JPEG, WebP, TIFF or BMP."


def test_a_turned_photograph_lies_under_its_mask(browser: Chromium, address: str, tmp_path: Path) -> None:
    """Its EXIF block turns it, in the browser and on the server alike."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("support", "query"):
        turned = Image.open(BIRD / f"{name}.jpg").transpose(Image.Transpose.ROTATE_90)
        turned.save(tmp_path / f"{name}.jpg", exif=exif, quality=95)
    browser.open(address)
    paint_bird(browser, tmp_path / "support.jpg")
    browser.choose_files("#query-file", [tmp_path / "query.jpg"])
    browser.wait_for(f"cards.length === 1 && {ALL_DONE}")
    width, height = Image.open(BIRD / "query.jpg").size
    assert browser.run("return [cards[0].canvas.width, cards[0].canvas.height]") == [width, height]
    assert browser.run("return cards[0].found.size_hw") == [height, width]
    truth = np.asarray(Image.open(BIRD / "query_mask.png").convert("L")) > 127
    levels = np.array(browser.run("return Array.from(cards[0].levels)")).reshape(height, width)
    found = np.array(browser.run("return Array.from(cutMask(cards[0]))")).reshape(height, width) > 0
    assert np.array_equal(found, drop_specks(levels > 100, "1%"))
    assert (found & truth).sum() / (found | truth).sum() > 0.7


def test_the_page_asks_for_the_token(browser: Chromium, segmenter: Segmenter) -> None:
    for address in start(segmenter, TOKEN):
        browser.open(address)
        browser.wait_for("document.getElementById('ask').open")
        browser.type("#token", "wrong\ue007")
        browser.wait_for("document.getElementById('ask-help').textContent.startsWith('That was not')")
        shoot(browser, "token")
        browser.run("document.getElementById('token').value = ''")
        browser.type("#token", f"{TOKEN}\ue007")
        browser.wait_for("document.getElementById('about').textContent.includes('compact')")
        assert not browser.run("return document.getElementById('ask').open")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(browser: Chromium, address: str, dark: bool) -> None:
    browser.command(
        "Emulation.setDeviceMetricsOverride", width=360, height=780, deviceScaleFactor=2, mobile=True
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.command("Emulation.setEmulatedMedia", features=[scheme])
    browser.open(address)
    paint_bird(browser)
    browser.choose_files("#query-file", [BIRD / "query.jpg", DOG / "query.jpg"])
    browser.wait_for(f"cards.length === 2 && {ALL_DONE}")
    browser.run("document.querySelector('#results').scrollIntoView()")
    browser.wait_for("cards.every((card) => !card.dirty)")
    shoot(browser, f"phone_{'dark' if dark else 'light'}")
    assert browser.run("return document.documentElement.scrollWidth") <= 360
