/** Where an image lies on the canvas: zoom, pan, and the way from a pointer to a pixel. */

const MOST_ZOOM = 40;

export class View {
  constructor(canvas) {
    Object.assign(this, { canvas, width: 1, height: 1, zoom: 1, x: 0, y: 0 });
  }

  /** Show all of an image of this size. */
  fit(width = this.width, height = this.height) {
    Object.assign(this, { width, height });
    this.zoom = this.least = Math.min(this.canvas.clientWidth / width, this.canvas.clientHeight / height) || 1;
    this.x = (this.canvas.clientWidth - width * this.zoom) / 2;
    this.y = (this.canvas.clientHeight - height * this.zoom) / 2;
  }

  /** Zoom so that what is under a place of the canvas stays there. */
  zoomAt(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const zoom = Math.min(Math.max(this.zoom * factor, this.least / 2), MOST_ZOOM);
    this.x = x - ((x - this.x) * zoom) / this.zoom;
    this.y = y - ((y - this.y) * zoom) / this.zoom;
    this.zoom = zoom;
  }
  pan(x, y) {
    this.x += x;
    this.y += y;
  }

  /** The place of a pointer in pixels of the image, not beyond its border. */
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.clamp({ x: (event.clientX - box.left - this.x) / this.zoom, y: (event.clientY - box.top - this.y) / this.zoom });
  }
  clamp({ x, y }) {
    return { x: Math.min(Math.max(x, 0), this.width - 0.01), y: Math.min(Math.max(y, 0), this.height - 0.01) };
  }
}
