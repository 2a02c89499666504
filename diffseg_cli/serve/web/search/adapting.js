/** Adapt the model to what is painted: a job of the server, with its progress and what came of it. */

import { Problem, call, calm, complain } from "../shared/api.js";
import { $, showProgress } from "../shared/dom.js";
import * as concepts from "./concepts.js";
import { checkSize, showFiles } from "./files.js";
import * as supports from "./supports.js";

const LOOK_AGAIN = 700; // milliseconds
const negatives = []; // images without the object
let running = null; // path of the concept that is being adapted
let announce = () => {};

export function setUp(onAdapted) {
  announce = onAdapted;
  $("adapt").onclick = () => adapt().catch(complain);
  $("adapt-cancel").onclick = () => call(`${running}/adaptation`, { method: "DELETE" }).catch(complain);
  $("without").onclick = () => $("without-file").click();
  $("without-file").onchange = () => {
    negatives.push(...$("without-file").files);
    $("without-file").value = "";
    showNegatives();
  };
}
export function show() {
  $("adapt").disabled = !supports.painted().length;
}
function showNegatives() {
  showFiles($("negatives"), negatives, "image without the object", (index) => {
    negatives.splice(index, 1);
    showNegatives();
    $("without").focus();
  });
}

async function adapt() {
  calm();
  const name = $("concept-name").value.trim() || freeName(), form = new FormData();
  form.append("name", name);
  form.append("adapt", "true");
  supports.append(form);
  for (const file of negatives) form.append("not", file);
  checkSize(...[...form.values()].filter((value) => value instanceof File));
  say("Encoding the supports…");
  showRunning(true);
  try {
    await call("/v1/concepts", { method: "POST", body: form, onBusy: () => say("Waiting: the server is busy, perhaps with another adaptation.") });
    running = `/v1/concepts/${encodeURIComponent(name)}`;
    await finish(name, await follow());
  } catch (error) {
    say("");
    throw error;
  } finally {
    running = null;
    showRunning(false);
  }
}
/** Show how far it is until it ends, and give its end. */
async function follow() {
  $("adapt-cancel").disabled = false;
  $("adapt-cancel").focus();
  for (;;) {
    const { adaptation } = await (await call(running)).json();
    if (adaptation.stage !== "adapting") return adaptation;
    say(showProgress($("adapt-bar"), adaptation));
    await new Promise((done) => setTimeout(done, LOOK_AGAIN));
  }
}
async function finish(name, { stage, reach, before, after, error }) {
  if (reach) {
    say(`Adapted, and kept as the concept ${name}: IoU on the supports ${before.toFixed(2)} before, ${after.toFixed(2)} after.`);
    $("concept-name").value = "";
    await announce(name);
    ($("versions").hidden ? $("concepts") : $("versions")).querySelector("input:checked").focus();
    return;
  }
  await call(running, { method: "DELETE" });
  const why = before == null ? "one support says too little about its class, give two or more, or images without the object" : `adapting would not help (IoU on the supports ${before.toFixed(2)})`;
  say(stage === "cancelled" ? "Adapting was cancelled." : stage === "done" ? `The model stays as it was: ${why}.` : "");
  if (error) throw new Problem(error);
}

function showRunning(isRunning) {
  const focused = document.activeElement;
  $("adapt").hidden = isRunning;
  $("adapt-bar").hidden = $("adapt-cancel").hidden = !isRunning;
  $("adapt-bar").removeAttribute("value");
  $("adapt-cancel").disabled = true; // until there is something to cancel
  if (!isRunning && [$("adapt-cancel"), document.body].includes(focused)) $("adapt").focus();
}
const say = (text) => { $("adapt-left").textContent = text; };
function freeName() {
  let number = 1;
  const name = () => (number === 1 ? "object" : `object ${number}`);
  while (concepts.names.includes(name())) number++;
  return name();
}
