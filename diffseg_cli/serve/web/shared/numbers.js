/** Numbered objects of an image: their colours, as on the command line, and where their numbers stand. */

const FIRST = [[255, 45, 85], [0, 170, 255], [255, 196, 0], [0, 205, 130], [176, 84, 255], [255, 128, 20], [120, 235, 245], [255, 150, 215]];

/** RGB of the object with an index from 0: palette.py's concept_color. */
export function colorOf(index) {
  if (index < FIRST.length) return FIRST[index];
  const hue = (index * 0.618034) % 1, saturation = [0.9, 0.55, 0.7][Math.floor(index / 16) % 3];
  return [5, 3, 1].map((offset) => {
    const k = (offset + 6 * hue) % 6;
    return Math.round(255 * 0.95 * (1 - saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

/** Of each number in an image of ids the place for it: the pixel of its object that is nearest to the centre. */
export function placesOf(ids, width) {
  const places = new Map();
  ids.forEach((id, index) => {
    if (!id) return;
    if (!places.has(id)) places.set(id, { id, count: 0, sumX: 0, sumY: 0, best: Infinity });
    const place = places.get(id);
    place.count++;
    place.sumX += index % width;
    place.sumY += Math.floor(index / width);
  });
  ids.forEach((id, index) => {
    if (!id) return;
    const place = places.get(id), x = index % width, y = Math.floor(index / width);
    const far = (x - place.sumX / place.count) ** 2 + (y - place.sumY / place.count) ** 2;
    if (far < place.best) Object.assign(place, { best: far, x, y });
  });
  return [...places.values()];
}

/** Write numbers at their places, in letters of a height in pixels. */
export function drawNumbers(context, places, height) {
  Object.assign(context, { font: `600 ${height}px system-ui, sans-serif`, textAlign: "center", textBaseline: "middle", lineWidth: height / 4, lineJoin: "round", strokeStyle: "#101014", fillStyle: "#f5f5f5" });
  context.setLineDash([]);
  for (const { id, x, y } of places) {
    context.strokeText(id, x, y);
    context.fillText(id, x, y);
  }
}
