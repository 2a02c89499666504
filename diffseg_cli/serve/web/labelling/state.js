/** What the server knows of every image: a copy that is kept up to date, and who wants to hear of changes. */

import { Problem, call, complain, get, post } from "../shared/api.js";

export const STATES = ["proposed", "untouched", "corrected", "accepted", "nothing here", "failed"];
const OPEN = new Set(["proposed", "untouched", "failed"]);

export const project = { images: new Map(), classes: [], instances: false, learning: { stage: "idle" }, version: -1 };
const listeners = new Set();
export const listen = (listener) => listeners.add(listener);
const announce = (changed) => listeners.forEach((listener) => listener(changed));

export async function load() {
  const overview = await (await get("/v1/project")).json();
  Object.assign(project, overview);
  await update();
}

let updating = null;
/** Fetch what changed since the last time. */
export function update(quiet = false) {
  updating ??= fetchChanges(quiet).finally(() => { updating = null; });
  return updating;
}
async function fetchChanges(quiet) {
  const body = await (await call(`/v1/project/images?since=${project.version}`, { quiet })).json();
  for (const row of body.images) project.images.set(row.image, row);
  const before = project.learning.stage;
  Object.assign(project, { version: body.version, learning: body.learning });
  announce({ images: body.images.map((row) => row.image), learned: before !== "done" && body.learning.stage === "done" });
}

const busy = () => ["learning", "proposing"].includes(project.learning.stage);
/** Keep up to date: often while it learns, now and then for what others decide. */
export async function follow() {
  for (;;) {
    await new Promise((done) => setTimeout(done, busy() ? 800 : 5000));
    if (document.hidden && !busy()) continue;
    await update(true).catch(() => {});
  }
}

/** Decide about an image; a Problem with status 409 where somebody else was first. */
export async function decide(image, decision, mask = null) {
  const row = project.images.get(image), fields = { image, revision: row.revision, decision };
  if (mask) fields.mask = new File([mask], "mask.png", { type: "image/png" });
  try {
    const next = await (await post("/v1/project/decide", fields)).json();
    project.images.set(image, next);
    announce({ images: [image], learned: false });
    return next;
  } catch (error) {
    if (error instanceof Problem && error.status === 409) await update();
    throw error;
  }
}

export const learn = () => post("/v1/project/learn").then(async (answer) => {
  project.learning = await answer.json();
  announce({ images: [], learned: false });
});
export const cancelLearning = () => call("/v1/project/learn", { method: "DELETE" }).then(() => update()).catch(complain);

/** Keys of the images to show, in order: what is open first, the least certain before others. */
export function ordered(filter, order) {
  const rows = [...project.images.values()].filter((row) => filter === "all" || row.state === filter);
  const rank = (row) => (OPEN.has(row.state) ? 0 : 1);
  if (order === "doubt") rows.sort((a, b) => rank(a) - rank(b) || (b.doubt ?? 0) - (a.doubt ?? 0) || (a.image < b.image ? -1 : 1));
  return rows.map((row) => row.image);
}
