// Markdown to DOM nodes. Text from a model only ever becomes text nodes, never HTML.

import { copyButton, element } from "./dom.js";
import { inline } from "./inline.js";
import { word } from "./words.js";

const DEEPEST = 8; // lists and quotes inside each other; what lies deeper is text
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: {1,4}|$)/;

/** Show `text` in `container`; blocks that are as they were stay, with what is selected in them. */
export function show(container, text) {
  const found = blocks(text.split("\n"), 0);
  found.forEach(({ source, make }, place) => {
    const old = container.children[place];
    if (old?.source === source) return;
    const made = make();
    made.source = source;
    if (old) old.replaceWith(made);
    else container.append(made);
  });
  while (container.children.length > found.length) container.lastElementChild.remove();
}

/** [{source, make}]: the blocks of some lines, each with the text it depends on. */
function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const reader = depth < DEEPEST ? READERS.find((one) => one.begins(lines, at)) : undefined;
    const from = at;
    const [end, make] = (reader?.read ?? paragraph)(lines, at, depth);
    at = end;
    found.push({ source: lines.slice(from, end).join("\n"), make });
  }
  return found;
}

const nodes = (lines, depth) => blocks(lines, depth + 1).map(({ make }) => make());

const READERS = [
  { begins: (lines, at) => FENCE.test(lines[at]), read: fence },
  { begins: (lines, at) => HEADING.test(lines[at]), read: heading },
  {
    begins: (lines, at) => RULE.test(lines[at]),
    read: (lines, at) => [at + 1, () => element("hr")],
  },
  { begins: (lines, at) => QUOTE.test(lines[at]), read: quote },
  { begins: (lines, at) => ITEM.test(lines[at]), read: list },
  { begins: isTable, read: table },
];

function paragraph(lines, at, depth) {
  let end = at + 1;
  const stays = () => lines[end].trim() && !READERS.some((one) => one.begins(lines, end));
  while (end < lines.length && (depth >= DEEPEST || stays())) end += 1;
  const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
  return [end, () => element("p", {}, inline(text))];
}

function heading(lines, at) {
  const level = HEADING.exec(lines[at])[1].length;
  const text = lines[at].trim().slice(level).trim().replace(/(^|[ \t])#+$/, "");
  return [at + 1, () => element(`h${Math.min(level + 1, 6)}`, {}, inline(text))];
}

function fence(lines, at) {
  const [, opening, info] = FENCE.exec(lines[at]);
  const indent = lines[at].search(/\S/);
  const closes = (line) => {
    const text = line.trim();
    return text.length >= opening.length && text === opening[0].repeat(text.length);
  };
  let end = at + 1;
  while (end < lines.length && !closes(lines[end])) end += 1;
  const code = lines.slice(at + 1, end).map((line) => dedented(line, indent)).join("\n");
  return [Math.min(end + 1, lines.length), () => codeBlock(code, info.trim().split(/\s/)[0])];
}

function codeBlock(code, language) {
  const button = copyButton(code, word("copy"));
  const pre = element("pre", { tabindex: "0" }, element("code", {}, code));
  const caption = element("figcaption", {}, element("span", {}, language), button);
  return element("figure", { class: "code" }, caption, pre);
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => element("blockquote", {}, nodes(inside, depth))];
}

function list(lines, at, depth) {
  const [, , first] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first);
  const items = [];
  let end = at;
  let loose = false;
  while (end < lines.length) {
    const found = ITEM.exec(lines[end]);
    if (!found || found[2].at(-1) !== first.at(-1) || RULE.test(lines[end])) break;
    loose ||= end > at && !lines[end - 1].trim();
    const [next, inside] = item(lines, end, found);
    items.push(inside);
    end = next;
  }
  while (!lines[end - 1].trim()) end -= 1;
  const make = () => {
    const start = ordered && Number.parseInt(first, 10);
    const made = items.map((inside) => element("li", {}, itemNodes(inside, depth, loose)));
    return element(ordered ? "ol" : "ul", { start: ordered && start !== 1 && start }, made);
  };
  return [end, make];
}

/** The end of the list item at `at`, and its lines without marker and indentation. */
function item(lines, at, [marker, { length: outer }]) {
  const inside = [lines[at].slice(marker.length)];
  let end = at + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    const indent = line.search(/\S/);
    const follows = lines[end - 1].trim() && !READERS.some((one) => one.begins(lines, end));
    if (indent >= 0 && indent <= outer && !follows) break;
    inside.push(dedented(line, Math.max(marker.length, 2)));
  }
  return [end, inside];
}

/** What an item holds; in a tight list its first paragraph is plain text. */
function itemNodes(inside, depth, loose) {
  const made = nodes(inside, depth);
  return made[0]?.tagName === "P" && !loose ? [...made[0].childNodes, ...made.slice(1)] : made;
}

const dedented = (line, most) => line.slice(Math.min(most, Math.max(line.search(/\S/), 0)));

/** The cells of a table's row; a | after a backslash or in code is text. */
function cells(line) {
  const row = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return row.match(/(?:\\.|`[^`]*`|[^|])+|(?<=\|)(?=\|)/g)?.map((cell) => cell.trim()) ?? [];
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
  const ruled = cells(lines[at + 1]);
  return ruled.length === cells(lines[at]).length && ruled.every((cell) => /^:?-+:?$/.test(cell));
}

function table(lines, at) {
  const sides = cells(lines[at + 1]).map((cell) => {
    if (!cell.endsWith(":")) return undefined;
    return cell.startsWith(":") ? "centre" : "right";
  });
  let end = at + 2;
  while (end < lines.length && lines[end].trim() && lines[end].includes("|")) end += 1;
  const row = (tag, line) => {
    const texts = cells(line);
    const made = sides.map((side, place) =>
      element(tag, { class: side }, inline((texts[place] ?? "").replaceAll("\\|", "|"))),
    );
    return element("tr", {}, made);
  };
  const make = () => {
    const head = element("thead", {}, row("th", lines[at]));
    const body = element("tbody", {}, lines.slice(at + 2, end).map((line) => row("td", line)));
    return element("div", { class: "table", tabindex: "0" }, element("table", {}, head, body));
  };
  return [end, make];
}
