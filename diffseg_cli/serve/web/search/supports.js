/** What the person shows of the object: the support in hand, and those that are painted already. */

import { calm, complain, post } from "../shared/api.js";
import { $ } from "../shared/dom.js";
import { TINT } from "../shared/marks.js";
import * as painter from "../shared/painter.js";
import { painting } from "../shared/painter.js";
import { checkSize, decode, showFiles } from "./files.js";

const MOST = 5; // each makes every answer slower, and more gain little
const REST = 60; // milliseconds without a change after which the mask becomes a file
export const support = { file: null, width: 0, height: 0, blob: null }; // in hand; blob: its mask where it can be one
let more = []; // the others
let adding = false; // the next image is a further support, and not another one in its place
let version = 0;
let announce = () => {};

export function setUp(onChange) {
  announce = onChange;
  painter.setUp({
    colors: () => [TINT], changed,
    findBox({ x, y, width, height }) {
      const { file, width: w, height: h } = support;
      return post("/v1/mask", { image: file, x: x * w, y: y * h, width: width * w, height: height * h });
    },
  });
  $("other").onclick = () => { adding = false; $("support-file").click(); };
  $("another").onclick = () => { adding = true; $("support-file").click(); };
}

/** Paint on another image. */
export async function open(file) {
  calm();
  try {
    checkSize(file);
    const { canvas, width, height } = await decode(file);
    if (adding && support.blob) more.push({ ...support });
    adding = false;
    Object.assign(support, { file, width, height, blob: null });
    $("support-drop").hidden = true;
    $("painter").hidden = false;
    $("stage").style.aspectRatio = `${width} / ${height}`;
    painter.open(canvas);
  } catch (error) {
    complain(error);
  }
}
async function changed() {
  const mine = ++version, { mask } = painting;
  support.blob = null;
  await new Promise((done) => setTimeout(done, REST));
  if (mine !== version) return;
  const usable = mask.labels.includes(1) && mask.labels.includes(0), blob = usable ? await mask.png(255) : null;
  if (mine !== version) return;
  support.blob = blob;
  show();
  announce(400);
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
  const { blob } = support;
  $("clear").disabled = !painting.mask.labels.includes(1);
  $("another").disabled = !blob || more.length + 1 >= MOST;
  $("paint-help").textContent = blob ? "Everything of the object should be covered, and little else." : "Paint over the object, or drag a box round it.";
  showFiles($("more"), more.map(({ file }) => file), "support", (index) => {
    more.splice(index, 1);
    show();
    ($("another").disabled ? $("canvas") : $("another")).focus();
    announce(0);
  });
}
