"""The contact sheet of `diffseg batch` in headless Chromium (`pytest -m browser`; needs chromedriver).

With DIFFSEG_SHOTS=FOLDER it also leaves pictures of the page there.
"""

import base64
import io
import json
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium, is_installed
from PIL import Image

from diffseg_cli.batch.index_page import Card, render_index
from diffseg_cli.results.probability import probability_png

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not is_installed(), reason="chromedriver is not installed"),
]
COUNT = 10_000
TITLE = "return document.querySelector('dialog span').textContent"
VISIBLE = "document.querySelectorAll('figure').length"


def card(index: int, folder: Path) -> Card:
    picture = np.full((60, 90, 3), (index * 7 % 256, 120, 200), dtype=np.uint8)
    small, large = f"thumbs/{index % 50}.jpg", f"large #{index % 50} 100%.png"
    if index < 50:
        (folder / "thumbs").mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / small)
        Image.fromarray(picture.repeat(6, 0).repeat(6, 1)).save(folder / large)
    if index % 100 == 3:
        return Card(f"day{index % 7}/{index:05}.jpg", error=f"{index:05}.jpg is empty (0 bytes).")
    area = 0.0 if index % 10 == 4 else 0.2
    return Card(f"day{index % 7}/{index:05}.jpg", small, large, index % 1000 / 1000, area)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    folder = tmp_path_factory.mktemp("sheet")
    cards = [card(index, folder) for index in range(COUNT)]
    (folder / "index.html").write_text(render_index(cards, ["bird"], COUNT + 5), encoding="utf-8")
    with Chromium() as browser:
        start = time.monotonic()
        browser.open((folder / "index.html").as_uri())
        browser.wait_for("document.querySelector('figure img').naturalWidth > 0")
        assert time.monotonic() - start < 10
        yield browser


def choose(page: Chromium, kind: str) -> int:
    """Press a filter; returns how many pictures it says there are."""
    page.click(f"[data-kind={kind}]")
    shown: str = page.run("return document.getElementById('count').textContent")
    return int(shown.split()[0])


def shoot(page: Chromium, name: str) -> None:
    if folder := os.environ.get("DIFFSEG_SHOTS"):
        Path(folder, f"{name}.png").write_bytes(
            base64.b64decode(page.command("Page.captureScreenshot")["data"])
        )


def test_ten_thousand_open_at_once_and_only_some_are_built(page: Chromium) -> None:
    assert page.run(f"return {VISIBLE}") < 1000
    assert page.run("return document.body.textContent.includes('10000 of 10005 done')")
    shoot(page, "sheet")
    before = page.run(f"return {VISIBLE}")
    page.run("window.scrollTo(0, document.body.scrollHeight)")
    page.wait_for(f"{VISIBLE} > {before}")
    page.run("window.scrollTo(0, 0)")
    assert not [line for line in page.console() if "favicon" not in line]


def test_filters_count_what_they_show(page: Chromium) -> None:
    assert choose(page, "failed") == 100
    assert (
        page.run("return document.querySelector('figure p').textContent") == "00003.jpg is empty (0 bytes)."
    )
    shoot(page, "failed")
    assert choose(page, "empty") == 1000 and choose(page, "found") == 8900
    page.type("#name", "day3/00")
    page.wait_for("document.getElementById('count').textContent.startsWith('1')")
    assert choose(page, "all") == 143
    page.run("const r = document.getElementById('least'); r.value = 0.05; r.oninput()")
    assert choose(page, "all") == 135
    page.run("const r = document.getElementById('least'); r.value = 0; r.oninput()")
    page.run("const n = document.getElementById('name'); n.value = ''; n.oninput()")
    page.run("const o = document.getElementById('order'); o.value = 'presence'; o.onchange()")
    assert page.run("return document.querySelector('figcaption b').title") == "day5/00999.jpg"
    page.run("const o = document.getElementById('order'); o.value = 'name'; o.onchange()")


def test_a_click_shows_the_overlay_and_keys_go_on(page: Chromium) -> None:
    choose(page, "all")
    page.click("figure button")
    page.wait_for("document.querySelector('dialog img').naturalWidth === 540")
    assert page.run(TITLE).startswith("day0/00000.jpg: presence")
    shoot(page, "enlarged")
    for _ in range(3):
        page.press("\ue014")  # right; the third picture failed and is passed over
    assert page.run(TITLE).startswith("day4/00004.jpg")
    link = page.run("return document.querySelector('dialog a').href")
    assert link == "http://127.0.0.1:8000/#image=day4%2F00004.jpg"
    page.press("\ue00c")  # escape
    page.wait_for("!document.querySelector('dialog').open")


def colors(page: Chromium, *shares: float) -> list[tuple[int, ...]]:
    """Of the enlarged image as it is seen, at these shares of its width, in the middle of its height."""
    content = base64.b64decode(page.command("Page.captureScreenshot")["data"])
    seen = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    left, top, width, height = page.run(
        "const r = document.querySelector('#view img').getBoundingClientRect();"
        "return [r.left, r.top, r.width, r.height]"
    )
    y = int(top + height / 2)
    return [tuple(int(value) for value in seen[y, int(left + width * share)]) for share in shares]


def test_a_slider_shows_another_cut_and_saves_it(tmp_path: Path) -> None:
    out = tmp_path / "out's"
    (out / "thumbs").mkdir(parents=True)
    plain = np.full((80, 120, 3), 100, dtype=np.uint8)
    rising = np.linspace(0, 1, 120, dtype=np.float32)[None].repeat(80, 0)
    Image.fromarray(plain).save(tmp_path / "a.png")
    Image.fromarray(plain).save(out / "a_overlay.png")
    for name, map_ in (("object", rising), ("other", np.zeros_like(rising))):
        (out / f"a_probability_{name}.png").write_bytes(probability_png(map_))
    maps = ["a_probability_object.png", "a_probability_other.png"]
    cards = [
        Card("a.png", "a_overlay.png", "a_overlay.png", 0.9, 0.5, image="../a.png", maps=maps, cut=0.4),
        Card("b.png", "a_overlay.png", "a_overlay.png", 0.9, 0.5),
    ]
    (out / "index.html").write_text(render_index(cards, ["object", "other"], 2), encoding="utf-8")
    with Chromium() as page:
        page.open((out / "index.html").as_uri())
        page.wait_for("document.querySelector('figure img').naturalWidth > 0")
        page.click("figure button")
        assert page.run("return [slider.parentElement.hidden, slider.value]") == [False, "0.4"]
        grey, tinted = (100, 100, 100), (185, 70, 92)  # 55 % of the tint
        assert colors(page, 0.9) == [grey]
        for cut in (0.7, 0.3):
            page.run(f"slider.value = {cut}; slider.oninput()")
            page.wait_for("[...document.querySelectorAll('#view img')].every(i => i.naturalWidth === 120)")
            assert len(page.run("return [...view.children].map(i => i.src)")) == 3
            before, after = colors(page, cut - 0.03, cut + 0.03)
            assert before == grey and np.abs(np.subtract(after, tinted)).max() <= 4
        shoot(page, "cut")
        page.press("\ue014")
        assert page.run("return slider.parentElement.hidden")
        page.press("\ue012")
        assert page.run("return slider.value") == "0.3"
        said: str = page.run("return document.querySelector('#cuts code').textContent")
        assert shlex.split(said) == ["diffseg", "threshold", f"{out}/", "--cuts", "cuts.json"]
        page.press("\ue00c")
        page.run("URL.createObjectURL = blob => { blob.text().then(t => saved = t); return 'data:,'; }")
        page.click("#cuts button")
        page.wait_for("typeof saved === 'string'")
        assert json.loads(page.run("return saved")) == {"a.png": 0.3}
        assert not [line for line in page.console() if "favicon" not in line]
