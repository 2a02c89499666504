/** The objects of a mask told apart: a colour and a number for each, for as long as the mask stays as it is. */

import { post } from "../shared/api.js";
import { Mask, MaskLayer, greysOf } from "../shared/mask.js";
import { project } from "./state.js";

const PAUSE = 300; // ms without a change before the server is asked

export class Instances {
  constructor(onChange) {
    Object.assign(this, { onChange, shown: false, found: null, asked: 0 });
  }

  toggle(mask) {
    this.shown = !this.shown;
    this.follow(mask);
  }

  /** The mask has changed, or is another one. */
  async follow(mask) {
    const mine = ++this.asked;
    this.found = null;
    if (!this.shown || !mask) return;
    await new Promise((done) => setTimeout(done, PAUSE));
    if (mine !== this.asked) return;
    try {
      const answer = await post("/v1/project/instances", { mask: new File([await mask.png()], "mask.png", { type: "image/png" }) });
      const ids = await greysOf(await answer.blob());
      if (mine !== this.asked) return;
      const layer = new MaskLayer(new Mask(mask.width, mask.height, ids));
      layer.repaint(Array.from({ length: 255 }, (_, index) => project.palette[index % project.palette.length]));
      this.found = { layer, numbers: numbersOf(ids, mask.width) };
      this.onChange();
    } catch { /* the mask of the class is shown as before */ }
  }

  /** Draw them; false where they are not known. */
  draw(context, zoom) {
    if (!this.found) return false;
    context.drawImage(this.found.layer.canvas, 0, 0);
    Object.assign(context, { font: `600 ${15 / zoom}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle", lineWidth: 4 / zoom, strokeStyle: "#101014", fillStyle: "#f5f5f5", lineJoin: "round" });
    context.setLineDash([]);
    for (const { id, x, y } of this.found.numbers) {
      context.strokeText(id, x, y);
      context.fillText(id, x, y);
    }
    return true;
  }
}

/** Where the number of each stands: at its pixel nearest to its centre. */
function numbersOf(ids, width) {
  const sums = new Map();
  ids.forEach((id, index) => {
    if (!id) return;
    const sum = sums.get(id) ?? sums.set(id, { id, count: 0, x: 0, y: 0, best: Infinity }).get(id);
    sum.count++;
    sum.x += index % width;
    sum.y += Math.floor(index / width);
  });
  for (const sum of sums.values()) Object.assign(sum, { centreX: sum.x / sum.count, centreY: sum.y / sum.count });
  ids.forEach((id, index) => {
    if (!id) return;
    const sum = sums.get(id), x = index % width, y = Math.floor(index / width), far = (x - sum.centreX) ** 2 + (y - sum.centreY) ** 2;
    if (far < sum.best) Object.assign(sum, { best: far, x, y });
  });
  return [...sums.values()];
}
