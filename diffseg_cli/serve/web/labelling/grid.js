/** The grid of all images: only the tiles in sight exist, so that thousands open and scroll at once. */

import { get } from "../shared/api.js";
import { project } from "./state.js";

const grid = document.getElementById("grid"), spacer = document.getElementById("spacer");
const GAP = 8, LEAST_WIDTH = 150, KEPT = 800, PARALLEL = 6, SPARE_ROWS = 2;

let keys = [], columns = 1, width = LEAST_WIDTH, height = 160;
const tiles = new Map(); // key -> element
const thumbnails = new Map(); // key and revision -> URL, the least used first
const wanted = new Map(); // the same -> image element that waits for it
let loading = 0;
export const chosen = { key: null };
let open = () => {};

export function setUp(onOpen) {
  open = onOpen;
  new ResizeObserver(layOut).observe(grid);
  grid.addEventListener("scroll", () => draw(), { passive: true });
}

/** Show these images in this order; the chosen one stays chosen. */
export function show(list) {
  keys = list;
  if (!keys.includes(chosen.key)) chosen.key = keys[0] ?? null;
  layOut();
}

export function refresh(changed) {
  for (const key of changed) if (tiles.has(key)) fill(tiles.get(key), key);
}

export const neighbour = (key, step) => keys[keys.indexOf(key) + step] ?? null;

export function choose(key) {
  if (key === null) return;
  chosen.key = key;
  const top = Math.floor(keys.indexOf(key) / columns) * (height + GAP);
  if (top < grid.scrollTop) grid.scrollTop = top;
  else if (top + height + GAP > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + height + 2 * GAP - grid.clientHeight;
  draw();
}

/** Move the choice with a key of the keyboard; whether it was one that moves. */
export function move(key) {
  const page = columns * Math.max(1, Math.floor(grid.clientHeight / (height + GAP)));
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity };
  if (!(key in steps) || !keys.length) return false;
  const index = Math.min(Math.max(keys.indexOf(chosen.key) + steps[key], 0), keys.length - 1);
  choose(keys[index]);
  return true;
}

function layOut() {
  const least = LEAST_WIDTH + grid.clientWidth / 40; // larger on larger screens
  columns = Math.max(grid.clientWidth < 450 ? 2 : 1, Math.floor((grid.clientWidth - GAP) / (least + GAP)));
  width = Math.floor((grid.clientWidth - GAP) / columns) - GAP;
  height = Math.round(width * 0.75) + 26;
  spacer.style.height = `${Math.ceil(keys.length / columns) * (height + GAP) + GAP}px`;
  draw(true);
}

/** Show the tiles in sight; moved: also those that exist may have another place. */
function draw(moved = false) {
  const first = Math.max(0, Math.floor(grid.scrollTop / (height + GAP)) - SPARE_ROWS) * columns;
  const rows = Math.ceil(grid.clientHeight / (height + GAP)) + 2 * SPARE_ROWS;
  const inSight = new Map();
  for (let i = first; i < Math.min(keys.length, first + rows * columns); i++) inSight.set(keys[i], i);
  for (const [key, tile] of tiles) {
    if (inSight.has(key)) continue;
    tile.remove();
    tiles.delete(key);
  }
  for (const [key, index] of inSight) {
    let tile = tiles.get(key);
    const isNew = !tile;
    if (isNew) {
      tile = makeTile(key);
      tiles.set(key, tile);
      spacer.append(tile);
      fill(tile, key);
    }
    if (isNew || moved) place(tile, index);
    tile.setAttribute("aria-selected", String(key === chosen.key));
  }
  const active = tiles.get(chosen.key);
  if (active) grid.setAttribute("aria-activedescendant", active.id);
  else grid.removeAttribute("aria-activedescendant");
}

function place(tile, index) {
  tile.id = `tile-${index}`;
  tile.setAttribute("aria-posinset", String(index + 1));
  tile.setAttribute("aria-setsize", String(keys.length));
  const x = GAP + (index % columns) * (width + GAP), y = GAP + Math.floor(index / columns) * (height + GAP);
  Object.assign(tile.style, { width: `${width}px`, height: `${height}px`, transform: `translate(${x}px, ${y}px)` });
}

function makeTile(key) {
  const tile = document.createElement("div");
  tile.className = "tile";
  tile.setAttribute("role", "option");
  const image = Object.assign(new Image(), { alt: "", draggable: false });
  const what = document.createElement("div");
  what.className = "what";
  for (const part of ["name", "state"]) what.append(Object.assign(document.createElement("span"), { className: part }));
  tile.append(image, what);
  tile.onclick = () => { choose(key); grid.focus({ preventScroll: true }); };
  tile.ondblclick = () => open(key);
  tile.addEventListener("pointerup", (event) => { if (event.pointerType === "touch" && chosen.key === key) open(key); });
  return tile;
}

function fill(tile, key) {
  const row = project.images.get(key);
  tile.dataset.state = row.state;
  const [name, state] = tile.querySelectorAll(".what span");
  name.textContent = key;
  const doubtful = row.state === "proposed" && row.doubt != null;
  state.textContent = doubtful ? `doubt ${row.doubt.toFixed(2)}` : row.state;
  tile.setAttribute("aria-label", `${key}: ${row.error ?? (doubtful ? `proposed, ${state.textContent}` : row.state)}`);
  tile.title = row.error ?? key;
  if (row.state !== "failed") want(`${row.revision}:${key}`, key, tile.querySelector("img"));
}

function want(name, key, image) {
  const url = thumbnails.get(name);
  if (url) {
    thumbnails.delete(name); // to the end: it was just used
    thumbnails.set(name, url);
    image.src = url;
    return;
  }
  wanted.set(name, { key, image });
  pump();
}
function pump() {
  while (loading < PARALLEL && wanted.size) {
    const [name, { key, image }] = [...wanted].at(-1); // what came into sight last is looked at now
    wanted.delete(name);
    if (!image.isConnected) continue;
    loading++;
    get("/v1/project/thumbnail", { image: key })
      .then((answer) => answer.blob())
      .then((blob) => {
        const url = URL.createObjectURL(blob);
        thumbnails.set(name, url);
        image.src = url;
        if (thumbnails.size > KEPT) {
          const [oldest, old] = thumbnails.entries().next().value;
          URL.revokeObjectURL(old);
          thumbnails.delete(oldest);
        }
      })
      .catch(() => { image.alt = "cannot be shown"; })
      .finally(() => { loading--; pump(); });
  }
}
