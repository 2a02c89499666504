/** Image files of the person: chosen or dropped, decoded, not larger than the server takes. */

import { Problem, complain } from "../shared/api.js";
import { create } from "../shared/dom.js";

export const LONGEST = 1280; // pixels of an image that is painted on or shown; masks are saved at full size
export const limits = { body_bytes: 64e6 };

/** Hand on files that are chosen with a button, or dropped on an area. */
export function accept(area, button, input, take) {
  button.onclick = () => input.click();
  input.onchange = () => { if (input.files.length) take([...input.files]); input.value = ""; };
  let depth = 0;
  area.addEventListener("dragenter", (event) => { event.preventDefault(); depth++; area.classList.add("over"); });
  area.addEventListener("dragleave", () => { if (--depth <= 0) { depth = 0; area.classList.remove("over"); } });
  area.addEventListener("drop", (event) => {
    depth = 0;
    area.classList.remove("over");
    const files = [...event.dataTransfer.files];
    if (files.length) take(files);
    else complain(new Problem("Drop image files, not links or text."));
  });
}
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());

/** An image, upright, on a canvas that is not longer than allowed, with its own width and height. */
export async function decode(file, longest = LONGEST) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Problem(`${file.name} cannot be shown by this browser. Save it as PNG or JPEG.`);
  }
  const { width, height } = bitmap, scale = Math.min(1, longest / Math.max(width, height));
  const canvas = create("canvas", { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return { canvas, width, height };
}

/** A Problem where files are more than one request may hold. */
export function checkSize(...files) {
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (bytes > 0.98 * limits.body_bytes)
    throw new Problem(`${files[0].name} is too large: ${Math.round(bytes / 1e6)} MB, and this server takes ${Math.round(limits.body_bytes / 1e6)} MB at once.`);
}

/** A list of files, each with a button that removes it. */
export function showFiles(list, files, what, remove) {
  list.hidden = !files.length;
  list.replaceChildren(...files.map((file, index) => {
    const button = create("button", { type: "button", className: "quiet", textContent: "×", ariaLabel: `Remove the ${what} ${file.name}`, onclick: () => remove(index) });
    return create("li", {}, file.name, button);
  }));
}
