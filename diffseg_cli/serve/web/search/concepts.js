/** Concepts that the server keeps: choose one, keep what is painted as one, forget one. */

import { call, calm, complain } from "../shared/api.js";
import { $, create } from "../shared/dom.js";
import * as supports from "./supports.js";

export const chosen = { name: null };
export let names = [];
let announce = () => {}, onKept = () => {};

export function setUp(onChange, kept) {
  [announce, onKept] = [onChange, kept];
  $("keep").onclick = keep;
  $("concept-name").onkeydown = (event) => { if (event.key === "Enter" && !$("keep").disabled) keep(); };
}

export async function load() {
  const { concepts } = await (await call("/v1/concepts")).json();
  names = concepts.map(({ id }) => id);
  $("no-concepts").hidden = concepts.length > 0;
  if (!concepts.some((each) => each.id === chosen.name)) chosen.name = concepts[0]?.id ?? null;
  $("concepts").replaceChildren(...concepts.map(item));
}
function item({ id, supports: count, fixed, preview, adaptation }) {
  const input = create("input", { type: "radio", name: "concept", value: id, checked: id === chosen.name });
  input.onchange = () => { chosen.name = id; announce(); };
  const about = create("small", { textContent: (count === 1 ? "1 support" : `${count} supports`) + (adaptation?.reach ? ", adapted" : "") });
  const label = create("label", {}, input, create("img", { src: preview, alt: "" }), create("span", {}, id, about));
  const remove = create("button", { type: "button", textContent: "×", title: "Forget it", ariaLabel: `Forget ${id}`, onclick: () => forget(id).catch(complain) });
  return create("li", {}, label, ...(fixed ? [] : [remove]));
}
async function forget(name) {
  await call(`/v1/concepts/${encodeURIComponent(name)}`, { method: "DELETE" });
  await load();
  ($("concepts").querySelector("input:checked") ?? document.querySelector("input[name=source]:checked")).focus();
  announce();
}

export function show() {
  $("keep").disabled = !supports.painted().length;
}
/** Keep what is painted under the name in the field. */
async function keep() {
  const name = $("concept-name").value.trim();
  if (!name) return $("concept-name").focus();
  calm();
  try {
    const form = new FormData();
    form.append("name", name);
    supports.append(form);
    chosen.name = (await (await call("/v1/concepts", { method: "POST", body: form })).json()).id;
    $("concept-name").value = "";
    await load();
    onKept();
    $("concepts").querySelector("input:checked").focus();
  } catch (error) {
    complain(error);
  }
}
