/** Tools on an image: how large the brush is, how keys move it, and how it is shown. */

export const TINT = [255, 45, 85]; // as in the overlays of the command line

/** Radius in pixels of an image for a slider from 1 to 100. */
export const brushRadius = (slider, { width, height }) => (slider / 100) ** 1.5 * 0.2 * Math.max(width, height) + 1;

/** Where an arrow key moves a tool, or null for another key: half a brush, with Shift a pixel. */
export function arrowMove({ key, shiftKey }, cursor, { width, height }, radius) {
  const by = shiftKey ? 1 : Math.max(2, radius / 2);
  const moves = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
  if (!(key in moves)) return null;
  const { x, y } = cursor ?? { x: width / 2, y: height / 2 };
  return clamp({ x: x + moves[key][0], y: y + moves[key][1] }, { width, height });
}

/** The nearest place inside an image. */
export const clamp = ({ x, y }, { width, height }) => ({ x: Math.min(Math.max(x, 0), width - 0.01), y: Math.min(Math.max(y, 0), height - 0.01) });

export const boxOf = (a, b) => ({ x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), width: Math.abs(a.x - b.x), height: Math.abs(a.y - b.y) });

/**
 * Draw the tool at a cursor: a circle for a brush (a radius), else a cross; a box from a corner to it, a polygon through
 * points. unit: length of a pixel of the screen.
 */
export function drawMarks(context, { cursor, radius = null, corner = null, points = [] }, unit) {
  const shape = new Path2D();
  if (cursor && radius !== null) shape.arc(cursor.x, cursor.y, radius, 0, 2 * Math.PI);
  else if (cursor) for (const [x, y] of [[1, 0], [0, 1]]) { shape.moveTo(cursor.x - 12 * x * unit, cursor.y - 12 * y * unit); shape.lineTo(cursor.x + 12 * x * unit, cursor.y + 12 * y * unit); }
  if (corner && cursor) shape.rect(corner.x, corner.y, cursor.x - corner.x, cursor.y - corner.y);
  [...points, ...(points.length && cursor ? [cursor] : [])].forEach((point, index) => shape[index ? "lineTo" : "moveTo"](point.x, point.y));
  for (const [color, dash] of [["#000", []], ["#fff", [6 * unit, 5 * unit]]]) {
    Object.assign(context, { strokeStyle: color, lineWidth: 1.6 * unit });
    context.setLineDash(dash);
    context.stroke(shape);
  }
}
