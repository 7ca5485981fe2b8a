// Elements are built from text alone: nothing in this page ever parses a string as HTML.

export const byId = (id) => document.getElementById(id);

/**
 * An element; `on…` in its attributes are listeners, false and undefined leave one out.
 * children: texts, nodes, and arrays of them, as long as they like.
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value);
  }
  for (const child of children.flat()) made.append(child);
  return made;
}

/** A button that shows one of the symbols in index.html. */
export function iconButton(icon, label, onclick) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${icon}`);
  svg.append(use);
  const button = element("button", { type: "button", class: "icon", onclick }, svg);
  button.title = label;
  button.ariaLabel = label;
  return button;
}

/** A button that copies a text, and says so by its colour. */
export function copyButton(text, label) {
  const button = iconButton("copy", label, async () => {
    await copy(text);
    button.classList.add("done");
    setTimeout(() => button.classList.remove("done"), 1500);
  });
  return button;
}

/** Copy text; a page from plain http on another machine has no clipboard, only a selection. */
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", { class: "unseen", readonly: "" });
  field.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** Let the browser save an object as a JSON file. */
export function download(name, value) {
  const blob = new Blob([JSON.stringify(value, null, 2)], { type: "application/json" });
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
