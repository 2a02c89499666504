/** The objects of a mask told apart: a colour and a number for each, for as long as the mask stays as it is. */

import { post } from "../shared/api.js";
import { Mask, MaskLayer, greysOf } from "../shared/mask.js";
import { colorOf, drawNumbers, placesOf } from "../shared/numbers.js";

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
      layer.repaint(Array.from({ length: 255 }, (_, index) => colorOf(index)));
      this.found = { layer, places: placesOf(ids, mask.width) };
      this.onChange();
    } catch { /* the mask of the class is shown as before */ }
  }

  /** Draw them; false where they are not known. */
  draw(context, zoom) {
    if (!this.found) return false;
    context.drawImage(this.found.layer.canvas, 0, 0);
    drawNumbers(context, this.found.places, 15 / zoom);
    return true;
  }
}
