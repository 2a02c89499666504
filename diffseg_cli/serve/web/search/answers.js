/** What the server found in an image: cut where the sliders are, drawn, and said in words. */

import { create } from "../shared/dom.js";
import { TINT } from "../shared/marks.js";
import { Mask, MaskLayer, greysOf } from "../shared/mask.js";
import { maskOf } from "./specks.js";

export const view = { show: "overlay", threshold: 50, presence: 0 }; // in percent
const HEAT = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];
const heatOf = Array.from({ length: 256 }, (_, level) => {
  const at = (level / 255) * (HEAT.length - 1), low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((value, channel) => value + (HEAT[low + 1][channel] - value) * (at - low));
});

/** An answer of /v1/segment, with its maps at the size in which its image is shown. */
export async function readAnswer(found, { width, height }) {
  const [png, scores] = [found.probability_png, found.score_map_png].map(bytesOf);
  return { found, png, width, height, levels: await greysOf(png, { width, height }), scores: await greysOf(scores, { width, height }) };
}
const bytesOf = (base64) => new Blob([Uint8Array.from(atob(base64), (char) => char.charCodeAt(0))], { type: "image/png" });

const isAbsent = ({ found }) => found.presence != null && found.presence < view.presence / 100;
const cutLevel = (answer) => (isAbsent(answer) ? 255 : 2 * view.threshold); // levels are half percents

/** The mask at the size in which it is shown; kept until the sliders move. */
function cutMask(answer) {
  const level = cutLevel(answer);
  if (answer.level !== level) Object.assign(answer, { level, mask: maskOf(answer.levels, answer, level) });
  return answer.mask;
}
/** The mask at the image's full size, as a PNG. */
export async function maskFile(answer) {
  const size = await createImageBitmap(answer.png), levels = await greysOf(answer.png);
  return new Mask(size.width, size.height, maskOf(levels, size, cutLevel(answer))).png(255);
}

/** Draw the answer over its image, on a canvas of the size in which it is shown. */
export function drawAnswer(canvas, answer) {
  const context = canvas.getContext("2d", { willReadFrequently: true }), { width, height } = answer;
  if (view.show === "heat") drawHeat(context, answer);
  else if (view.show === "mask") drawMask(context, answer);
  else if (view.show === "overlay") {
    const layer = new MaskLayer(new Mask(width, height, cutMask(answer)));
    layer.repaint([TINT]);
    context.drawImage(layer.canvas, 0, 0);
  }
}
function drawHeat(context, { width, height, scores }) {
  const image = context.getImageData(0, 0, width, height), { data } = image;
  for (let i = 0; i < scores.length; i++) {
    const grey = 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2], heat = heatOf[scores[i]];
    for (let c = 0; c < 3; c++) data[4 * i + c] = 0.65 * heat[c] + 0.35 * grey;
  }
  context.putImageData(image, 0, 0);
}
function drawMask(context, answer) {
  const image = context.createImageData(answer.width, answer.height), mask = cutMask(answer);
  for (let i = 0; i < mask.length; i++) image.data.set([255 * mask[i], 255 * mask[i], 255 * mask[i], 255], 4 * i);
  context.putImageData(image, 0, 0);
}

/** Presence with a meter, and the share of the image. */
export function factsOf(answer) {
  const { presence } = answer.found, facts = [];
  if (presence != null) {
    const meter = create("meter", { min: 0, max: 1, low: 0.5, high: 0.75, optimum: 1, value: presence });
    meter.setAttribute("aria-hidden", "true");
    facts.push(`presence ${presence.toFixed(2)}`, meter);
  }
  const share = cutMask(answer).reduce((sum, marked) => sum + marked, 0) / answer.levels.length;
  facts.push(isAbsent(answer) ? "taken for absent" : share ? `${(100 * share).toFixed(1)} % of the image` : "nothing above the threshold");
  return facts.map((fact) => (typeof fact === "string" ? create("span", { textContent: fact }) : fact));
}
