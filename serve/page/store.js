// What the browser keeps. Every conversation has its own key, so tabs do not undo each other's work.

const PREFIX = "qwen.";
const CONVERSATION = `${PREFIX}conversation.`;

export function read(name, otherwise) {
  return parse(localStorage.getItem(PREFIX + name)) ?? otherwise;
}

export const write = (name, value) => put(PREFIX + name, value);

/** All conversations, the latest first. */
export function conversations() {
  return Object.keys(localStorage)
    .filter((key) => key.startsWith(CONVERSATION))
    .map((key) => parse(localStorage.getItem(key)))
    .filter((one) => Array.isArray(one?.messages))
    .sort((one, other) => other.updated - one.updated);
}

export const load = (id) => parse(localStorage.getItem(CONVERSATION + id));

export const save = (conversation) => put(CONVERSATION + conversation.id, conversation);

export const remove = (id) => localStorage.removeItem(CONVERSATION + id);

/** A new, empty conversation; it is kept from its first message on. */
export function fresh(system) {
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
  return { id, title: "", system, updated: Date.now(), messages: [] };
}

/** Whether there was room for a value. */
function put(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    return false;
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // somebody else's, or cut short
  }
}
