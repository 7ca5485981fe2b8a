// The page: which conversation is shown, what is being answered, and what the buttons do.

import { ApiError, chat, interpreted, models } from "./api.js";
import { byId, download, element } from "./dom.js";
import { Pace } from "./meter.js";
import { open as openSettings, prepare, settings, showDefaults } from "./settings.js";
import * as sidebar from "./sidebar.js";
import * as store from "./store.js";
import { fit, messageView, sends, update } from "./view.js";
import { word } from "./words.js";

const log = byId("log");
const query = byId("query");
const running = new Map(); // conversation id -> {abort, conversation}
let current = store.fresh();
let served = []; // the models and adapters that the server has
let leaving = false; // the browser ends all requests of a page that is left

// --- showing -------------------------------------------------------------------------------------

/** Draw the whole conversation. */
function draw() {
  const busy = running.has(current.id);
  const views = current.messages.map((message, place) => {
    const last = place === current.messages.length - 1;
    return messageView(message, { running: busy && last, last }, {
      edit: (text) => resend(place, text),
      again: () => resend(place - 1, current.messages[place - 1].content),
      settings: () => openSettings(),
    });
  });
  byId("messages").replaceChildren(...views);
  byId("welcome").hidden = views.length > 0;
  byId("system").value = current.system ?? "";
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  document.title = current.title || "Qwen";
  sidebar.draw(current.id);
}

/** Show a growing answer at the browser's next frame, and follow it unless the user looks above. */
function grow(conversation, message) {
  const task = running.get(conversation.id);
  if (task.frame || conversation !== current) return;
  task.frame = requestAnimationFrame(() => {
    task.frame = undefined;
    if (conversation !== current || !running.has(conversation.id)) return;
    const follows = atEnd();
    update(byId("messages").lastElementChild, message, { running: true });
    if (follows) toEnd();
  });
}

/** Let the user write, where that brings up no keyboard over half of the screen. */
function write() {
  if (!matchMedia("(pointer: coarse)").matches) query.focus();
}

const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 64;
const toEnd = () => log.scrollTo({ top: log.scrollHeight });

function show(conversation) {
  current = conversation;
  store.write("shown", current.id);
  draw();
  toEnd();
}

let toastTimer;

/** Say something for a while, with one thing to do about it. */
function toast(text, label, action) {
  const [said, button] = byId("toast").children;
  said.textContent = text;
  button.textContent = label ?? "";
  button.hidden = !label;
  button.onclick = () => {
    byId("toast").hidden = true;
    action();
  };
  byId("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (byId("toast").hidden = true), 8000);
}

// --- conversations -------------------------------------------------------------------------------

function keep(conversation) {
  if (running.get(conversation.id)?.removed) return;
  if (!store.save(conversation)) toast(word("storageFull"));
}

function begin() {
  show(store.fresh(current.system));
  sidebar.close();
  write();
}

function choose(id) {
  show(running.get(id)?.conversation ?? store.load(id) ?? store.fresh());
  sidebar.close();
}

/** Delete conversations, until the user wants them back. */
function remove(ids) {
  const gone = ids.map(store.load).filter(Boolean);
  for (const id of ids) {
    const task = running.get(id);
    if (task) task.removed = true;
    task?.abort.abort();
    store.remove(id);
  }
  if (ids.includes(current.id)) show(store.fresh());
  else draw();
  toast(word("deleted"), word("undo"), () => {
    gone.forEach(store.save);
    draw();
  });
}

function rename(id, title) {
  const found = running.get(id)?.conversation ?? (id === current.id ? current : store.load(id));
  if (found) keep(Object.assign(found, { title }));
  draw();
}

const exportName = (what) => `qwen-${what}-${new Date().toISOString().slice(0, 10)}.json`;

// --- questions and answers -----------------------------------------------------------------------

/** Put a question at a place of the conversation; what came after it is dropped. */
function resend(place, text) {
  if (running.has(current.id)) return;
  current.messages.length = place;
  ask(text);
}

function ask(text) {
  current.title ||= text.replace(/\s+/g, " ").slice(0, 60);
  current.messages.push({ role: "user", content: text });
  write();
  answer(current);
}

/** The messages to send: a question that got no answer is left out, unless it is the last. */
function spoken({ system, messages }) {
  const said = messages.filter(({ role, content }, place) =>
    role === "user" ? messages[place + 1]?.content !== "" : content !== "",
  );
  const turns = said.map(({ role, content }) => ({ role, content }));
  return system ? [{ role: "system", content: system }, ...turns] : turns;
}

async function answer(conversation) {
  const body = { model: byId("model").value, messages: spoken(conversation), ...settings.sampling };
  const message = { role: "assistant", content: "", note: { kind: "interrupted" } };
  conversation.messages.push(message); // so noted until it is whole, should the page be closed
  conversation.updated = Date.now();
  const abort = new AbortController();
  running.set(conversation.id, { abort, conversation });
  keep(conversation);
  show(conversation);
  byId("status").textContent = word("answering");
  try {
    let kept = Date.now();
    const pace = new Pace();
    const tool = settings.code && model(body.model)?.interpreter;
    const parts = tool
      ? interpreted(body, tool, settings.key, abort.signal)
      : chat(body, settings.key, abort.signal);
    for await (const { content, text, finish, usage } of parts) {
      message.content = text ?? message.content + content;
      if (content) pace.tick();
      if (usage) message.usage = pace.measured(usage, model(body.model)?.length);
      if (finish) message.note = finish === "stop" ? undefined : { kind: finish };
      if (content || text) grow(conversation, message);
      if (Date.now() - kept > 1000) {
        keep(conversation);
        kept = Date.now();
      }
    }
  } catch (error) {
    message.note = failure(error, abort.signal);
  }
  finish(conversation, message);
}

function failure(error, signal) {
  if (signal.aborted) return { kind: "stopped" };
  if (leaving) return { kind: "interrupted" };
  if (!(error instanceof ApiError)) return { kind: "error", text: String(error) };
  if (error.status === 401) openSettings("key");
  return { kind: "error", text: explained(error) };
}

/** What went wrong in the server's words, and what helps in ours. */
function explained({ status, code, message }) {
  if (status === 401) return word("wrongKey");
  const help = word("help")[code] ?? word("help")[status];
  return [message, help].filter(Boolean).join(" ");
}

function finish(conversation, message) {
  keep(conversation);
  running.delete(conversation.id);
  if (conversation !== current) return sidebar.draw(current.id);
  const follows = atEnd();
  draw();
  if (follows) toEnd();
  byId("status").textContent = byId("messages").lastElementChild.textContent;
}

function stop() {
  running.get(current.id)?.abort.abort();
  write();
}

// --- the server ----------------------------------------------------------------------------------

async function listModels() {
  const select = byId("model");
  try {
    served = await models(settings.key);
    const names = served.map(({ id }) => id);
    if (`${names}` !== `${[...select.options].map(({ value }) => value)}`)
      select.replaceChildren(...names.map((id) => element("option", { value: id }, id)));
    if (served.some(({ id }) => id === settings.model)) select.value = settings.model;
    inForce();
  } catch (error) {
    select.replaceChildren(element("option", { value: "" }, word("noModel")));
    const wrongKey = error.status === 401;
    const text = explained(error) || word("noAnswer");
    if (wrongKey) toast(text, word("settings"), () => openSettings("key"));
    else toast(text, word("retry"), listModels);
  }
}

const model = (name) => served.find(({ id }) => id === name);

/** Show in the settings what the model does where nothing is set, and whether it may run code. */
function inForce() {
  const found = model(byId("model").value);
  showDefaults(found?.sampling);
  byId("code").hidden = !found?.interpreter;
  byId("code").setAttribute("aria-pressed", settings.code);
}

// --- wiring --------------------------------------------------------------------------------------

function suggest() {
  const buttons = word("suggestions").map((text) =>
    element("button", { type: "button", class: "suggestion", onclick: () => ask(text) }, text),
  );
  byId("suggestions").replaceChildren(...buttons);
}

prepare((what) => {
  if (what === "key") listModels();
  else {
    suggest();
    draw();
    inForce();
  }
});
sidebar.prepare({ choose, remove, rename, running, shown: () => current.id });
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = query.value.trim();
  if (!text || running.has(current.id)) return;
  query.value = "";
  fit(query);
  ask(text);
});
query.addEventListener("input", () => fit(query));
query.addEventListener("keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  byId("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]") && !sidebar.close()) stop();
});
byId("stop").addEventListener("click", stop);
byId("code").addEventListener("click", () => {
  settings.keep("code", !settings.code || undefined);
  inForce();
});
byId("new").addEventListener("click", begin);
byId("open-settings").addEventListener("click", () => openSettings());
byId("model").addEventListener("change", (event) => {
  settings.keep("model", event.target.value);
  inForce();
});
byId("system").addEventListener("input", (event) => {
  current.system = event.target.value.trim() || undefined;
  if (current.messages.length) keep(current);
});
byId("export-all").addEventListener("click", () =>
  download(exportName("conversations"), store.conversations()),
);
byId("delete-all").addEventListener("click", () => {
  byId("settings").close();
  remove(store.conversations().map(({ id }) => id));
});
byId("to-end").addEventListener("click", toEnd);
log.addEventListener("scroll", () => (byId("to-end").hidden = atEnd()), { passive: true });
addEventListener("pagehide", () => {
  leaving = true;
  running.forEach(({ conversation }) => keep(conversation));
});
addEventListener("pageshow", () => (leaving = false));
addEventListener("focus", listModels); // adapters come and go
addEventListener("storage", () => sidebar.draw(current.id)); // another tab did something

suggest();
listModels();
show(store.load(store.read("shown")) ?? current);
write();
