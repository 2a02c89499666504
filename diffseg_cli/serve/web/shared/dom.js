/** Elements, files and progress, as both pages show them. */

export const $ = (id) => document.getElementById(id);
export const create = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

export function download(name, blob) {
  const link = create("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** Show on a bar how far a job of the server is, and give it in words: "adapting 3 of 40, 12 s left". */
export function showProgress(bar, { stage, done = 0, total = 0, seconds_left: left }) {
  if (total) bar.value = done / total;
  else bar.removeAttribute("value");
  const time = left == null ? "" : left < 90 ? `, ${Math.ceil(left)} s left` : `, ${Math.round(left / 60)} min left`;
  return `${stage}${total ? ` ${done} of ${total}` : ""}${time}`;
}
