/** The images to search: a card each, and the requests that fill them. */

import { call, calm, complain, sentence } from "../shared/api.js";
import { $, download } from "../shared/dom.js";
import { drawAnswer, factsOf, maskFile, readAnswer, view } from "./answers.js";
import { LONGEST, checkSize, decode } from "./files.js";
import { zip } from "./zip.js";

const MANY = 20, SMALLER = 640; // of more images than that, so that a browser can hold them
const PARALLEL = 2; // requests at once
const cards = [];
let timer = null, generation = 0, running = 0;
let object = { isReady: () => false, append: () => {}, missing: () => "" };

/** object: whether it is there to be looked for, what a request holds of it, and what is missing. */
export function setUp(shown) {
  object = shown;
  $("save-all").onclick = () => saveAll().catch(complain);
  $("remove-all").onclick = () => { [...cards].forEach(remove); $("query-drop").focus(); };
}

/** Search all images for another object, a moment later. */
export function renew(milliseconds) {
  for (const card of cards) card.before = null;
  again(milliseconds);
}
/** Search them with what an adaptation gave, and keep the answers from before it. */
export function compare() {
  for (const card of cards) card.before = card.answer;
  again(0);
}
const isComparing = () => cards.some((card) => card.before);
/** Search them for the same object again, a moment later. */
export function again(milliseconds) {
  clearTimeout(timer);
  generation++;
  for (const card of cards) card.cancel?.abort();
  timer = setTimeout(() => { timer = null; pump(); }, milliseconds);
  showState();
}
export const redraw = () => cards.forEach(show);

export async function add(files) {
  calm();
  for (const file of files) {
    const item = $("card").content.cloneNode(true).firstElementChild, [save, removal] = ["save", "remove"].map((name) => item.querySelector(`.${name}`));
    const twins = cards.filter((each) => each.file.name === file.name).length, name = twins ? `${file.name} (${twins + 1})` : file.name;
    const card = { file, name, item, save, canvas: item.querySelector("canvas"), facts: item.querySelector(".facts"), generation: -1 };
    item.querySelector("strong").textContent = name;
    save.ariaLabel = `Save mask of ${name}`;
    save.onclick = () => fileOf(card).then((mask) => download(mask.name, mask.blob)).catch(complain);
    removal.ariaLabel = `Remove ${name}`;
    removal.onclick = () => remove(card);
    cards.push(card);
    $("results").append(item);
    seen.observe(item);
  }
  showState();
  for (const card of cards.filter((each) => !each.image && !each.error)) {
    try {
      checkSize(card.file);
      card.image = await decode(card.file, cards.length > MANY ? SMALLER : LONGEST);
      Object.assign(card.canvas, { width: card.image.canvas.width, height: card.image.canvas.height }); // its place, before it is in sight
    } catch (error) {
      card.error = sentence(error);
    }
    show(card);
    pump();
  }
}
function remove(card) {
  card.cancel?.abort();
  seen.unobserve(card.item);
  cards.splice(cards.indexOf(card), 1);
  const beside = card.item.nextElementSibling ?? card.item.previousElementSibling, focused = card.item.contains(document.activeElement);
  card.item.remove();
  if (focused) (beside?.querySelector(".remove") ?? $("query-drop")).focus();
  showState();
}

// --- requests -----------------------------------------------------------------------------------------

const isOpen = (card) => card.image && card.generation !== generation;
function pump() {
  while (object.isReady() && timer === null && running < PARALLEL) {
    const card = cards.find(isOpen);
    if (!card) break;
    card.generation = generation;
    running++;
    search(card).finally(() => { running--; pump(); });
  }
  showState();
}
async function search(card) {
  const mine = generation, form = new FormData();
  card.cancel = new AbortController();
  show(card);
  try {
    form.append("query", card.file);
    form.append("format", "json");
    for (const field of ["probability", "score_map", ...(view.instances ? ["rle"] : [])]) form.append("include", field);
    if (view.instances) {
      form.append("instances", "true");
      form.append("threshold", view.threshold / 100);
    }
    object.append(form);
    checkSize(...[...form.values()].filter((value) => value instanceof File));
    const onBusy = () => say(card, ["Waiting: the server has much to do."]);
    const found = await (await call("/v1/segment", { method: "POST", body: form, signal: card.cancel.signal, onBusy })).json();
    if (mine !== generation) return;
    const answer = await readAnswer(found, card.image.canvas);
    if (mine === generation) Object.assign(card, { answer, error: null });
  } catch (error) {
    if (error.name === "AbortError") return;
    Object.assign(card, { answer: null, error: sentence(error) });
  } finally {
    if (mine === generation) card.cancel = null;
    show(card);
  }
}

// --- showing ------------------------------------------------------------------------------------------

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const card = cards.find((each) => each.item === target);
    if (card) Object.assign(card, { isVisible: isIntersecting });
    if (card?.isDirty) draw(card);
  }
}, { rootMargin: "200px" });

const shown = (card) => (view.before && card.before ? card.before : card.answer);
function draw(card) {
  if (!card.isVisible || !card.isDirty || !card.image) return;
  card.isDirty = false;
  const { canvas, image } = card, answer = shown(card);
  Object.assign(canvas, { width: image.canvas.width, height: image.canvas.height });
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(image.canvas, 0, 0);
  if (answer) drawAnswer(canvas, answer);
}
function say(card, facts, wrong = false) {
  card.facts.replaceChildren(...facts);
  card.facts.classList.toggle("wrong", wrong);
}
function show(card) {
  if (!cards.includes(card)) return;
  const { error, item } = card, answer = shown(card), frame = item.querySelector(".view");
  card.isDirty = true;
  requestAnimationFrame(() => draw(card));
  card.save.hidden = !answer;
  frame.hidden = !card.image;
  frame.classList.toggle("waiting", Boolean(card.cancel));
  if (error) say(card, [error], true);
  else if (answer) say(card, factsOf(answer));
  else say(card, card.cancel ? ["Looking…"] : []);
  const said = [...card.facts.childNodes].map((fact) => fact.textContent).filter(Boolean);
  card.canvas.ariaLabel = `${card.name}: ${said.join(", ")}`;
}
function showState() {
  const waiting = timer !== null ? cards.length : cards.filter(isOpen).length + running;
  $("state").textContent = !cards.length ? "" : object.isReady() ? (waiting ? `${cards.length - waiting} of ${cards.length} done…` : "") : object.missing();
  $("results").ariaBusy = String(object.isReady() && waiting > 0);
  $("controls").hidden = !cards.length;
  $("versions").hidden = !isComparing();
  $("query-drop").classList.toggle("slim", cards.length > 0);
}

// --- saving -------------------------------------------------------------------------------------------

const fileOf = async (card) => ({ name: `${card.file.name.replace(/\.[^.]*$/, "")}_mask.png`, blob: await maskFile(shown(card)) });
async function saveAll() {
  const masks = [];
  for (const card of cards.filter((each) => each.answer)) masks.push(await fileOf(card));
  if (masks.length === 1) download(masks[0].name, masks[0].blob);
  else if (masks.length) download("masks.zip", await zip(masks));
}
