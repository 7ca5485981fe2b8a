// The list of conversations: a column beside them, on a phone a drawer.

import { byId, download, element, iconButton } from "./dom.js";
import * as store from "./store.js";
import { word } from "./words.js";

const narrow = matchMedia("(max-width: 54rem)");
let actions;

/** actions: choose(id), remove(ids), running: a map of the conversations that grow. */
export function prepare(given) {
  actions = given;
  byId("open-sidebar").addEventListener("click", open);
  byId("close-sidebar").addEventListener("click", close);
  byId("scrim").addEventListener("click", close);
  narrow.addEventListener("change", hide);
  hide();
}

function open() {
  document.body.classList.add("drawer");
  byId("sidebar").inert = false;
  byId("close-sidebar").focus();
}

/** Close the drawer; whether it was open. */
export function close() {
  const was = document.body.classList.contains("drawer");
  hide();
  if (was) byId("open-sidebar").focus();
  return was;
}

function hide() {
  document.body.classList.remove("drawer");
  byId("sidebar").inert = narrow.matches;
}

export function draw(shown) {
  const focused = byId("conversations").contains(document.activeElement);
  byId("conversations").replaceChildren(...store.conversations().map((one) => entry(one, shown)));
  if (focused) byId("conversations").querySelector("[aria-current]")?.focus();
}

function entry(conversation, shown) {
  const { id, title } = conversation;
  const name = element("button", {
    type: "button",
    class: actions.running.has(id) ? "name growing" : "name",
    "aria-current": id === shown && "true",
    onclick: () => actions.choose(id),
  });
  name.append(title || word("untitled"));
  const save = iconButton("export", word("export"), () => download(`${fileName(title)}.json`, conversation));
  const remove = iconButton("delete", word("delete"), () => actions.remove([id]));
  return element("li", {}, name, save, remove);
}

const fileName = (title) => title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation";
