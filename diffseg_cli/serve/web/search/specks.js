/** Masks without specks, as in specks.py: cut in the browser they are those of the server. */

const MIN_AREA = 0.01; // of the largest part: the server's default

/** What is above a level as 0 and 1: small parts dropped, small holes filled. */
export function maskOf(levels, { width, height }, level) {
  const mask = Uint8Array.from(levels, (each) => Number(each > level)), parts = partsOf(mask, 1, width, height);
  const least = MIN_AREA * parts.reduce((most, part) => Math.max(most, part.length), 0);
  if (least <= 1) return mask;
  for (const part of parts) if (part.length < least) for (const i of part) mask[i] = 0;
  const inside = (i) => i >= width && i < width * (height - 1) && i % width > 0 && i % width < width - 1;
  for (const hole of partsOf(mask, 0, width, height)) if (hole.length < least && hole.every(inside)) for (const i of hole) mask[i] = 1;
  return mask;
}

/** Connected places with a value: with eight neighbours in the mask, with four in the background. */
function partsOf(mask, value, width, height) {
  const parts = [], seen = new Uint8Array(mask.length);
  for (let start = 0; start < mask.length; start++) {
    if (seen[start] || mask[start] !== value) continue;
    const part = [start];
    seen[start] = 1;
    for (let at = 0; at < part.length; at++) {
      const x = part[at] % width, y = (part[at] - x) / width;
      for (let dy = -1; dy <= 1; dy++)
        for (let dx = -1; dx <= 1; dx++) {
          const next = part[at] + dy * width + dx;
          if ((!value && dx && dy) || x + dx < 0 || x + dx >= width || y + dy < 0 || y + dy >= height) continue;
          if (seen[next] || mask[next] !== value) continue;
          seen[next] = 1;
          part.push(next);
        }
    }
    parts.push(part);
  }
  return parts;
}
