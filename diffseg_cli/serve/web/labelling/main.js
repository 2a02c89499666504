/** The page put together: the grid, the editor, keys, learning and export. */

import { Problem, call, complain, post } from "../shared/api.js";
import { $, create, download, showProgress } from "../shared/dom.js";
import * as editor from "./editor.js";
import * as grid from "./grid.js";
import { STATES, cancelLearning, decide, follow, learn, listen, load, ordered, project } from "./state.js";

const KEYS = {
  "Arrows": "choose an image; in the editor move the tool (Shift: one pixel)", "Enter": "open; in the editor accept, or save what was drawn, and go on",
  "A": "accept the chosen image", "N": "nothing here", "M": "in the editor: what is marked as the chosen class is something else", "R": "reopen: the model may propose again", "L": "learn and propose", "Escape": "back",
  "B E P X": "brush, eraser, polygon, box", "C V": "add or remove the region under the tool", "Space": "use the tool", "[ ]": "size of the brush",
  "Ctrl Z": "undo (with Shift: redo)", "+ − 0": "zoom in, out, fit; the wheel and two fingers do too", "H": "hide the mask", "I": "tell the objects in it apart", "1 to 9": "class", "Page up, Page down": "previous, next image", "?": "these keys",
};
const LOOK_AGAIN = 300; // milliseconds
let filter = "all";

function showFilters() {
  const counts = new Map(STATES.map((state) => [state, 0]));
  for (const row of project.images.values()) counts.set(row.state, counts.get(row.state) + 1);
  const choices = [["all", project.images.size], ...[...counts].filter(([state, count]) => count || state === filter)];
  for (const [state, count] of choices) {
    let button = $("filters").querySelector(`[data-filter="${state}"]`);
    if (!button) {
      button = Object.assign(document.createElement("button"), { type: "button" });
      button.dataset.filter = state;
      button.onclick = () => { filter = state; showAll(); };
      $("filters").append(button);
    }
    button.textContent = `${state} ${count}`;
    button.setAttribute("aria-pressed", String(state === filter));
  }
}
function showAll() {
  showFilters();
  const keys = ordered(filter, $("order").value);
  $("empty").hidden = keys.length > 0;
  $("empty").textContent = `No image is ${filter}.`;
  grid.show(keys);
}
function showLearning() {
  const { stage, error } = project.learning;
  const busy = stage === "learning" || stage === "proposing";
  $("learn").disabled = busy;
  $("progress").hidden = $("cancel").hidden = !busy;
  const far = showProgress($("progress"), project.learning);
  const taught = [...project.images.values()].filter((row) => row.state === "corrected" || row.state === "accepted").length;
  $("left").textContent = busy ? far : stage === "failed" ? error
    : taught ? `from ${taught} image${taught > 1 ? "s" : ""}` : "correct an image first";
}

async function decideChosen(decision) {
  const key = grid.chosen.key;
  if (key === null) return;
  try {
    await decide(key, decision);
    if (grid.chosen.key === key) grid.choose(grid.neighbour(key, 1) ?? key);
  } catch (error) {
    complain(error);
  }
}
async function downloadLabels() {
  const button = $("export"), format = $("format").value;
  if (button.ariaBusy === "true") return;
  button.ariaBusy = "true";
  try {
    const { file } = await (await post("/v1/project/export", { format, all: $("all").checked, instances: $("apart").checked })).json();
    for (;;) {
      const { stage, error, done, total } = await (await call("/v1/project/export")).json();
      if (error) throw new Problem(error);
      if (stage !== "packing") break;
      if (total) button.textContent = `Packing ${done} of ${total}`;
      await new Promise((then) => setTimeout(then, LOOK_AGAIN));
    }
    download(`labels-${format}.zip`, await (await call(`/v1/project/export/${file}`)).blob());
  } catch (error) {
    complain(error);
  } finally {
    button.textContent = "Download";
    button.ariaBusy = null;
  }
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("select, input:not([type=radio])") || document.querySelector("dialog[open]")) return;
  if (event.key === "?") $("help").showModal();
  else if (editor.current()) {
    if ((event.key === "Enter" || event.key === " ") && event.target.matches("button")) return;
    if (event.key.startsWith("Arrow") && event.target.matches("input[type=radio]")) return;
    if (!editor.useKey(event)) return;
  } else {
    const acts = { enter: () => grid.chosen.key && editor.open(grid.chosen.key), a: () => decideChosen("accept"), n: () => decideChosen("nothing"), r: () => decideChosen("reopen"), l: () => learn().catch(complain) };
    const name = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey || event.altKey || (name === "enter" && event.target.matches("button, a"))) return;
    if (name in acts) acts[name]();
    else if (!grid.move(event.key)) return;
  }
  event.preventDefault();
});
addEventListener("beforeunload", (event) => { if (editor.isChanged()) event.preventDefault(); });

$("learn").onclick = () => learn().catch(complain);
$("cancel").onclick = cancelLearning;
$("export").onclick = downloadLabels;
$("order").onchange = showAll;
$("keys").onclick = () => $("help").showModal();
for (const [key, meaning] of Object.entries(KEYS))
  $("key-list").append(create("dt", {}, key), create("dd", {}, meaning));

listen(({ images, learned }) => {
  if (learned) showAll(); // the order is settled anew, and not under somebody's hands
  else showFilters();
  showLearning();
  grid.refresh(images);
  editor.refresh(images);
});
load().then(() => {
  $("apart").checked = project.instances;
  grid.setUp((key) => editor.open(key));
  editor.setUp((last) => { showAll(); grid.choose(last); $("grid").focus({ preventScroll: true }); }, grid.neighbour);
  showAll();
  showLearning();
  $("grid").focus({ preventScroll: true });
  const linked = new URLSearchParams(location.hash.slice(1)).get("image"); // from the contact sheet of a batch
  if (project.images.has(linked)) { grid.choose(linked); editor.open(linked); }
  document.body.dataset.ready = "true";
  follow();
}).catch(complain);
