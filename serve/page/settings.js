// The settings dialog: sampling, key, language and theme are kept in the browser at every change.

import { byId } from "./dom.js";
import * as store from "./store.js";
import { preferred, speak, word } from "./words.js";

const FIELDS = "temperature top_p top_k repetition_penalty max_tokens seed".split(" ");
const dialog = byId("settings");
const kept = store.read("settings", {});

export const settings = {
  get key() {
    return kept.key ?? "";
  },
  get code() {
    return Boolean(kept.code);
  },
  get model() {
    return kept.model;
  },
  /** What the user asks of sampling; the rest is left to the model. */
  get sampling() {
    return Object.fromEntries(FIELDS.filter((name) => name in kept).map((name) => [name, kept[name]]));
  },
  keep(name, value) {
    if (value === undefined) delete kept[name];
    else kept[name] = value;
    store.write("settings", kept);
  },
};

/** Fill the dialog with what is kept. changed(name) is called after the key or language changed. */
export function prepare(changed) {
  applyTheme();
  speak(kept.language ?? preferred());
  for (const name of FIELDS) {
    const field = dialog.querySelector(`[name=${name}]`);
    field.value = kept[name] ?? "";
    field.addEventListener("input", () => {
      const usable = field.value !== "" && field.validity.valid;
      settings.keep(name, usable ? field.valueAsNumber : undefined);
    });
  }
  byId("key").value = settings.key;
  byId("key").addEventListener("change", (event) => {
    settings.keep("key", event.target.value.trim() || undefined);
    changed("key");
  });
  byId("language").value = kept.language ?? preferred();
  byId("language").addEventListener("change", (event) => {
    settings.keep("language", event.target.value);
    speak(event.target.value);
    changed("language");
  });
  byId("theme-choice").value = kept.theme ?? "";
  byId("theme-choice").addEventListener("change", (event) => theme(event.target.value));
  byId("theme").addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    theme((kept.theme ?? system) === "dark" ? "light" : "dark");
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });
}

/** Open the dialog, at the key or where it begins. */
export function open(at) {
  dialog.showModal();
  if (at) byId(at).focus();
}

/** In fields that are empty show what is in force: the model's values, where it says any. */
export function showDefaults(values = {}) {
  for (const name of FIELDS) {
    dialog.querySelector(`[name=${name}]`).placeholder = values[name] ?? word("defaults")[name] ?? word("default");
  }
}

function theme(choice) {
  settings.keep("theme", choice || undefined);
  byId("theme-choice").value = choice;
  applyTheme();
}

function applyTheme() {
  document.documentElement.dataset.theme = kept.theme ?? "";
}
