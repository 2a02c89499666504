/** One image, large: what is drawn on it, and what is decided about it. */

import { Problem, complain, get, post, tell } from "../shared/api.js";
import { $ } from "../shared/dom.js";
import { greysOf } from "../shared/mask.js";
import * as painter from "../shared/painter.js";
import { painting } from "../shared/painter.js";
import { Instances } from "./instances.js";
import { decide, project } from "./state.js";

let key = null, opening = 0;
let leave = () => {}, onMove = () => {};
const instances = new Instances(painter.draw);

export const current = () => key;

export function setUp(onLeave, onNeighbour) {
  if (project.instances) toggleInstances();
  [leave, onMove] = [onLeave, onNeighbour];
  const rgb = project.classes.map(({ color }) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
  painter.setUp({
    colors: () => rgb, wheelZooms: true,
    changed: () => { instances.follow(painting.mask); describe(); },
    drawMask: (context, zoom) => instances.draw(context, zoom),
    findAt: (place) => post("/v1/project/click", { image: key, ...place }),
    findBox: (box) => post("/v1/project/box", { image: key, ...box }),
  });
  $("classes").replaceChildren(...project.classes.map(({ name, color }, index) => {
    const choice = document.createElement("label"), swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = color;
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "class", checked: index === 0 });
    input.onchange = () => { painting.label = index + 1; };
    choice.append(input, swatch, name);
    choice.title = `Key ${index + 1}`;
    return choice;
  }));
  $("classes").hidden = $("not-it").hidden = project.classes.length < 2; // of one class it would be "nothing here"
  const buttons = { hide, back: () => leaveTo(null), save, instances: toggleInstances, "not-it": notIt, nothing: () => finish("nothing"), reopen: () => finish("reopen", 0), previous: () => step(-1), next: () => step(1) };
  for (const [id, act] of Object.entries(buttons)) $(id).onclick = () => { act(); painter.focus(); };
}

/** Open an image; what was drawn on another one is kept before. */
export async function open(next) {
  if (!(await keep())) return;
  const mine = ++opening;
  key = next;
  painter.open(null);
  $("editor").hidden = false;
  $("overview").hidden = true;
  describe();
  painter.focus();
  try {
    const { image, labels } = await fetched(key);
    if (mine !== opening) return;
    painter.open(image, labels?.slice());
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
  const { mask } = painting;
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
  key = null;
  painter.open(null);
  opening++;
  $("editor").hidden = true;
  $("overview").hidden = false;
  leave(last);
}
const step = (by) => { const next = onMove(key, by); if (next !== null) leaveTo(next); };

/** Enter: what was drawn is a correction, what was not is accepted; then the next image. */
async function save() {
  if (!painting.mask) return;
  if (painting.mask.changed) {
    if (!(await keep())) return;
  } else if (!(await attempt("accept"))) return;
  const next = onMove(key, 1);
  if (next === null) describe();
  else leaveTo(next);
}
async function finish(decision, by = 1) {
  if (!(await attempt(decision))) return;
  painting.mask?.markSaved();
  const next = by ? onMove(key, by) : null;
  open(next ?? key);
}
const attempt = (decision) => decide(key, decision).then(() => true, (error) => { complain(error); return false; });

function describe() {
  const row = project.images.get(key), changed = painting.mask?.changed;
  $("editor-name").textContent = key;
  const presence = Object.entries(row.presence ?? {}).map(([name, value]) => `${project.classes.length > 1 ? `${name} ` : ""}presence ${value.toFixed(2)}`);
  $("editor-state").textContent = [row.state, ...presence, changed ? "changed" : ""].filter(Boolean).join(", ");
  $("save").textContent = changed ? "Save correction" : "Accept";
}
export const refresh = (changed) => { if (key && changed.includes(key)) describe(); };
export const isChanged = () => Boolean(painting.mask?.changed);

/** What is marked as the chosen class is something else: take it away, save, and go on. */
function notIt() {
  const { mask, label } = painting;
  if (!mask) return;
  mask.begin();
  mask.clear(label);
  painter.repaint();
  save();
}
function hide() {
  painting.isHidden = !painting.isHidden;
  $("hide").setAttribute("aria-pressed", String(painting.isHidden));
  painter.draw();
}
function toggleInstances() {
  instances.toggle(painting.mask);
  $("instances").setAttribute("aria-pressed", String(instances.shown));
  painter.draw();
}

/** Use a key; whether it meant something here. */
export function useKey(event) {
  if (painter.useKey(event)) return true;
  if (event.ctrlKey || event.metaKey) return false;
  const name = event.key.toLowerCase(), classes = document.querySelectorAll("input[name=class]");
  const always = { escape: () => leaveTo(null), pageup: () => step(-1), pagedown: () => step(1) };
  const acts = { ...always, ...(painting.mask && { enter: save, n: () => finish("nothing"), m: notIt, i: toggleInstances, r: () => finish("reopen", 0), h: hide }) };
  if (/^[1-9]$/.test(name) && classes[name - 1]) {
    classes[name - 1].checked = true;
    painting.label = Number(name);
  } else if (name in acts) acts[name]();
  else return false;
  return true;
}
