/** The support in hand: its image, and what is painted on it. */

import { Problem, calm, complain, post } from "../shared/api.js";
import { $ } from "../shared/dom.js";
import { TINT, arrowMove, boxOf, brushRadius, clamp, drawMarks } from "../shared/marks.js";
import { Mask, MaskLayer, greysOf } from "../shared/mask.js";
import { checkSize, decode } from "./files.js";

export const support = { file: null, blob: null }; // the image, and its mask where it can be one
const canvas = $("canvas"), context = canvas.getContext("2d");
const HELP = { brush: "Paint over the object, or drag a box round it.", eraser: "Paint over what is too much.", box: "Drag a box round the object." };
let image = null, mask = null, layer = null, version = 0;
let tool = "brush", stroke = null, cursor = null, corner = null, asking = false;
let announce = () => {};

export function setUp(onChange) {
  announce = onChange;
  for (const input of document.querySelectorAll("input[name=tool]")) input.onchange = () => pickTool(input.value);
  $("size").oninput = draw;
  $("undo").onclick = undo;
  $("clear").onclick = () => { mask.begin(); mask.clear(); changed(); canvas.focus({ preventScroll: true }); };
}

/** Paint on another image; onLoad is called once it can be shown, before the one in hand is left. */
export async function open(file, onLoad = () => {}) {
  calm();
  try {
    checkSize(file);
    const decoded = await decode(file);
    onLoad();
    image = decoded;
    mask = new Mask(image.canvas.width, image.canvas.height);
    layer = new MaskLayer(mask);
    Object.assign(canvas, { width: mask.width, height: mask.height });
    Object.assign(support, { file, blob: null });
    cursor = corner = stroke = null;
    $("support-drop").hidden = true;
    $("painter").hidden = false;
    await changed();
  } catch (error) {
    complain(error);
  }
}

/** After every change of the mask: draw it, and say so once it is a file. */
async function changed(area = null) {
  const mine = ++version;
  support.blob = null;
  layer.repaint([TINT], area);
  draw();
  const usable = mask.labels.includes(1) && mask.labels.includes(0), blob = usable ? await mask.png(255) : null;
  if (mine !== version) return;
  support.blob = blob;
  show();
  announce();
}
export function show() {
  const focused = document.activeElement;
  $("undo").disabled = !mask.undos.length;
  $("clear").disabled = !mask.labels.includes(1);
  if (focused?.disabled) canvas.focus({ preventScroll: true });
  $("paint-help").textContent = asking ? "Looking for the outline of what is in the box…"
    : support.blob ? "Everything of the object should be covered, and little else." : HELP[tool];
}

const radius = () => brushRadius(Number($("size").value), mask);
let drawing = false;
function draw() {
  if (drawing || !mask) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    context.drawImage(image.canvas, 0, 0);
    context.drawImage(layer.canvas, 0, 0);
    drawMarks(context, { cursor, corner, radius: tool === "box" ? null : radius() }, mask.width / Math.max(1, canvas.clientWidth));
  });
}

// --- tools --------------------------------------------------------------------------------------------

function pickTool(name) {
  tool = name;
  document.querySelector(`input[name=tool][value=${name}]`).checked = true;
  $("size-label").hidden = name === "box";
  corner = null;
  draw();
  show();
}
function dab(from, to) {
  layer.repaint([TINT], mask.stroke(from, to, radius(), tool === "eraser" ? 0 : 1));
}
function undo() {
  if (!mask.undos.length) return;
  mask.undo();
  changed();
}
/** Let the server make the mask of what is in a box, and add it to what is painted. */
async function useBox(at) {
  const box = boxOf(corner, at), scale = image.width / mask.width, mine = mask;
  corner = null;
  if (box.width < 4 || box.height < 4 || asking) return;
  calm();
  asking = true;
  $("stage").classList.add("waiting");
  show();
  try {
    const sides = Object.fromEntries(Object.entries(box).map(([field, value]) => [field, (value * scale).toFixed(2)]));
    const made = await post("/v1/mask", { image: support.file, ...sides });
    const inside = (await greysOf(await made.blob(), mine)).map((grey) => Number(grey > 127));
    if (mine !== mask) return;
    if (!inside.includes(1)) throw new Problem("Nothing was found in that box. Draw it tightly round the object, or paint it.");
    mask.begin();
    mask.region(inside, 1);
    changed();
  } catch (error) {
    complain(error);
  } finally {
    asking = false;
    $("stage").classList.remove("waiting");
    show();
  }
}

// --- pointers and keys --------------------------------------------------------------------------------

function place(event) {
  const box = canvas.getBoundingClientRect();
  return clamp({ x: ((event.clientX - box.left) / box.width) * mask.width, y: ((event.clientY - box.top) / box.height) * mask.height }, mask);
}
canvas.onpointerdown = (event) => {
  if (event.button || asking) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  stroke = cursor = place(event);
  corner = tool === "box" ? stroke : null;
  if (!corner) {
    mask.begin();
    dab(stroke, stroke);
  }
  draw();
};
canvas.onpointermove = (event) => {
  cursor = place(event);
  if (stroke && !corner)
    for (const step of event.getCoalescedEvents?.() ?? [event]) {
      const next = place(step);
      dab(stroke, next);
      stroke = next;
    }
  draw();
};
canvas.onpointerup = canvas.onpointercancel = (event) => {
  if (!stroke) return;
  stroke = null;
  if (corner) useBox(place(event));
  else changed();
  draw();
};
canvas.onpointerleave = () => { if (!stroke) { cursor = null; draw(); } };
canvas.onblur = () => { if (!stroke) { cursor = corner = null; draw(); } };
canvas.onkeydown = (event) => {
  const next = arrowMove(event, cursor, mask, radius());
  if (next) cursor = next;
  else if (event.key !== " " || !cursor) return;
  else if (tool !== "box") {
    mask.begin();
    changed(mask.stroke(cursor, cursor, radius(), tool === "eraser" ? 0 : 1));
  } else if (corner) useBox(cursor);
  else corner = cursor;
  event.preventDefault();
  draw();
};

const TOOLS = { b: "brush", e: "eraser", x: "box" };
/** Use a key that works wherever the focus is; whether it meant something. */
export function useKey(event) {
  const key = event.key.toLowerCase();
  if (!mask) return false;
  if ((event.ctrlKey || event.metaKey) && key === "z") undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return false;
  else if (key in TOOLS) pickTool(TOOLS[key]);
  else if (key === "[" || key === "]") {
    $("size").value = Number($("size").value) + (key === "[" ? -5 : 5);
    draw();
  } else return false;
  return true;
}
