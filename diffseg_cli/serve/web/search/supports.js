/** What the person shows of the object: the support in hand, and those that are painted already. */

import { $ } from "../shared/dom.js";
import { showFiles } from "./files.js";
import * as painter from "./painter.js";
import { support } from "./painter.js";

const MOST = 5; // each makes every answer slower, and more gain little
let more = []; // file and mask of each
let adding = false; // the next image is a further support, and not another one in its place
let announce = () => {};

export function setUp(onChange) {
  announce = onChange;
  painter.setUp(() => { show(); announce(450); });
  $("other").onclick = () => { adding = false; $("support-file").click(); };
  $("another").onclick = () => { adding = true; $("support-file").click(); };
}
export function open(file) {
  painter.open(file, () => {
    if (adding && support.blob) more.push({ ...support });
    adding = false;
  });
}

/** All that are painted: file and mask of each. */
export const painted = () => [...more, support].filter((each) => each.blob);

/** The fields of a request that hold them; they are painted on images as large as they are shown. */
export function append(form) {
  for (const { file, blob } of painted()) {
    form.append("support", file);
    form.append("mask", blob, "painted.png");
  }
  form.append("fit_mask", "true");
}

function show() {
  $("another").disabled = !support.blob || more.length + 1 >= MOST;
  showFiles($("more"), more.map(({ file }) => file), "support", (index) => {
    more.splice(index, 1);
    show();
    ($("another").disabled ? $("canvas") : $("another")).focus();
    announce(0);
  });
}
