/** What the server found in an image: cut where the sliders are, drawn, and said in words. */

import { create } from "../shared/dom.js";
import { TINT } from "../shared/marks.js";
import { Mask, MaskLayer, greysOf } from "../shared/mask.js";
import { colorOf, drawNumbers, placesOf } from "../shared/numbers.js";
import { drawRuns } from "./runs.js";
import { maskOf } from "./specks.js";

export const view = { show: "overlay", threshold: 50, presence: 0, instances: false }; // in percent
const HEAT = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];
const heatOf = Array.from({ length: 256 }, (_, level) => {
  const at = (level / 255) * (HEAT.length - 1), low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((value, channel) => value + (HEAT[low + 1][channel] - value) * (at - low));
});

/** An answer of /v1/segment, with its maps at the size in which its image is shown. */
export async function readAnswer(found, { width, height }) {
  const [png, scores] = [found.probability_png, found.score_map_png].map(bytesOf);
  const [levels, greys] = await Promise.all([png, scores].map((each) => greysOf(each, { width, height })));
  const answer = { found, png, width, height, levels, scores: greys };
  if (found.instances) {
    answer.ids = new Uint16Array(width * height);
    for (const { rle, id } of found.instances) drawRuns(answer.ids, answer, rle, id);
  }
  return answer;
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

/** Whether the objects are told apart in the mask as it is cut now. */
const isNumbered = (answer) => view.instances && answer.ids && !isAbsent(answer) && Math.round(100 * answer.found.threshold) === view.threshold;

/** Draw the answer over its image, on a canvas of the size in which it is shown. */
export function drawAnswer(canvas, answer) {
  const context = canvas.getContext("2d", { willReadFrequently: true }), { width, height } = answer;
  if (view.show === "image") return;
  if (view.show === "heat") return drawHeat(context, answer);
  const isMask = view.show === "mask", numbered = isNumbered(answer), labels = numbered ? answer.ids : cutMask(answer);
  const colors = numbered ? answer.found.instances.map((_, index) => colorOf(index)) : [isMask ? [255, 255, 255] : TINT];
  if (isMask) drawLabels(context, labels, colors);
  else {
    const layer = new MaskLayer(new Mask(width, height, labels));
    layer.repaint(colors);
    context.drawImage(layer.canvas, 0, 0);
    if (numbered) drawNumbers(context, placesOf(labels, width), Math.max(14, Math.min(width, height) / 22));
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
function drawLabels(context, labels, colors) {
  const image = context.createImageData(context.canvas.width, context.canvas.height);
  labels.forEach((label, i) => image.data.set([...(label ? colors[label - 1] : [0, 0, 0]), 255], 4 * i));
  context.putImageData(image, 0, 0);
}

/** Presence with a meter, the share of the image, and the number of objects. */
export function factsOf(answer) {
  const { presence } = answer.found, facts = [];
  if (presence != null) {
    const meter = create("meter", { min: 0, max: 1, low: 0.5, high: 0.75, optimum: 1, value: presence });
    meter.setAttribute("aria-hidden", "true");
    facts.push(`presence ${presence.toFixed(2)}`, meter);
  }
  const share = cutMask(answer).reduce((sum, marked) => sum + marked, 0) / answer.levels.length;
  facts.push(isAbsent(answer) ? "taken for absent" : share ? `${(100 * share).toFixed(1)} % of the image` : "nothing above the threshold");
  if (isNumbered(answer)) facts.push(answer.found.count === 1 ? "1 instance" : `${answer.found.count} instances`);
  return facts.map((fact) => (typeof fact === "string" ? create("span", { textContent: fact }) : fact));
}
