"""The page of `diffseg serve` in headless Chromium (`pytest -m browser`; needs chromium and chromedriver).

With DIFFSEG_SHOTS=FOLDER it also leaves screenshots there.
"""

import base64
import os
import re
import socket
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from chromium import Chromium, is_installed
from numpy.typing import NDArray
from PIL import Image

from diffseg_cli.adaptation import AdaptStep
from diffseg_cli.assembly import load_segmenter
from diffseg_cli.results.palette import concept_color
from diffseg_cli.segmenter import Segmenter
from diffseg_cli.serve import concepts
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
BRUSH = 0.025  # radius as a share of the image's longer side
CARDS = "document.querySelectorAll('#results > li')"
PAINTED = "!document.getElementById('clear').disabled && !document.getElementById('keep').disabled"


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


@contextmanager
def serving(segmenter: Segmenter, token: str | None = None, port: int = 0) -> Iterator[str]:
    """The address of a running server."""
    app = create_app(segmenter, limits=Limits(body_bytes=4_000_000), token=token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", port)) as opened:
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        yield f"http://127.0.0.1:{opened.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


@pytest.fixture
def address(segmenter: Segmenter) -> Iterator[str]:
    with serving(segmenter) as address:
        yield address


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


def open_page(browser: Chromium, address: str) -> None:
    browser.open(address)
    browser.wait_for("document.body.dataset.ready")


def open_support(browser: Chromium, path: Path) -> None:
    browser.choose_files("#support-file", [path])
    browser.wait_for("!document.getElementById('painter').hidden")


def set_slider(browser: Chromium, name: str, value: float) -> None:
    script = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.oninput()"
    browser.run(script, name, value)


def paint_bird(browser: Chromium, support: Path = BIRD / "support.jpg") -> None:
    open_support(browser, support)
    set_slider(browser, "size", 100 * ((BRUSH - 1 / 720) / 0.2) ** (2 / 3))
    for stroke in strokes_over(BIRD / "support_mask.png"):
        browser.drag("#canvas", stroke)
    browser.run("document.activeElement.blur()")
    browser.wait_for(PAINTED)


def search(browser: Chromium, queries: Sequence[Path]) -> None:
    """Give images to search, and wait until every one is answered."""
    browser.choose_files("#query-file", queries)
    browser.wait_for(f"{CARDS}.length === {len(queries)}")
    wait_until_done(browser)


def wait_until_done(browser: Chromium) -> None:
    browser.wait_for("document.getElementById('results').ariaBusy === 'false'")


def saying(browser: Chromium, selector: str) -> str:
    text: str = browser.run("return document.querySelector(arguments[0]).textContent", selector)
    return text


def facts(browser: Chromium, card: int = 1) -> str:
    """What is said of an image, as screen readers say it."""
    said: str = browser.run(f"return {CARDS}[arguments[0]].querySelector('canvas').ariaLabel", card - 1)
    return said


def mask_shown(browser: Chromium, card: int = 1) -> NDArray[np.bool_]:
    """The mask as the page shows it (h w)."""
    browser.click("input[name=show][value=mask]")
    time.sleep(0.3)
    script = """const c = document.querySelectorAll('#results canvas')[arguments[0]];
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        const digits = Array.from({length: d.length / 4}, (_, i) => Number(d[4 * i] > 127));
        return [c.height, c.width, digits.join('')]"""
    height, width, digits = browser.run(script, card - 1)
    return np.frombuffer(digits.encode(), dtype=np.uint8).reshape(height, width) == ord("1")


def wait_for_file(path: Path) -> Path:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} was not saved"
        time.sleep(0.05)
    return path


def test_painting_and_dropping_shows_what_is_found_at_once(
    browser: Chromium, address: str, tmp_path: Path
) -> None:
    browser.allow_downloads(tmp_path)
    open_page(browser, address)
    shoot(browser, "empty")
    paint_bird(browser)
    shoot(browser, "painted")
    queries = [BIRD / "query.jpg", BIRD / "query2.jpg", DOG / "query.jpg"]
    search(browser, queries)
    shoot(browser, "results")
    before = mask_shown(browser)
    assert 0.15 < before.mean() < 0.35  # the true share is 0.24
    presence, share = re.findall(r"^query.jpg: presence (.*), (.*) % of the image$", facts(browser))[0]
    assert float(presence) > 0.9 and float(share) == pytest.approx(100 * before.mean(), abs=0.051)
    counted = "return performance.getEntriesByName(location.href + 'v1/segment').length"
    requests = browser.run(counted)
    set_slider(browser, "threshold", 90)
    cut = mask_shown(browser)
    assert cut.sum() < before.sum() and browser.run(counted) == requests
    for view in ("heat", "mask", "image", "overlay"):
        browser.click(f"input[name=show][value={view}]")
        shoot(browser, f"view_{view}")
    browser.click("#results li:first-child .save")
    saved = wait_for_file(tmp_path / "query_mask.png")
    mask = np.asarray(Image.open(saved).convert("L"))
    assert mask.shape == Image.open(queries[0]).size[::-1] and set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask > 0, cut)
    browser.click("#save-all")
    with zipfile.ZipFile(wait_for_file(tmp_path / "masks.zip")) as files:
        assert files.testzip() is None
        assert files.namelist() == ["query_mask.png", "query2_mask.png", "query_2_mask.png"]
        assert files.read("query_mask.png") == saved.read_bytes()
    set_slider(browser, "min-presence", 100)
    assert "taken for absent" in facts(browser, 3)
    browser.click("#remove-all")
    assert browser.run(f"return {CARDS}.length") == 0
    assert browser.run("return document.activeElement.id") == "query-drop"


DROP = """
const [selector, content] = arguments, moved = new DataTransfer();
const bytes = Uint8Array.from(atob(content), (char) => char.charCodeAt(0));
moved.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
for (const kind of ["dragenter", "dragover", "drop"])
  document.querySelector(selector).dispatchEvent(
    new DragEvent(kind, { dataTransfer: moved, bubbles: true, cancelable: true }));
"""


def test_images_are_dropped_where_they_belong(browser: Chromium, address: str) -> None:
    open_page(browser, address)
    support, query = (
        base64.b64encode((BIRD / name).read_bytes()).decode() for name in ("support.jpg", "query.jpg")
    )
    browser.run(DROP, "#object", support)
    browser.wait_for("!document.getElementById('painter').hidden")
    browser.run(DROP, "#where", query)
    browser.wait_for(f"{CARDS}.length === 1 && !document.querySelector('#results .view').hidden")
    assert saying(browser, "#state") == "Paint the object first."
    assert not browser.run("return document.querySelector('.over')")
    browser.run("document.getElementById('query-drop').focus()")
    nothing = "new DragEvent('drop', { dataTransfer: new DataTransfer(), bubbles: true, cancelable: true })"
    browser.run(f"document.getElementById('where').dispatchEvent({nothing})")
    browser.wait_for("!document.getElementById('problem').hidden")
    assert saying(browser, "#problem span") == "Drop image files, not links or text."
    browser.click("#close-problem")
    assert browser.run("return document.activeElement.id") == "query-drop"


SENT = """
window.sent = [];
const send = window.fetch;
window.fetch = (path, options) => {
  if (options?.body instanceof FormData) sent.push(options.body.getAll("support").map((file) => file.name));
  return send(path, options);
};
"""


def test_a_second_support_joins_the_first(browser: Chromium, address: str) -> None:
    open_page(browser, address)
    browser.run(SENT)
    paint_bird(browser)
    search(browser, [BIRD / "query2.jpg"])
    browser.run("document.getElementById('support-file').click = () => {}")  # no dialog
    browser.click("#another")
    browser.choose_files("#support-file", [BIRD / "query.jpg"])
    browser.wait_for("document.querySelectorAll('#more li').length === 1")
    browser.drag("#canvas", [(0.5, 0.4), (0.6, 0.5)])
    browser.wait_for("sent.at(-1).length === 2")
    wait_until_done(browser)
    shoot(browser, "supports")
    browser.click("#more button")
    browser.wait_for("sent.at(-1).join() === 'query.jpg'")
    assert browser.run(
        "return sent.map((names) => names.join()).filter((n, i, all) => n !== all[i - 1])"
    ) == [*("support.jpg", "support.jpg,query.jpg", "query.jpg")]
    assert browser.run("return document.activeElement.id") == "another"


def test_a_box_becomes_a_mask_that_can_be_undone(browser: Chromium, address: str) -> None:
    open_page(browser, address)
    open_support(browser, DOG / "support.jpg")
    browser.click("input[name=tool][value=box]")
    browser.drag("#canvas", [(0.2, 0.2), (0.5, 0.5), (0.8, 0.9)])
    browser.wait_for(PAINTED)
    shoot(browser, "box")
    browser.click("#undo")
    browser.wait_for("document.getElementById('keep').disabled && document.getElementById('undo').disabled")
    assert browser.run("return document.activeElement.id") == "canvas"


def test_the_keyboard_paints_too(browser: Chromium, address: str) -> None:
    open_page(browser, address)
    open_support(browser, BIRD / "support.jpg")
    browser.run("document.getElementById('canvas').focus()")
    right, down, space = "\ue014", "\ue015", " "
    undo = (
        "const undo = document.getElementById('undo'); let count = 0;"
        "while (!undo.disabled) { undo.click(); count++; } return count"
    )
    browser.press("b", right, space, right, space, right, space, "e", space)
    browser.wait_for("document.querySelector('input[value=eraser]').checked")
    assert browser.run(undo) == 4
    browser.press("p", space, *[right] * 9, space, *[down] * 9, space, "\ue007")  # Enter closes it
    browser.wait_for(PAINTED)
    assert browser.run(undo) == 1
    browser.press("x", space, *[right] * 9, *[down] * 9, space)
    browser.wait_for(
        "!document.getElementById('undo').disabled || !document.getElementById('problem').hidden"
    )


def test_a_concept_is_kept_and_used(browser: Chromium, address: str) -> None:
    open_page(browser, address)
    paint_bird(browser)
    browser.click("#keep")
    assert browser.run("return document.activeElement.id") == "concept-name"
    browser.type("#concept-name", "kingfisher")
    browser.click("#keep")
    browser.wait_for("!document.getElementById('choosing').hidden")
    assert browser.run("return document.activeElement.value") == "kingfisher"
    search(browser, [BIRD / "query.jpg"])
    shoot(browser, "concept")
    assert mask_shown(browser).mean() > 0.15
    browser.click("#concepts button")
    browser.wait_for("!document.getElementById('no-concepts').hidden")


def test_instances_have_colours_and_numbers(browser: Chromium, address: str) -> None:
    open_page(browser, address)
    paint_bird(browser)
    search(browser, [DOG / "query.jpg"])
    one_color = colors_shown(browser)
    browser.click("#instances")
    browser.wait_for("/[0-9] instances?$/.test(document.querySelector('#results canvas').ariaLabel)")
    shoot(browser, "instances_mask")
    count = int(re.findall(r"([0-9]+) instances?$", facts(browser))[0])
    colors = "return import('/page/shared/numbers.js').then((m) => [...Array(60).keys()].map(m.colorOf))"
    own = browser.run(colors)
    assert own == [list(concept_color(index)) for index in range(60)]  # as on the command line
    assert one_color == {"0,0,0", "255,255,255"}
    assert colors_shown(browser) == {"0,0,0"} | {",".join(map(str, rgb)) for rgb in own[:count]}
    browser.click("input[name=show][value=overlay]")
    shoot(browser, "instances")
    set_slider(browser, "threshold", 70)  # the server tells them apart anew
    assert "instance" not in facts(browser)
    browser.wait_for("/[0-9] instances?$/.test(document.querySelector('#results canvas').ariaLabel)")


def colors_shown(browser: Chromium) -> set[str]:
    """Colours that cover much of the first image, of those in the view of masks."""
    browser.click("input[name=show][value=mask]")
    time.sleep(0.3)
    script = """const c = document.querySelector('#results canvas'), counts = new Map();
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        for (let i = 0; i < d.length; i += 4) {
          const color = [d[i], d[i + 1], d[i + 2]].join();
          counts.set(color, (counts.get(color) ?? 0) + 1);
        }
        return [...counts].filter(([, count]) => count > d.length / 4000).map(([color]) => color)"""
    return set(browser.run(script))


def test_adapting_shows_before_and_after(browser: Chromium, small_segmenter: Segmenter) -> None:
    with serving(small_segmenter) as address:
        open_page(browser, address)
        assert browser.run("return document.getElementById('adapt').disabled")
        open_support(browser, BIRD / "support.jpg")
        browser.drag("#canvas", [(0.3, 0.4), (0.5, 0.7), (0.5, 0.4), (0.3, 0.7)])
        browser.wait_for(PAINTED)
        browser.choose_files("#without-file", [DOG / "query.jpg"])
        assert saying(browser, "#negatives li").startswith("query.jpg")
        search(browser, [BIRD / "query.jpg"])
        browser.click("#adapt")
        browser.wait_for("!document.getElementById('versions').hidden")
        wait_until_done(browser)
        assert "kept as the concept object" in saying(browser, "#adapt-left")
        assert browser.run("return document.querySelector('input[name=concept]:checked').value") == "object"
        assert "1 support, adapted" in saying(browser, "#concepts")
        assert browser.run("return document.activeElement.value") == "after"
        after = facts(browser)
        browser.press("a")
        assert browser.run("return document.querySelector('input[name=version]:checked').value") == "before"
        shoot(browser, "adapted")
        browser.click("#versions label:last-child")
        assert facts(browser) == after
        browser.click("#object .choice label")  # what is painted is looked for as before
        browser.wait_for("document.getElementById('versions').hidden")


def test_adapting_can_be_cancelled(browser: Chromium, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_steps(*_: Any, **__: Any) -> Iterator[AdaptStep]:
        for step in range(1, 1000):
            time.sleep(0.05)
            yield AdaptStep(step, 1000, 0.0)

    monkeypatch.setattr(concepts, "adapt_steps", slow_steps)
    open_page(browser, address)
    open_support(browser, BIRD / "support.jpg")
    browser.drag("#canvas", [(0.3, 0.4), (0.5, 0.7)])
    browser.wait_for(PAINTED)
    browser.type("#concept-name", "kingfisher")
    browser.click("#adapt")
    browser.wait_for("document.activeElement.id === 'adapt-cancel'")
    said = "document.getElementById('adapt-left').textContent"
    browser.wait_for(f"/^adapting [0-9]+ of 1000, [0-9]+ s left$/.test({said})")
    assert 0 < browser.run("return document.getElementById('adapt-bar').value") < 1
    shoot(browser, "adapting")
    browser.click("#adapt-cancel")
    browser.wait_for(f"{said} === 'Adapting was cancelled.'")
    browser.wait_for("document.activeElement.id === 'adapt'")
    listed = "return fetch('/v1/concepts').then((answer) => answer.json())"
    assert browser.run(listed) == {"concepts": []}


def test_a_server_that_was_gone_is_asked_again(browser: Chromium, segmenter: Segmenter) -> None:
    with serving(segmenter) as address:
        open_page(browser, address)
        paint_bird(browser)
    browser.choose_files("#query-file", [BIRD / "query.jpg"])
    browser.wait_for("!document.getElementById('retry').hidden")
    with serving(segmenter, port=int(address.rsplit(":", 1)[1].strip("/"))):
        browser.click("#retry")
        browser.wait_for("document.querySelector('#results .facts').textContent.includes('presence')")
    browser.console()  # of the time without a server


def test_what_goes_wrong_is_a_sentence(browser: Chromium, address: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    (tmp_path / "text.jpg").write_text("no picture at all")
    Image.open(BIRD / "query.jpg").save(tmp_path / "odd.ico", sizes=[(64, 64)])  # shown by browsers only
    open_page(browser, address)
    browser.choose_files("#support-file", [tmp_path / "text.jpg"])
    browser.wait_for("!document.getElementById('problem').hidden")
    unreadable = "text.jpg cannot be shown by this browser. Save it as PNG or JPEG."
    assert saying(browser, "#problem span") == unreadable
    paint_bird(browser)
    assert browser.run("return document.getElementById('problem').hidden")
    search(browser, [tmp_path / name for name in ("large.png", "text.jpg", "odd.ico")])
    shoot(browser, "errors")
    said = [saying(browser, f"#results > li:nth-child({card}) .facts") for card in (1, 2, 3)]
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
    open_page(browser, address)
    paint_bird(browser, tmp_path / "support.jpg")
    search(browser, [tmp_path / "query.jpg"])
    truth = np.asarray(Image.open(BIRD / "query_mask.png").convert("L")) > 127
    found = mask_shown(browser)
    np.testing.assert_array_equal(found, drop_specks(found, "1%"))
    assert (found & truth).sum() / (found | truth).sum() > 0.7


def test_the_page_asks_for_the_token(browser: Chromium, segmenter: Segmenter) -> None:
    with serving(segmenter, TOKEN) as address:
        browser.open(address)
        browser.wait_for("document.getElementById('ask').open")
        browser.type("#token", "wrong\ue007")
        browser.wait_for("document.getElementById('ask-help').textContent.startsWith('That was not')")
        shoot(browser, "token")
        browser.run("document.getElementById('token').value = ''")
        browser.type("#token", f"{TOKEN}\ue007")
        browser.wait_for("document.getElementById('about').textContent.includes('compact')")
        assert not browser.run("return document.getElementById('ask').open")


@pytest.mark.parametrize(("width", "dark"), [(320, True), (1280, False), (1280, True), (2560, False)])
def test_it_fits_every_screen(browser: Chromium, address: str, width: int, dark: bool) -> None:
    size = {"width": width, "height": 780 if width < 400 else 1000}
    browser.command("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=width < 400)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.command("Emulation.setEmulatedMedia", features=[scheme])
    open_page(browser, address)
    paint_bird(browser)
    search(browser, [BIRD / "query.jpg", BIRD / "query2.jpg", DOG / "query.jpg"])
    shoot(browser, f"page_{width}_{'dark' if dark else 'light'}")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    names = browser.run(
        "return [...document.querySelectorAll('button, select, input, canvas, progress, [role=radiogroup]')]"
        ".filter((e) => !(e.type === 'file' || e.closest('dialog')))"
        ".map((e) => e.ariaLabel || (e.labels?.[0] ?? e).textContent.trim())"
    )
    assert all(names) and len(names) == len(set(names)), sorted(names)
    own = "return performance.getEntriesByType('resource').every((e) => e.name.startsWith(location.origin))"
    assert browser.run(own)
