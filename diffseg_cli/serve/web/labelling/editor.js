/** One image, large: its mask, and the tools that change it. */

import { Problem, complain, get, post, tell } from "../shared/api.js";
import { $ } from "../shared/dom.js";
import { arrowMove, boxOf, brushRadius, drawMarks } from "../shared/marks.js";
import { Mask, MaskLayer, greysOf } from "../shared/mask.js";
import { Instances } from "./instances.js";
import { decide, project } from "./state.js";
import { View } from "./view.js";

const canvas = $("canvas"), context = canvas.getContext("2d"), view = new View(canvas);
const pointers = new Map();
let key = null, bitmap = null, mask = null, layer = null, opening = 0;
let tool = "brush", label = 1, hidden = false, waiting = 0;
let stroke = null, cursor = null, corner = null, points = [], pinch = null, dragged = null;
let leave = () => {}, onMove = () => {};
const instances = new Instances(() => draw());

export const current = () => key;

export function setUp(onLeave, onNeighbour) {
  if (project.instances) toggleInstances();
  [leave, onMove] = [onLeave, onNeighbour];
  new ResizeObserver(() => { if (bitmap) { view.fit(); draw(); } }).observe($("stage"));
  $("classes").replaceChildren(...project.classes.map(({ name, color }, index) => {
    const choice = document.createElement("label"), swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = color;
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "class", checked: index === 0 });
    input.onchange = () => { label = index + 1; };
    choice.append(input, swatch, name);
    choice.title = `Key ${index + 1}`;
    return choice;
  }));
  $("classes").hidden = $("not-it").hidden = project.classes.length < 2; // of one class it would be "nothing here"
  for (const input of document.querySelectorAll("input[name=tool]")) input.onchange = () => pickTool(input.value);
  const buttons = { undo, redo, clear, hide, back: () => leaveTo(null), save, instances: toggleInstances, "not-it": notIt, nothing: () => finish("nothing"), reopen: () => finish("reopen", 0), in: () => zoom(1.4), out: () => zoom(1 / 1.4), fit, previous: () => step(-1), next: () => step(1) };
  for (const [id, act] of Object.entries(buttons)) $(id).onclick = () => { act(); canvas.focus({ preventScroll: true }); };
  $("size").oninput = draw;
}

const colors = () => project.classes.map(({ color }) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
const radius = () => brushRadius(Number($("size").value), mask);

/** Open an image; what was drawn on another one is kept before. */
export async function open(next) {
  if (!(await keep())) return;
  const mine = ++opening;
  key = next;
  bitmap = mask = null;
  points = [];
  corner = cursor = stroke = null;
  $("editor").hidden = false;
  $("overview").hidden = true;
  describe();
  canvas.focus({ preventScroll: true });
  draw();
  try {
    const { image, labels } = await fetched(key);
    if (mine !== opening) return;
    bitmap = image;
    mask = new Mask(bitmap.width, bitmap.height, labels?.slice());
    layer = new MaskLayer(mask);
    view.fit(bitmap.width, bitmap.height);
    repaint();
    prepare(mine).catch(() => {}); // whatever goes wrong there is said when it is needed
  } catch (error) {
    if (mine === opening) complain(error);
  }
}

const ahead = new Map(); // revision and key -> image and labels that are, or were, on their way
/** Fetch an image and its labels, once a revision. */
function fetched(next) {
  const name = `${project.images.get(next).revision}:${next}`, found = ahead.get(name) ?? fetchBoth(next);
  ahead.delete(name);
  ahead.set(name, found); // to the end: it was just used
  found.catch(() => ahead.delete(name));
  if (ahead.size > 3) ahead.delete(ahead.keys().next().value);
  return found;
}
async function fetchBoth(next) {
  const [image, labels] = await Promise.all(["image", "mask"].map((what) => get(`/v1/project/${what}`, { image: next })));
  return { image: await createImageBitmap(await image.blob()), labels: labels.status === 204 ? null : await greysOf(await labels.blob()) };
}
/** Have this image looked at, so that a click is answered at once, and fetch its neighbours. */
async function prepare(mine) {
  const next = onMove(key, 1);
  await post("/v1/project/look", { image: key });
  if (mine !== opening || next === null) return;
  await fetched(next);
  if (mine === opening) await post("/v1/project/look", { image: next });
}

/** Save what was drawn; false where it could not be kept and the image stays open. */
async function keep() {
  if (!key || !mask?.changed) return true;
  try {
    await decide(key, "correct", await mask.png());
    mask.markSaved();
    return true;
  } catch (error) {
    if (error instanceof Problem && error.status === 409) tell(`${key} was changed meanwhile (${project.images.get(key).state}). Press Enter to put yours in its place, or Ctrl Z until it is as it was.`);
    else complain(error);
    return false;
  }
}
export async function leaveTo(next) {
  if (!(await keep())) return;
  const last = key;
  if (next !== null) return open(next);
  key = bitmap = mask = null;
  opening++;
  $("editor").hidden = true;
  $("overview").hidden = false;
  leave(last);
}
const step = (by) => { const next = onMove(key, by); if (next !== null) leaveTo(next); };

/** Enter: what was drawn is a correction, what was not is accepted; then the next image. */
async function save() {
  if (!mask) return;
  if (mask.changed) {
    if (!(await keep())) return;
  } else if (!(await attempt("accept"))) return;
  const next = onMove(key, 1);
  if (next === null) describe();
  else leaveTo(next);
}
async function finish(decision, by = 1) {
  if (!(await attempt(decision))) return;
  mask?.markSaved();
  const next = by ? onMove(key, by) : null;
  open(next ?? key);
}
const attempt = (decision) => decide(key, decision).then(() => true, (error) => { complain(error); return false; });

function describe() {
  const row = project.images.get(key), changed = mask?.changed;
  $("editor-name").textContent = key;
  const presence = Object.entries(row.presence ?? {}).map(([name, value]) => `${project.classes.length > 1 ? `${name} ` : ""}presence ${value.toFixed(2)}`);
  $("editor-state").textContent = [row.state, ...presence, changed ? "changed" : ""].filter(Boolean).join(", ");
  $("save").textContent = changed ? "Save correction" : "Accept";
  $("undo").disabled = !mask?.undos.length;
  $("redo").disabled = !mask?.redos.length;
}
export const refresh = (changed) => { if (key && changed.includes(key)) describe(); };
export const isChanged = () => Boolean(mask?.changed);

// --- drawing ------------------------------------------------------------------------------------------

function repaint(area = null) {
  layer.repaint(colors(), area);
  instances.follow(mask);
  describe();
  draw();
}
let drawing = false;
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; drawNow(); });
}
function drawNow() {
  const sharp = devicePixelRatio, width = Math.round(canvas.clientWidth * sharp), height = Math.round(canvas.clientHeight * sharp);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  if (!bitmap) return;
  context.setTransform(view.zoom * sharp, 0, 0, view.zoom * sharp, view.x * sharp, view.y * sharp);
  context.imageSmoothingEnabled = view.zoom < 3;
  context.drawImage(bitmap, 0, 0);
  if (!hidden) instances.draw(context, view.zoom) || context.drawImage(layer.canvas, 0, 0);
  const paints = tool === "brush" || tool === "eraser";
  drawMarks(context, { cursor, radius: paints ? radius() : null, corner, points }, 1 / view.zoom);
}

// --- tools --------------------------------------------------------------------------------------------

function pickTool(name) {
  tool = name;
  document.querySelector(`input[name=tool][value=${name}]`).checked = true;
  $("size-label").hidden = !["brush", "eraser"].includes(name);
  points = [];
  corner = null;
  draw();
}
function use(from, to, first) {
  if (first) mask.begin();
  repaint(mask.stroke(from, to, radius(), tool === "eraser" ? 0 : label));
}
function closePolygon() {
  if (points.length > 2) {
    mask.begin();
    mask.polygon(points, label);
  }
  points = [];
  repaint();
}
/** A region the server finds, from a click or a box. */
async function ask(path, fields, remove = false) {
  const mine = key, asked = label;
  $("stage").classList.toggle("waiting", ++waiting > 0);
  try {
    const greys = await greysOf(await (await post(path, { image: mine, ...fields })).blob());
    if (mine !== key || !mask) return;
    if (!greys.some((grey) => grey > 127)) throw new Problem("Nothing was found there. Try another place, or paint it.");
    mask.begin();
    mask.region(greys.map((grey) => Number(grey > 127)), asked, remove);
    repaint();
  } catch (error) {
    complain(error);
  } finally {
    $("stage").classList.toggle("waiting", --waiting > 0);
  }
}
function press(at) {
  if (tool === "polygon") {
    const near = points.length > 2 && Math.hypot(at.x - points[0].x, at.y - points[0].y) * view.zoom < 10;
    if (near) return closePolygon();
    points.push(at);
  } else if (tool === "box") {
    if (!corner) corner = at;
    else useBox(at);
  } else if (tool === "add" || tool === "remove") ask("/v1/project/click", { x: at.x / mask.width, y: at.y / mask.height }, tool === "remove");
  else use(at, at, true);
  draw();
}
function useBox(at) {
  const { x, y, width, height } = boxOf(corner, at), box = { x: x / mask.width, y: y / mask.height, width: width / mask.width, height: height / mask.height };
  corner = null;
  if (width > 3 && height > 3) ask("/v1/project/box", box);
}
function undo() { if (points.length) points.pop(); else mask?.undo(); if (mask) repaint(); }
function redo() { mask?.redo(); if (mask) repaint(); }
function clear() { if (mask) { mask.begin(); mask.clear(); repaint(); } }
/** What is marked as the chosen class is something else: take it away, save, and go on. */
function notIt() { if (mask) { mask.begin(); mask.clear(label); repaint(); save(); } }
function hide() { hidden = !hidden; $("hide").setAttribute("aria-pressed", String(hidden)); draw(); }
function toggleInstances() {
  instances.toggle(mask);
  $("instances").setAttribute("aria-pressed", String(instances.shown));
  draw();
}
function zoom(factor) { view.zoomAt(factor); draw(); }
function fit() { view.fit(); draw(); }

// --- pointers -----------------------------------------------------------------------------------------

canvas.onpointerdown = (event) => {
  if (!mask) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  if (pointers.size === 2) { // two fingers zoom and pan; what the first one drew is taken back
    if (stroke) mask.undo();
    stroke = corner = null;
    pinch = spread();
    return repaint();
  }
  if (event.button === 1 || event.button === 2) { dragged = event; return; }
  cursor = view.place(event);
  press(cursor);
  if (tool === "brush" || tool === "eraser") stroke = cursor;
};
const spread = () => {
  const [a, b] = [...pointers.values()];
  return { x: (a.clientX + b.clientX) / 2, y: (a.clientY + b.clientY) / 2, size: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1 };
};
canvas.onpointermove = (event) => {
  if (!mask) return;
  if (pointers.has(event.pointerId)) pointers.set(event.pointerId, event);
  if (pinch && pointers.size === 2) {
    const now = spread(), box = canvas.getBoundingClientRect();
    view.pan(now.x - pinch.x, now.y - pinch.y);
    view.zoomAt(now.size / pinch.size, now.x - box.left, now.y - box.top);
    pinch = now;
  } else if (dragged) {
    view.pan(event.clientX - dragged.clientX, event.clientY - dragged.clientY);
    dragged = event;
  } else {
    cursor = view.place(event);
    if (stroke)
      for (const part of event.getCoalescedEvents?.() ?? [event]) {
        const next = view.place(part);
        use(stroke, next, false);
        stroke = next;
      }
  }
  draw();
};
canvas.onpointerup = canvas.onpointercancel = (event) => {
  pointers.delete(event.pointerId);
  if (pointers.size < 2) pinch = null;
  dragged = null;
  if (corner && tool === "box" && mask) {
    const at = view.place(event);
    if (Math.hypot(at.x - corner.x, at.y - corner.y) * view.zoom > 6) useBox(at);
  }
  stroke = null;
  draw();
};
canvas.onpointerleave = () => { if (!stroke && !corner && !points.length) { cursor = null; draw(); } };
canvas.ondblclick = () => { if (tool === "polygon" && points.length > 2) { points.pop(); closePolygon(); } };
canvas.oncontextmenu = (event) => event.preventDefault();
canvas.onwheel = (event) => {
  event.preventDefault();
  if (!mask) return;
  const box = canvas.getBoundingClientRect();
  view.zoomAt(1.0015 ** -event.deltaY, event.clientX - box.left, event.clientY - box.top);
  draw();
};

// --- keys ---------------------------------------------------------------------------------------------

const TOOLS = { b: "brush", e: "eraser", p: "polygon", x: "box", c: "add", v: "remove" };

/** Use a key; whether it meant something here. */
export function useKey(event) {
  const name = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (name !== "z" && name !== "y") return false;
    (name === "y" || event.shiftKey ? redo : undo)();
    return true;
  }
  const acts = { escape: () => (points.length || corner ? (points = [], corner = null, draw()) : leaveTo(null)), enter: () => (points.length > 2 ? closePolygon() : save()), n: () => finish("nothing"), m: notIt, i: toggleInstances, r: () => finish("reopen", 0), pageup: () => step(-1), pagedown: () => step(1), h: hide, "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: fit, "[": () => resize(-5), "]": () => resize(5), " ": () => { if (cursor) press(cursor); } };
  const classes = document.querySelectorAll("input[name=class]");
  if (name in TOOLS) pickTool(TOOLS[name]);
  else if (/^[1-9]$/.test(name) && classes[name - 1]) { classes[name - 1].checked = true; label = Number(name); }
  else if (name.startsWith("arrow") && mask) { cursor = arrowMove(event, cursor, mask, radius()); draw(); }
  else if (name in acts && (mask || ["escape", "pageup", "pagedown"].includes(name))) acts[name]();
  else return false;
  return true;
}
function resize(by) { $("size").value = Number($("size").value) + by; draw(); }
