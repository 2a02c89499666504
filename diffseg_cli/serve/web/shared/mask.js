/** Labels of an image as the editor draws them: strokes, polygons, regions, and taking them back. */

const MOST_UNDOS = 30;

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
  clear() {
    this.labels.fill(0);
  }

  /** Draw labels in their colours, with a white line round them, into an RGBA image of the same size. */
  paint(image, colors, area = null) {
    const { width, height, labels } = this, { data } = image;
    const reach = Math.max(1, Math.round(Math.min(width, height) / 300));
    const { left, top, right, bottom } = area ?? { left: 0, top: 0, right: width - 1, bottom: height - 1 };
    for (let y = Math.max(0, top - 2 * reach); y <= Math.min(height - 1, bottom + 2 * reach); y++)
      for (let x = Math.max(0, left - 2 * reach); x <= Math.min(width - 1, right + 2 * reach); x++) {
        const i = y * width + x, label = labels[i], at = 4 * i;
        const other = x >= reach && labels[i - reach] !== label ? labels[i - reach] : x < width - reach && labels[i + reach] !== label ? labels[i + reach]
          : y >= reach && labels[i - reach * width] !== label ? labels[i - reach * width] : y < height - reach && labels[i + reach * width] !== label ? labels[i + reach * width] : label;
        const color = label ? colors[label - 1] : [255, 255, 255];
        data[at] = color[0];
        data[at + 1] = color[1];
        data[at + 2] = color[2];
        data[at + 3] = other !== label ? 255 : label ? 115 : 0;
      }
  }

  /** A PNG with the labels as grey values. */
  async png() {
    const canvas = new OffscreenCanvas(this.width, this.height), context = canvas.getContext("2d");
    const image = context.createImageData(this.width, this.height), pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < pixels.length; i++) pixels[i] = 0xff000000 | (this.labels[i] * 0x010101);
    context.putImageData(image, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }
}

/** The grey values of a PNG of the server. */
export async function greysOf(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height), greys = new Uint8Array(bitmap.width * bitmap.height);
  for (let i = 0; i < greys.length; i++) greys[i] = data[4 * i];
  return greys;
}
