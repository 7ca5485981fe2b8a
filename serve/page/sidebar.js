// The list of conversations: a column beside them, on a phone a drawer.

import { byId, download, element, iconButton } from "./dom.js";
import * as store from "./store.js";
import { word } from "./words.js";

const narrow = matchMedia("(max-width: 54rem)");
let actions;

/**
 * actions: choose(id), remove(ids), rename(id, title), shown(): the id of the one that is shown;
 * running: a map of the conversations that grow.
 */
export function prepare(given) {
  actions = given;
  byId("open-sidebar").addEventListener("click", open);
  byId("close-sidebar").addEventListener("click", close);
  byId("scrim").addEventListener("click", close);
  narrow.addEventListener("change", hide);
  byId("search").addEventListener("input", () => draw(actions.shown()));
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
  const found = store.conversations().filter(matches);
  const nothing = byId("search").value.trim() && element("li", { class: "note" }, word("nothingFound"));
  byId("conversations").replaceChildren(...(found.length || !nothing ? found.map((one) => entry(one, shown)) : [nothing]));
  if (focused) byId("conversations").querySelector("[aria-current]")?.focus();
}

/** Whether all words that are searched for are in a conversation or its name. */
function matches({ title, messages }) {
  const all = [title, ...messages.map(({ content }) => content)].join("\n").toLowerCase();
  return byId("search").value.toLowerCase().split(/\s+/).every((part) => all.includes(part));
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
  const edit = iconButton("edit", word("rename"), () => renamed(name, conversation));
  const remove = iconButton("delete", word("delete"), () => actions.remove([id]));
  return element("li", {}, name, edit, save, remove);
}

/** A field in a name's place, until it is left; Escape leaves the name as it was. */
function renamed(name, { id, title }) {
  const field = element("input", { class: "name", "aria-label": word("rename"), value: title, maxlength: 100 });
  const leave = () => {
    field.onblur = null;
    if (field.value.trim() && field.value.trim() !== title) actions.rename(id, field.value.trim());
    else draw(actions.shown());
  };
  field.onblur = leave;
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.stopPropagation();
    if (event.isComposing) return;
    if (event.key === "Escape") field.value = title;
    leave();
  });
  name.replaceWith(field);
  field.select();
}

const fileName = (title) => title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation";
