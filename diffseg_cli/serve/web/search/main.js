/** The page put together: the object on the left, the images to search on the right. */

import { call, complain } from "../shared/api.js";
import { $ } from "../shared/dom.js";
import * as painter from "../shared/painter.js";
import * as adapting from "./adapting.js";
import { view } from "./answers.js";
import * as cards from "./cards.js";
import * as concepts from "./concepts.js";
import { accept, limits } from "./files.js";
import * as supports from "./supports.js";

let source = "paint";

function showSource(name) {
  source = name;
  document.querySelector(`input[name=source][value=${name}]`).checked = true;
  $("painting").hidden = name !== "paint";
  $("choosing").hidden = name !== "concept";
}
function pickSource(name) {
  showSource(name);
  cards.renew(0);
}
async function useAdapted(name) {
  concepts.chosen.name = name;
  await concepts.load();
  showSource("concept");
  pickVersion("after");
  cards.compare();
}
function pickVersion(name) {
  view.before = name === "before";
  const input = document.querySelector(`input[name=version][value=${name}]`);
  input.checked = true;
  if ($("versions").contains(document.activeElement)) input.focus();
  cards.redraw();
}

const object = {
  isReady: () => (source === "concept" ? concepts.chosen.name !== null : supports.painted().length > 0),
  append: (form) => (source === "concept" ? form.append("concept", concepts.chosen.name) : supports.append(form)),
  missing: () => (source === "concept" ? "Choose a concept first." : supports.support.file ? "Paint the object first." : "Show the object first."),
};

function showSliders() {
  Object.assign(view, { threshold: Number($("threshold").value), presence: Number($("min-presence").value) });
  $("threshold-out").textContent = (view.threshold / 100).toFixed(2);
  $("presence-out").textContent = view.presence ? (view.presence / 100).toFixed(2) : "off";
  cards.redraw();
  if (view.instances) cards.again(450); // they are told apart by the server
}

for (const input of document.querySelectorAll("input[name=source]")) input.onchange = () => pickSource(input.value);
for (const input of document.querySelectorAll("input[name=show]")) input.onchange = () => { view.show = input.value; cards.redraw(); };
for (const input of document.querySelectorAll("input[name=version]")) input.onchange = () => pickVersion(input.value);
$("instances").onchange = () => { view.instances = $("instances").checked; cards.again(0); };
$("threshold").oninput = $("min-presence").oninput = showSliders;
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=text], input[type=password]")) return;
  const steers = event.key.startsWith("Arrow") || [" ", "Enter"].includes(event.key); // means something to other elements too
  if (event.key === "a" && !event.ctrlKey && !event.metaKey && !$("versions").hidden) pickVersion(view.before ? "after" : "before");
  else if ($("painting").hidden || (steers && event.target !== $("canvas")) || !painter.useKey(event)) return;
  event.preventDefault();
});

supports.setUp((milliseconds) => { concepts.show(); adapting.show(); cards.renew(milliseconds); });
adapting.setUp(useAdapted);
concepts.setUp(() => cards.renew(0), () => pickSource("concept"));
cards.setUp(object);
accept($("object"), $("support-drop"), $("support-file"), ([file]) => { pickSource("paint"); supports.open(file); });
accept($("where"), $("query-drop"), $("query-file"), cards.add);
showSliders();

(async () => {
  const model = await (await call("/v1/model")).json();
  Object.assign(limits, model.limits);
  $("about").textContent = `diffseg ${model.version}: ${model.description}. Images stay on the machine that runs the server.`;
  $("presence-slider").hidden = !model.has_presence;
  $("adapt").hidden = $("without").hidden = !model.can_adapt;
  await concepts.load();
  document.body.dataset.ready = "true";
})().catch(complain);
