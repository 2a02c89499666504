/** Labels of an image as the editor draws them: strokes, polygons, regions, and taking them back. */

const MOST_UNDOS = 30;
const WHITE = [255, 255, 255], TINT_ALPHA = 115; // 45 %

export class Mask {
  /** Labels of width x height: 0, or the number of a class from 1. */
  constructor(width, height, labels = null) {
    Object.assign(this, { width, height, labels: labels ?? new Uint8Array(width * height) });
    this.undos = [];
    this.redos = [];
    this.saved = this.labels.slice();
  }

  get changed() {
    return this.undos.length > 0 && this.labels.some((label, index) => label !== this.saved[index]);
  }
  /** What is here now is what the server has. */
  markSaved() {
    this.saved = this.labels.slice();
  }

  /** Begin a change that is taken back as one. */
  begin() {
    this.undos.push(this.labels.slice());
    if (this.undos.length > MOST_UNDOS) this.undos.shift();
    this.redos = [];
  }
  undo() {
    this.#swap(this.undos, this.redos);
  }
  redo() {
    this.#swap(this.redos, this.undos);
  }
  #swap(from, to) {
    const labels = from.pop();
    if (!labels) return;
    to.push(this.labels.slice());
    this.labels.set(labels);
  }

  /** A stroke of a round brush from one place to another. */
  stroke(from, to, radius, label) {
    const left = Math.max(0, Math.floor(Math.min(from.x, to.x) - radius)), right = Math.min(this.width - 1, Math.ceil(Math.max(from.x, to.x) + radius));
    const top = Math.max(0, Math.floor(Math.min(from.y, to.y) - radius)), bottom = Math.min(this.height - 1, Math.ceil(Math.max(from.y, to.y) + radius));
    const dx = to.x - from.x, dy = to.y - from.y, length = dx * dx + dy * dy || 1;
    for (let y = top; y <= bottom; y++)
      for (let x = left; x <= right; x++) {
        const px = x + 0.5 - from.x, py = y + 0.5 - from.y;
        const at = Math.min(1, Math.max(0, (px * dx + py * dy) / length));
        if ((px - at * dx) ** 2 + (py - at * dy) ** 2 <= radius * radius) this.labels[y * this.width + x] = label;
      }
    return { left, top, right, bottom };
  }

  /** Fill a polygon, a row of pixels after the other, by the even-odd rule. */
  polygon(points, label) {
    for (let y = 0; y < this.height; y++) {
      const crossings = [];
      for (let i = 0; i < points.length; i++) {
        const a = points[i], b = points[(i + 1) % points.length];
        if (a.y <= y + 0.5 !== b.y <= y + 0.5) crossings.push(a.x + ((y + 0.5 - a.y) / (b.y - a.y)) * (b.x - a.x));
      }
      crossings.sort((one, other) => one - other);
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        const from = Math.max(0, Math.ceil(crossings[i] - 0.5)), to = Math.min(this.width, Math.ceil(crossings[i + 1] - 0.5));
        if (from < to) this.labels.fill(label, y * this.width + from, y * this.width + to);
      }
    }
  }

  /** Give a region (true where it is) a label; removing takes that label away inside it. */
  region(inside, label, remove = false) {
    for (let i = 0; i < inside.length; i++)
      if (inside[i]) {
        if (!remove) this.labels[i] = label;
        else if (this.labels[i] === label) this.labels[i] = 0;
      }
  }
  /** Take away every label, or only one. */
  clear(label = null) {
    for (let i = 0; i < this.labels.length; i++) if (label === null || this.labels[i] === label) this.labels[i] = 0;
  }

  /**
   * Draw labels into an RGBA image of the same size, as in the overlays of the command line: tinted, and outlined in the
   * tint between two white lines. area: what changed, or null for all of it.
   */
  paint(image, colors, area = null) {
    const { width, height, labels } = this, { data } = image, line = Math.max(1, Math.round(Math.min(width, height) / 300));
    const { left, top, right, bottom } = area ?? { left: 0, top: 0, right: width - 1, bottom: height - 1 };
    const [firstX, lastX] = [Math.max(0, left - 2 * line), Math.min(width - 1, right + 2 * line)];
    const [firstY, lastY] = [Math.max(0, top - 2 * line), Math.min(height - 1, bottom + 2 * line)];
    for (let y = firstY; y <= lastY; y++)
      for (let x = firstX; x <= lastX; x++) {
        const i = y * width + x, label = labels[i];
        const crosses = (reach) => (x >= reach && labels[i - reach] !== label) || (x < width - reach && labels[i + reach] !== label) ||
          (y >= reach && labels[i - reach * width] !== label) || (y < height - reach && labels[i + reach * width] !== label);
        const outline = crosses(line), white = label ? !outline && crosses(2 * line) : outline;
        const color = white || !label ? WHITE : colors[label - 1];
        data[4 * i] = color[0];
        data[4 * i + 1] = color[1];
        data[4 * i + 2] = color[2];
        data[4 * i + 3] = outline || white ? 255 : label ? TINT_ALPHA : 0;
      }
  }

  /** A PNG with the labels, each times a factor, as grey values. */
  async png(factor = 1) {
    const canvas = new OffscreenCanvas(this.width, this.height), context = canvas.getContext("2d");
    const image = context.createImageData(this.width, this.height), pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = 0xff000000 | (factor * this.labels[i] * 0x010101);
    context.putImageData(image, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }
}

/** A mask as an image to draw over its own. */
export class MaskLayer {
  constructor(mask) {
    this.mask = mask;
    this.canvas = new OffscreenCanvas(mask.width, mask.height);
    this.image = this.canvas.getContext("2d").createImageData(mask.width, mask.height);
  }

  /** Draw what changed in an area, or all of it. */
  repaint(colors, area = null) {
    const { width, height } = this.mask, border = 20; // of a stroke's white line
    const { left, top, right, bottom } = area ?? { left: 0, top: 0, right: width, bottom: height };
    this.mask.paint(this.image, colors, area);
    this.canvas.getContext("2d").putImageData(this.image, 0, 0, left - border, top - border, right - left + 2 * border, bottom - top + 2 * border);
  }
}

/** The grey values of a PNG of the server, at its own size or another. */
export async function greysOf(blob, size = null) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }), { width, height } = size ?? bitmap;
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height), greys = new Uint8Array(width * height);
  for (let i = 0; i < greys.length; i++) greys[i] = data[4 * i];
  return greys;
}
