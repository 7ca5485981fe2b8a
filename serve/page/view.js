// One message of a conversation as elements, and how they change while it grows.

import { copyButton, element, iconButton } from "./dom.js";
import { show } from "./markdown.js";
import { meter } from "./meter.js";
import { word } from "./words.js";

const THOUGHT = /^\s*<think>\n?([\s\S]*?)(?:<\/think>\s*|$)/;

/**
 * The elements of a message.
 * actions: edit(text), again(), and what a note may offer, settings(); state: {running, last}.
 */
export function messageView(message, state, actions) {
  const speaker = element("h2", { class: "unseen" }, word(message.role === "user" ? "you" : "qwen"));
  const item = element("li", { class: `message ${message.role}` }, speaker);
  if (message.role === "user") {
    item.append(element("div", { class: "bubble", dir: "auto" }, message.content));
    item.append(toolbar(copyButton(message.content, word("copy")), editButton(item, message, actions)));
    return item;
  }
  item.append(element("div", { class: "prose", dir: "auto" }));
  update(item, message, state);
  if (state.running) return item;
  if (message.note) item.append(note(message, actions));
  const again = state.last && message.note?.kind !== "error" && iconButton("again", word("again"), actions.again);
  const copy = message.content && copyButton(message.content, word("copy"));
  item.append(toolbar(copy, again, message.usage && element("span", { class: "note" }, meter(message.usage))));
  return item;
}

/** Show what an answer is by now. */
export function update(item, message, { running }) {
  const prose = item.querySelector(".prose");
  const [all, thought] = THOUGHT.exec(message.content) ?? [""];
  if (thought?.trim()) {
    let details = item.querySelector("details");
    if (!details) {
      details = element("details", {}, element("summary", {}, word("thinking")));
      details.append(element("div", { class: "prose" }));
      prose.before(details);
    }
    show(details.lastElementChild, thought);
  }
  show(prose, message.content.slice(all.length));
  prose.classList.toggle("growing", running);
  item.setAttribute("aria-busy", running);
}

const toolbar = (...buttons) => element("div", { class: "toolbar" }, ...buttons.filter(Boolean));

/** Why an answer is not whole, and what to do about it. */
function note(message, actions) {
  const { kind, text } = message.note;
  const said = kind === "error" ? text || word("noAnswer") : word(kind) ?? kind;
  const failed = kind === "error";
  const made = element("p", { class: failed ? "error" : "note", role: failed && "alert" }, said);
  if (failed) {
    const again = element("button", { type: "button", onclick: actions.again }, word("retry"));
    const settings = element("button", { type: "button", onclick: actions.settings });
    settings.append(word("settings"));
    made.append(element("span", { class: "choices" }, again, settings));
  }
  return made;
}

/** A button that turns a user's message into a field to change it in. */
function editButton(item, message, actions) {
  const open = () => {
    const field = element("textarea", { "aria-label": word("edit"), dir: "auto" });
    field.value = message.content;
    const leave = () => {
      form.replaceWith(...hidden);
      item.querySelector(".toolbar button:last-child").focus();
    };
    const send = element("button", { class: "primary" }, word("resend"));
    const cancel = element("button", { type: "button", onclick: leave }, word("cancel"));
    const buttons = element("div", { class: "choices" }, cancel, send);
    const form = element("form", { class: "edit" }, field, buttons);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) actions.edit(field.value.trim());
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      } else if (sends(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    field.addEventListener("input", () => fit(field));
    const hidden = [...item.querySelectorAll(".bubble, .toolbar")];
    hidden[0].replaceWith(form);
    hidden[1].remove();
    fit(field);
    field.focus();
  };
  return iconButton("edit", word("edit"), open);
}

/** Whether a key sends: Enter alone, unless it ends a word of an input method or on a phone. */
export function sends(event) {
  const plain = event.key === "Enter" && !event.shiftKey && !event.altKey;
  const touch = matchMedia("(pointer: coarse)").matches && !event.ctrlKey && !event.metaKey;
  return plain && !event.isComposing && event.keyCode !== 229 && !touch;
}

/** Make a field as high as what is in it. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}
