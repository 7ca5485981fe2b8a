// Markdown within a line: emphasis, code, links. No text is slow to read, nesting is bounded.

import { element } from "./dom.js";

const TAGS = { "*": "em", "**": "strong", _: "em", __: "strong", "~~": "del" };
const MOST_OPEN = 16; // marks inside each other; more would only make the page slow
const LONGEST_LABEL = 400;
const ESCAPABLE = "\\`*_~#|<>!-+.{}";
const ADDRESS = /https?:\/\/[^\s<>"'`\u3000-\u303f\uff00-\uff65]+/y;
const ANGLED = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const MARK = /\*+|_+|~~/y;
const PLAIN = /[^\\`*_~[!<h\n]+/y;

/** Nodes for a piece of text. */
export function inline(text, links = true) {
  const frames = [{ mark: "", nodes: [] }]; // emphasis that is open, innermost last
  const add = (node) => push(frames, node);
  let at = 0;
  let labelEnd = text.indexOf("](");
  const match = (pattern) => {
    pattern.lastIndex = at;
    return pattern.exec(text);
  };
  while (at < text.length) {
    const char = text[at];
    let found;
    if (char === "\\" && ESCAPABLE.includes(text[at + 1] ?? " ")) {
      add(text[at + 1]);
      at += 2;
    } else if (char === "\n") {
      add(element("br"));
      at += 1;
    } else if (char === "`") {
      at = code(text, at, add);
    } else if ((found = match(MARK))) {
      emphasis(frames, found[0], text[at - 1] ?? " ", text[at + found[0].length] ?? " ");
      at += found[0].length;
    } else if (links && (char === "[" || (char === "!" && text[at + 1] === "["))) {
      if (labelEnd >= 0 && labelEnd < at) labelEnd = text.indexOf("](", at);
      const near = labelEnd >= 0 && labelEnd - at < LONGEST_LABEL;
      const link = near ? labelled(text, char === "!" ? at + 1 : at) : null;
      add(link?.node ?? char);
      at = link?.end ?? at + 1;
    } else if (links && char === "<" && (found = match(ANGLED))) {
      add(anchor(found[1], [found[1]]) ?? found[0]);
      at += found[0].length;
    } else if (links && char === "h" && (found = match(ADDRESS))) {
      const address = trimmed(found[0]);
      add(anchor(address, [address]) ?? address);
      at += address.length;
    } else {
      const plain = match(PLAIN)?.[0] ?? char;
      add(plain);
      at += plain.length;
    }
  }
  while (frames.length > 1) abandon(frames);
  return frames[0].nodes;
}

/** Add to the innermost frame; texts that meet become one. */
function push(frames, node) {
  const { nodes } = frames.at(-1);
  if (typeof node === "string" && typeof nodes.at(-1) === "string") nodes.push(nodes.pop() + node);
  else nodes.push(node);
}

/** A link where its address is one that may be followed, else null. */
function anchor(address, children) {
  const url = URL.canParse(address) ? new URL(address) : null;
  if (!["http:", "https:", "mailto:"].includes(url?.protocol)) return null;
  const rel = "noopener noreferrer nofollow";
  return element("a", { href: url.href, target: "_blank", rel }, children);
}

function code(text, at, add) {
  const run = /`+/y;
  run.lastIndex = at;
  const ticks = run.exec(text)[0];
  const from = at + ticks.length;
  let end = text.indexOf(ticks, from);
  while (end >= 0 && text[end + ticks.length] === "`") {
    run.lastIndex = end;
    end = text.indexOf(ticks, end + run.exec(text)[0].length);
  }
  if (end < 0) {
    add(ticks);
    return from;
  }
  const inside = text.slice(from, end).replaceAll("\n", " ");
  add(element("code", {}, /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside));
  return end + ticks.length;
}

/**
 * A run of * or _, or ~~, between two characters. Looser than CommonMark, for whom the bold in
 * "**注意：**请看" does not end: what stands beside a mark may be punctuation.
 */
function emphasis(frames, run, before, after) {
  const word = /[\p{L}\p{N}]/u;
  const inWord = run[0] === "_" && word.test(before) && word.test(after);
  let left = run;
  if (/\S/.test(before) && !inWord) {
    for (let place; (place = opened(frames, left)) > 0; ) {
      while (frames.length - 1 > place) abandon(frames);
      const { mark, nodes } = frames.pop();
      push(frames, element(TAGS[mark], {}, nodes));
      left = left.slice(mark.length);
    }
  }
  const opens = /\S/.test(after) && !inWord && left.length <= 3;
  if (!opens || frames.length + 1 >= MOST_OPEN) push(frames, left);
  else if (left.length === 3) frames.push(frame(left.slice(0, 2)), frame(left[0]));
  else if (left) frames.push(frame(left));
}

const frame = (mark) => ({ mark, nodes: [] });

/** The innermost open frame that a run of marks can close, or -1. */
function opened(frames, run) {
  const closes = (mark) => mark && (mark === run || (run.length > 2 && run.startsWith(mark)));
  return frames.findLastIndex(({ mark }) => closes(mark));
}

/** What looked like the beginning of emphasis was text. */
function abandon(frames) {
  const { mark, nodes } = frames.pop();
  for (const node of [mark, ...nodes]) push(frames, node);
}

/** [label](address "title") whose bracket opens at `at`. A picture becomes a link to it. */
function labelled(text, at) {
  let depth = 0;
  let close = at;
  for (; close < Math.min(text.length, at + LONGEST_LABEL); close++) {
    if (text[close] === "[") depth += 1;
    else if (text[close] === "]" && --depth === 0) break;
  }
  if (text[close] !== "]" || text[close + 1] !== "(") return null;
  const rest = /\(\s*<?((?:[^\s()<>]|\([^\s()<>]*\))*)>?(?:\s+"[^"\n]*")?\s*\)/y;
  rest.lastIndex = close + 1;
  const found = rest.exec(text);
  if (!found) return null;
  const label = text.slice(at + 1, close) || found[1];
  const node = anchor(found[1], inline(label, false));
  return node && { node, end: rest.lastIndex };
}

/** An address without the punctuation of the sentence around it. */
function trimmed(address) {
  let end = address.length;
  while (end > 0 && ".,;:!?*_~".includes(address[end - 1])) end -= 1;
  const unmatched = address[end - 1] === ")" && !address.slice(0, end).includes("(");
  return address.slice(0, unmatched ? end - 1 : end);
}
