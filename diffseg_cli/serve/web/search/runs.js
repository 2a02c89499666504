/** Run lengths as COCO writes them: drawn into an image of ids of any size. */

/** Lengths of runs, the first of background: numbers of 5 bits a character, lowest first, from the fourth on as a difference. */
function lengthsOf(counts) {
  const lengths = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, bits;
    do {
      bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 0x1f) << shift;
      shift += 5;
    } while (bits & 0x20);
    if (bits & 0x10) value |= -1 << shift;
    lengths.push(lengths.length > 2 ? value + lengths.at(-2) : value);
  }
  return lengths;
}

/** Give the pixels of ids (width x height) that lie in a mask an id; runs go down columns, at the mask's own size. */
export function drawRuns(ids, { width, height }, { size: [rows, columns], counts }, id) {
  const lengths = lengthsOf(counts);
  let run = 0, end = lengths[0];
  for (let x = 0; x < width; x++) {
    const column = Math.floor(((x + 0.5) * columns) / width) * rows;
    for (let y = 0; y < height; y++) {
      const at = column + Math.floor(((y + 0.5) * rows) / height);
      while (at >= end) end += lengths[++run];
      if (run % 2) ids[y * width + x] = id;
    }
  }
}
