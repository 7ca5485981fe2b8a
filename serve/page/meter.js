// What an answer took: its tokens, how many came a second, and how much of the window is used.

import { word } from "./words.js";

/** How fast an answer comes, from its first piece on. */
export class Pace {
  tick() {
    this.last = performance.now();
    this.first ??= this.last;
  }

  /** usage: as the API says it; length: of the window, if that is known. */
  measured({ prompt_tokens: prompt, completion_tokens: tokens }, length) {
    const rate = this.last > this.first ? ((tokens - 1) * 1000) / (this.last - this.first) : undefined;
    return { tokens, rate, used: prompt + tokens, length };
  }
}

/** 35 tokens, 24.9 a second · 120 of 8,192 of the window */
export function meter({ tokens, rate, used, length }) {
  const paced = word("tokens")(number(tokens), rate && number(rate, rate < 100 ? 1 : 0));
  return length ? `${paced} · ${word("window")(number(used), number(length))}` : paced;
}

const number = (value, maximumFractionDigits = 0) =>
  value.toLocaleString(document.documentElement.lang, { maximumFractionDigits });
