"""The contact sheet of a batch: one HTML file, with thumbnails beside it, to look through a big folder.

The page holds a short list per image and builds what is on the screen, so that ten thousand open at once.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from diffseg_cli.results.palette import concept_color
from diffseg_cli.results.probability import LEVELS

LABELLING = "http://127.0.0.1:8000/"  # where `diffseg serve` is when nothing else is said
MOST_CARDS = 100_000  # more make a page of tens of megabytes; failures come first then


@dataclass(frozen=True)
class Card:
    """An image on the sheet; paths are below the output folder.

    Attributes:
        key: of the image.
        thumbnail: its small overlay.
        large: what a click shows.
        presence: of the surest concept, in [0, 1], or None.
        area: share of the image that is masked.
        found: names of the concepts that were found, where there are several to look for.
        error: why it failed, or None.
        count: of instances, where they were told apart.
        image: the query itself, for a look at another cut; "" where it is not beside the results.
        maps: the probability of each concept, of `--format probability`.
        cut: where it is cut.
    """

    key: str
    thumbnail: str = ""
    large: str = ""
    presence: float | None = None
    area: float = 0.0
    found: list[str] = field(default_factory=list)
    error: str | None = None
    count: int | None = None
    image: str = ""
    maps: list[str] = field(default_factory=list)
    cut: float = 0.5


def render_index(cards: Sequence[Card], names: Sequence[str], planned: int) -> str:
    """The page as text; the same cards give the same text.

    Args:
        cards: of all images that are done or failed.
        names: of the concepts.
        planned: images of the whole plan.
    """
    shown = list(cards)
    if len(shown) > MOST_CARDS:
        shown = sorted(shown, key=lambda card: card.error is None)[:MOST_CARDS]
    rows = json.dumps([_row(card) for card in shown], separators=(",", ":"))
    title = f"{' and '.join(names)} in {planned} image{'s' if planned != 1 else ''}"
    words = [f"{len(cards)} of {planned} done"] if len(cards) < planned else []
    if len(shown) < len(cards):
        words.append(f"the first {len(shown)} are shown")
    page = PAGE.replace("%TITLE%", escape(title)).replace("%NOTE%", escape("; ".join(words)))
    page = page.replace("%LABELLING%", LABELLING)
    page = page.replace("%TINTS%", json.dumps([concept_color(index) for index in range(len(names))]))
    page = page.replace("%LEVELS%", str(LEVELS))
    return page.replace("%ROWS%", rows.replace("<", "\\u003c"))


def _row(card: Card) -> list[Any]:
    """As the page's script names them, from NAME to CUT; addresses are quoted."""
    presence = None if card.presence is None else round(card.presence, 3)
    thumbnail, large = _address(card.thumbnail), _address(card.large)
    name = card.key.encode("utf-8", "replace").decode()
    error = card.error and card.error.encode("utf-8", "replace").decode()
    said = [name, thumbnail, large, presence, round(card.area, 4), ", ".join(card.found), error, card.count]
    return [*said, _address(card.image), [_address(path) for path in card.maps], card.cut]


def _address(path: str) -> str:
    return "/".join(quote(os.fsencode(part)) for part in PurePosixPath(path).parts)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>%TITLE%</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; --ink: #1c1d22; --faint: #6a6d78; --paper: #fff; --card: #f3f3f6;
  --line: #dcdde4; --accent: #d81b4c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceef2; --faint: #9a9eab; --paper: #17181c; --card: #23252b; --line: #3a3c45;
    --accent: #ff5f85; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
header { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line);
  padding: 12px 20px; display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; }
h1 { font-size: 17px; margin: 0; } .faint { color: var(--faint); font-size: 13px; }
button, select, input[type=search] { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 4px 11px; }
button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: #fff; }
label { display: flex; gap: 8px; align-items: center; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px;
  padding: 18px 20px; }
figure { margin: 0; background: var(--card); border-radius: 10px; overflow: hidden;
  content-visibility: auto; contain-intrinsic-size: 200px 226px; }
figure button { display: block; width: 100%; padding: 0; border: 0; border-radius: 0; cursor: zoom-in; }
figure img { display: block; width: 100%; height: 170px; object-fit: contain; }
figure p { display: flex; align-items: center; justify-content: center; height: 170px; margin: 0;
  padding: 14px; overflow: hidden; font-size: 13px; color: var(--accent); overflow-wrap: anywhere; }
figcaption { padding: 7px 10px 9px; font-size: 12px; } figcaption b { display: block; font-weight: 600;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; direction: rtl; text-align: left; }
#more { height: 1px; }
dialog { border: 0; padding: 0; max-width: 96vw; max-height: 96vh; background: #101114; color: #eee;
  border-radius: 10px; }
dialog::backdrop { background: #000c; } dialog img { display: block; max-width: 94vw; max-height: 88vh; }
dialog p, dialog label { margin: 0; padding: 8px 14px; font-size: 13px; }
#view { position: relative; width: fit-content; margin: auto; }
#view img + img { position: absolute; inset: 0; width: 100%; height: 100%; }
dialog label { flex-wrap: wrap; min-width: min(440px, 90vw); } dialog label[hidden] { display: none; }
dialog label input { flex: 1; accent-color: #ff2d55; } dialog code { flex-basis: 100%; width: 0; }
code { user-select: all; overflow-wrap: anywhere; } a { color: var(--accent); }
</style></head><body>
<header><h1>%TITLE%</h1><span class="faint" id="count"></span>
<span id="kinds" role="group" aria-label="Which images"></span>
<label>presence at least <input type="range" id="least" min="0" max="1" step="0.01" value="0">
<output>0.00</output></label>
<input type="search" id="name" placeholder="name" aria-label="Part of the name">
<select id="order" aria-label="Order"><option value="name">by name</option>
<option value="presence">surest first</option><option value="area">largest first</option></select>
<a href="%LABELLING%" target="labelling" title="Accept, reject and correct these masks with the keys A, N and
Enter, once you have started: diffseg serve --queries IMAGES --out THIS FOLDER">label</a>
<span class="faint">%NOTE%</span>
<span id="cuts" class="faint" hidden><button>Save cuts.json</button> then: <code></code></span></header>
<main></main><div id="more"></div>
<dialog><div id="view"><img alt=""></div>
<p><span></span> <a href="%LABELLING%" target="labelling">label (L)</a></p>
<label hidden>cut at <input type="range" min="0.01" max="0.99" step="0.005"><output></output>
<code></code></label></dialog>
<svg width="0" height="0" aria-hidden="true"></svg>
<script type="application/json" id="rows">%ROWS%</script>
<script>
"use strict";
const [NAME, SMALL, LARGE, PRESENCE, AREA, FOUND, ERROR, COUNT, IMAGE, MAPS, CUT] = Array(11).keys();
const STEP = 240, LEVELS = %LEVELS%, TINTS = %TINTS%;
const rows = JSON.parse(document.getElementById("rows").textContent);
const main = document.querySelector("main"), dialog = document.querySelector("dialog");
const least = document.getElementById("least"), part = document.getElementById("name");
const order = document.getElementById("order"), more = document.getElementById("more");
const kinds = { all: r => true, found: r => r[ERROR] === null && r[AREA] > 0,
  empty: r => r[ERROR] === null && r[AREA] === 0, failed: r => r[ERROR] !== null };
let kind = "all", chosen = [], drawn = 0, open = -1;
if (rows.every(r => r[PRESENCE] === null)) least.parentElement.hidden = true;
for (const name of Object.keys(kinds)) {
  const button = document.createElement("button");
  button.textContent = `${name} ${rows.filter(kinds[name]).length}`;
  button.onclick = () => { kind = name; choose(); };
  button.dataset.kind = name;
  document.getElementById("kinds").append(button, " ");
}
function words(row) {
  if (row[ERROR] !== null) return "failed";
  const presence = row[PRESENCE] === null ? "" : `presence ${row[PRESENCE].toFixed(2)}, `;
  const share = row[AREA] > 0 ? `${(100 * row[AREA]).toFixed(1)} % masked` : "empty";
  const count = row[COUNT] === null ? "" : `, ${row[COUNT]} instance${row[COUNT] === 1 ? "" : "s"}`;
  return presence + share + count + (row[FOUND] ? `: ${row[FOUND]}` : "");
}
function card(row, place) {
  const figure = document.createElement("figure");
  if (row[ERROR] !== null) {
    const why = document.createElement("p");
    why.textContent = row[ERROR];
    figure.append(why);
  } else {
    const button = document.createElement("button"), image = document.createElement("img");
    image.loading = "lazy"; image.decoding = "async"; image.src = row[SMALL]; image.alt = row[NAME];
    button.onclick = () => enlarge(place);
    button.append(image);
    figure.append(button);
  }
  const caption = document.createElement("figcaption"), name = document.createElement("b");
  name.textContent = "\\u200e" + row[NAME]; name.title = row[NAME];
  caption.append(name, words(row));
  figure.append(caption);
  return figure;
}
function draw() {
  while (drawn < chosen.length && more.getBoundingClientRect().top < innerHeight + 1200) {
    const next = chosen.slice(drawn, drawn + STEP);
    main.append(...next.map((row, index) => card(row, drawn + index)));
    drawn += next.length;
  }
}
function choose() {
  const floor = Number(least.value), text = part.value.toLowerCase();
  least.nextElementSibling.textContent = floor.toFixed(2);
  chosen = rows.filter(r => kinds[kind](r) && (floor === 0 || (r[PRESENCE] ?? -1) >= floor)
    && r[NAME].toLowerCase().includes(text));
  if (order.value === "presence") chosen.sort((a, b) => (b[PRESENCE] ?? -1) - (a[PRESENCE] ?? -1));
  if (order.value === "area") chosen.sort((a, b) => b[AREA] - a[AREA]);
  for (const button of document.querySelectorAll("[data-kind]"))
    button.setAttribute("aria-pressed", button.dataset.kind === kind);
  document.getElementById("count").textContent = `${chosen.length} shown`;
  main.replaceChildren(); drawn = 0; draw();
}
function enlarge(place) {
  const row = chosen[place];
  if (!row || row[ERROR] !== null) return;
  open = place;
  view.replaceChildren(picture(row[LARGE]));
  slider.parentElement.hidden = !(row[IMAGE] && row[MAPS].length);
  slider.value = cuts[row[NAME]] ?? row[CUT];
  if (row[NAME] in cuts) preview();
  tell();
  dialog.querySelector("span").textContent = `${row[NAME]}: ${words(row)}`;
  dialog.querySelector("a").hash = new URLSearchParams({ image: row[NAME] });
  if (!dialog.open) dialog.showModal();
}
// Another cut is shown by filters: a page from a disk may not read the pixels of files beside it.
const view = document.getElementById("view"), slider = dialog.querySelector("input"), cuts = {};
const here = decodeURIComponent(location.pathname.replace(/[^/]*$/, ""));
const quoted = (location.protocol === "file:" ? here : ".").replaceAll("'", "'\\\\''");
const command = `diffseg threshold '${quoted}'`;
document.querySelector("svg").innerHTML = TINTS.map((tint, index) => {
  const [red, green, blue] = tint.map(value => value / 255);
  return `<filter id="cut${index}" x="0" y="0" width="100%" height="100%" color-interpolation-filters="sRGB">
    <feComponentTransfer><feFuncR type="linear" slope="255"/></feComponentTransfer>
    <feColorMatrix values="0 0 0 0 ${red} 0 0 0 0 ${green} 0 0 0 0 ${blue} .55 0 0 0 0"/></filter>`;
}).join("");
function picture(address) {
  const image = document.createElement("img");
  image.alt = ""; image.src = address;
  return image;
}
function preview() {
  const row = chosen[open];
  for (const part of document.querySelectorAll("feFuncR"))
    part.setAttribute("intercept", -Math.round(slider.value * LEVELS));
  if (view.children.length > 1) return;
  const query = picture(row[IMAGE]);
  query.onerror = () => { query.src = row[LARGE]; };
  view.replaceChildren(query, ...row[MAPS].map((address, index) => {
    const map = picture(address);
    map.style.filter = `url(#cut${index})`;
    return map;
  }));
}
function tell() {
  slider.nextElementSibling.textContent = Number(slider.value).toFixed(3);
  dialog.querySelector("code").textContent = `all images: ${command} --at ${slider.value}`;
  document.getElementById("cuts").hidden = !Object.keys(cuts).length;
  document.querySelector("#cuts code").textContent = `${command} --cuts cuts.json`;
}
slider.oninput = () => {
  const row = chosen[open], cut = Number(slider.value);
  if (cut === row[CUT]) delete cuts[row[NAME]]; else cuts[row[NAME]] = cut;
  preview(); tell();
};
document.querySelector("#cuts button").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(cuts, null, 1)], { type: "application/json" }));
  link.download = "cuts.json"; link.click();
  onbeforeunload = null;
};
slider.onchange = () => {
  onbeforeunload = event => { if (Object.keys(cuts).length) event.preventDefault(); };
};
dialog.onclick = event => { if (event.target === dialog || event.target.tagName === "IMG") dialog.close(); };
document.onkeydown = event => {
  if (dialog.open && event.key === "l") dialog.querySelector("a").click();
  const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!dialog.open || !way) return;
  event.preventDefault();  // up and down move the slider
  let next = open + way;
  while (chosen[next] && chosen[next][ERROR] !== null) next += way;
  enlarge(next);
};
least.oninput = part.oninput = order.onchange = choose;
new IntersectionObserver(draw, { rootMargin: "1200px" }).observe(more);
choose();
</script></body></html>
"""
