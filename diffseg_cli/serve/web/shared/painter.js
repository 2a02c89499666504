/** A mask on its image: brush, eraser, polygon, box and clicks; zoom and pan; by mouse, finger and keyboard. */

import { Problem, complain } from "./api.js";
import { $ } from "./dom.js";
import { arrowMove, boxOf, brushRadius, drawMarks } from "./marks.js";
import { Mask, MaskLayer, greysOf } from "./mask.js";
import { View } from "./view.js";

const KEYS = { b: "brush", e: "eraser", p: "polygon", x: "box", c: "add", v: "remove" }; // those that the page has
const canvas = $("canvas"), context = canvas.getContext("2d"), view = new View(canvas);
const pointers = new Map();
export const painting = { image: null, mask: null, label: 1, isHidden: false };
let layer = null, tool = "brush", waiting = 0;
let stroke = null, cursor = null, corner = null, points = [], pinch = null, dragged = null;
let page = {};

/**
 * hooks of the page: colors of the labels, changed after every change; findBox (a box in shares of the image) and findAt (a
 * place) ask the server for a mask; drawMask draws something else in its place and returns true; wheelZooms, or only with Ctrl.
 */
export function setUp(hooks) {
  page = { drawMask: () => false, wheelZooms: false, ...hooks };
  new ResizeObserver(() => { if (painting.image) { view.fit(); draw(); } }).observe($("stage"));
  for (const input of document.querySelectorAll("input[name=tool]")) input.onchange = () => pickTool(input.value);
  for (const [id, act] of Object.entries({ undo, redo, clear, in: () => zoom(1.4), out: () => zoom(1 / 1.4), fit })) $(id).onclick = () => { act(); focus(); };
  $("size").oninput = draw;
}
export const focus = () => canvas.focus({ preventScroll: true });

/** Paint on an image (a bitmap or canvas) with labels or without; without an image there is nothing to paint on. */
export function open(image, labels = null) {
  const mask = image && new Mask(image.width, image.height, labels);
  Object.assign(painting, { image, mask });
  points = [];
  corner = cursor = stroke = null;
  $("undo").disabled = $("redo").disabled = true;
  if (!image) return draw();
  layer = new MaskLayer(mask);
  view.fit(image.width, image.height);
  repaint();
}

/** The mask was changed, in an area or anywhere. */
export function repaint(area = null) {
  const { mask } = painting;
  layer.repaint(page.colors(), area);
  $("undo").disabled = !mask.undos.length;
  $("redo").disabled = !mask.redos.length;
  page.changed(area);
  draw();
}
let drawing = false;
export function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; drawNow(); });
}
function drawNow() {
  const { image, isHidden } = painting;
  const sharp = devicePixelRatio, width = Math.round(canvas.clientWidth * sharp), height = Math.round(canvas.clientHeight * sharp);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  if (!image) return;
  context.setTransform(view.zoom * sharp, 0, 0, view.zoom * sharp, view.x * sharp, view.y * sharp);
  context.imageSmoothingEnabled = view.zoom < 3;
  context.drawImage(image, 0, 0);
  if (!isHidden) page.drawMask(context, view.zoom) || context.drawImage(layer.canvas, 0, 0);
  drawMarks(context, { cursor, radius: paints() ? radius() : null, corner, points }, 1 / view.zoom);
}

// --- tools --------------------------------------------------------------------------------------------

const radius = () => brushRadius(Number($("size").value), painting.mask);
const paints = () => tool === "brush" || tool === "eraser";

function pickTool(name) {
  tool = name;
  document.querySelector(`input[name=tool][value=${name}]`).checked = true;
  $("size-label").hidden = !paints();
  points = [];
  corner = null;
  draw();
}
function use(from, to) {
  repaint(painting.mask.stroke(from, to, radius(), tool === "eraser" ? 0 : painting.label));
}
function closePolygon() {
  if (points.length > 2) {
    painting.mask.begin();
    painting.mask.polygon(points, painting.label);
  }
  points = [];
  repaint();
}
/** A region the server finds, added or taken away. */
async function ask(request, remove = false) {
  const { mask, label } = painting;
  $("stage").classList.toggle("waiting", ++waiting > 0);
  try {
    const inside = (await greysOf(await (await request).blob(), mask)).map((grey) => Number(grey > 127));
    if (mask !== painting.mask) return;
    if (!inside.includes(1)) throw new Problem("Nothing was found there. Try another place, or paint it.");
    mask.begin();
    mask.region(inside, label, remove);
    repaint();
  } catch (error) {
    complain(error);
  } finally {
    $("stage").classList.toggle("waiting", --waiting > 0);
  }
}
function press(at) {
  const { mask } = painting;
  if (tool === "polygon") {
    const near = points.length > 2 && Math.hypot(at.x - points[0].x, at.y - points[0].y) * view.zoom < 10;
    if (near) return closePolygon();
    points.push(at);
  } else if (tool === "box") {
    if (!corner) corner = at;
    else useBox(at);
  } else if (tool === "add" || tool === "remove") ask(page.findAt({ x: at.x / mask.width, y: at.y / mask.height }), tool === "remove");
  else {
    mask.begin();
    use(at, at);
  }
  draw();
}
function useBox(at) {
  const { x, y, width, height } = boxOf(corner, at), { mask } = painting;
  corner = null;
  if (width > 3 && height > 3) ask(page.findBox({ x: x / mask.width, y: y / mask.height, width: width / mask.width, height: height / mask.height }));
}
function undo() { if (points.length) points.pop(); else painting.mask?.undo(); if (painting.mask) repaint(); }
function redo() { painting.mask?.redo(); if (painting.mask) repaint(); }
function clear() { if (painting.mask) { painting.mask.begin(); painting.mask.clear(); repaint(); } }
function zoom(factor) { view.zoomAt(factor); draw(); }
function fit() { view.fit(); draw(); }

// --- pointers -----------------------------------------------------------------------------------------

canvas.onpointerdown = (event) => {
  if (!painting.mask) return;
  event.preventDefault();
  focus();
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  if (pointers.size === 2) { // two fingers zoom and pan; what the first one drew is taken back
    if (stroke) painting.mask.undo();
    stroke = corner = null;
    pinch = spread();
    return repaint();
  }
  if (event.button === 1 || event.button === 2) { dragged = event; return; }
  cursor = view.place(event);
  press(cursor);
  if (paints()) stroke = cursor;
};
const spread = () => {
  const [a, b] = [...pointers.values()];
  return { x: (a.clientX + b.clientX) / 2, y: (a.clientY + b.clientY) / 2, size: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) || 1 };
};
canvas.onpointermove = (event) => {
  if (!painting.mask) return;
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
        use(stroke, next);
        stroke = next;
      }
  }
  draw();
};
canvas.onpointerup = canvas.onpointercancel = (event) => {
  pointers.delete(event.pointerId);
  if (pointers.size < 2) pinch = null;
  dragged = null;
  if (corner && tool === "box" && painting.mask) {
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
  if (!page.wheelZooms && !event.ctrlKey) return;
  event.preventDefault();
  if (!painting.mask) return;
  const box = canvas.getBoundingClientRect();
  view.zoomAt(1.0015 ** -event.deltaY, event.clientX - box.left, event.clientY - box.top);
  draw();
};

// --- keys ---------------------------------------------------------------------------------------------

/** Use a key; whether it meant something here. */
export function useKey(event) {
  const name = event.key.toLowerCase();
  if (!painting.mask) return false;
  if (event.ctrlKey || event.metaKey) {
    if (name !== "z" && name !== "y") return false;
    (name === "y" || event.shiftKey ? redo : undo)();
    return true;
  }
  const acts = { "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: fit, "[": () => resize(-5), "]": () => resize(5), " ": () => { if (cursor) press(cursor); } };
  if (document.querySelector(`input[name=tool][value=${KEYS[name]}]`)) pickTool(KEYS[name]);
  else if (name.startsWith("arrow")) { cursor = arrowMove(event, cursor, painting.mask, radius()); draw(); }
  else if (name === "enter" && points.length > 2) closePolygon();
  else if (name === "escape" && (points.length || corner)) { points = []; corner = null; draw(); }
  else if (name in acts) acts[name]();
  else return false;
  return true;
}
function resize(by) { $("size").value = Number($("size").value) + by; draw(); }
