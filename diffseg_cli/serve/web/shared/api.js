/** Requests to the server: the token, a server that is busy or gone, and errors as sentences. */

import { $ } from "./dom.js";

export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

document.body.insertAdjacentHTML("afterbegin", `<div id="problem" role="alert" hidden><span></span>
  <button id="retry" type="button" hidden>Retry</button><button id="close-problem" type="button">Close</button></div>`);
document.body.insertAdjacentHTML("beforeend", `<dialog id="ask" aria-labelledby="ask-title">
  <h2 id="ask-title">This server asks for a token</h2>
  <p id="ask-help"></p>
  <form id="ask-form"><input id="token" type="password" autocomplete="off" aria-label="Token"><button class="main" type="submit">Go on</button></form>
</dialog>`);

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
let token = sessionStorage.getItem("diffseg-token");

/**
 * Send a request. A busy server is asked again (onBusy hears of it), one that is gone once somebody presses Retry;
 * with quiet, one that is gone is a Problem.
 */
export async function call(path, options = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {} });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (options.quiet) throw new Problem("The server does not answer.");
      await gone();
      options.signal?.throwIfAborted();
      continue;
    }
    if (response.ok) return response;
    if (response.status === 503) {
      options.onBusy?.();
      await pause(Number(response.headers.get("Retry-After")) || 2);
      options.signal?.throwIfAborted();
      continue;
    }
    if (response.status === 401) {
      await askToken();
      continue;
    }
    const body = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
    throw new Problem([body.error, body.hint].filter(Boolean).join(" "), response.status);
  }
}

export const get = async (path, parameters = {}) => call(`${path}?${new URLSearchParams(parameters)}`);

export async function post(path, fields = {}, options = {}) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return call(path, { method: "POST", body, ...options });
}

let waiting = null;
/** Wait until the person presses Retry; requests that wait go on together. */
function gone() {
  waiting ??= new Promise((done) => {
    tell("The server does not answer. What you drew is kept here; start the server again, then retry.");
    $("retry").hidden = false;
    $("retry").onclick = () => {
      $("retry").hidden = $("problem").hidden = true;
      waiting = null;
      done();
      focused?.focus({ preventScroll: true });
    };
  });
  return waiting;
}

let asking = null;
function askToken() {
  asking ??= new Promise((done) => {
    $("ask-help").textContent = token ? "That was not the right one." : "Whoever started it has it.";
    $("ask").showModal();
    $("ask").oncancel = (event) => event.preventDefault();
    $("ask-form").onsubmit = (event) => {
      event.preventDefault();
      token = $("token").value.trim();
      sessionStorage.setItem("diffseg-token", token);
      $("ask").close();
      asking = null;
      done();
    };
  });
  return asking;
}

/** Say what went wrong, until it is closed. */
export function complain(error) {
  if (error.name === "AbortError" || error.name === "TimeoutError") return;
  tell(sentence(error));
}
export const sentence = (error) => (error instanceof Problem ? error.message : `Something went wrong here: ${error.message}`);
let focused = null; // had the focus before somebody was told, and gets it back
export function tell(text) {
  if ($("problem").hidden) focused = document.activeElement;
  $("problem").querySelector("span").textContent = text;
  $("problem").hidden = false;
}
export const calm = () => { if (!waiting) $("problem").hidden = true; };
$("close-problem").onclick = () => { calm(); focused?.focus({ preventScroll: true }); };
