import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.page.browser import chromium, opened
from tests.serve.stub import Stub

SHOW = """async (texts) => {
  const { show } = await import("/markdown.js");
  return texts.map((text) => {
    const place = document.createElement("div");
    show(place, text);
    place.querySelectorAll("figcaption button").forEach((button) => button.remove());
    return place.innerHTML;
  });
}"""
LINK = '<a href="{}" target="_blank" rel="noopener noreferrer nofollow">{}</a>'
CASES = {
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "# One #\n### Three\n#no": "<h2>One</h2><h4>Three</h4><p>#no</p>",
    "**a** *b* __c__ _d_ ~~e~~": "<p><strong>a</strong> <em>b</em> <strong>c</strong> <em>d</em> "
    "<del>e</del></p>",
    "***a*** **b *c***": "<p><strong><em>a</em></strong> <strong>b <em>c</em></strong></p>",
    "*a **b** c* **a*b*c**": "<p><em>a <strong>b</strong> c</em> <strong>a<em>b</em>c</strong></p>",
    "**注意：**请看": "<p><strong>注意：</strong>请看</p>",
    "2 * 3 * 4, a_b_c, **open, *x": "<p>2 * 3 * 4, a_b_c, **open, *x</p>",
    r"\*a\* \_ \\ \q": r"<p>*a* _ \ \q</p>",
    "`a*b*` ``c`d`` ` e": "<p><code>a*b*</code> <code>c`d</code> ` e</p>",
    "[a *b*](http://x.y/z)": f"<p>{LINK.format('http://x.y/z', 'a <em>b</em>')}</p>",
    '[a](https://x.y "title") ![b](https://x.y/b.png)': "<p>"
    + LINK.format("https://x.y/", "a")
    + " "
    + LINK.format("https://x.y/b.png", "b")
    + "</p>",
    "see https://x.y/a_b_(c), or <mailto:a@b.c>.": "<p>see "
    + LINK.format("https://x.y/a_b_(c)", "https://x.y/a_b_(c)")
    + ", or "
    + LINK.format("mailto:a@b.c", "mailto:a@b.c")
    + ".</p>",
    "见https://x.y/a。好": f"<p>见{LINK.format('https://x.y/a', 'https://x.y/a')}。好</p>",
    "[a](javascript:x) [b](data:text/html,x) [c](//x) [d] (e)": "<p>[a](javascript:x) "
    "[b](data:text/html,x) [c](//x) [d] (e)</p>",
    "```py x\na < b\n  *c*\n```\nd": '<figure class="code"><figcaption><span>py</span></figcaption>'
    '<pre tabindex="0"><code>a &lt; b\n  *c*</code></pre></figure><p>d</p>',
    "~~~~\n~~~\nopen": '<figure class="code"><figcaption><span></span></figcaption>'
    '<pre tabindex="0"><code>~~~\nopen</code></pre></figure>',
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "1. a\n   - b\n2. c": "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>",
    "3) a\n4) b\n\n- c": '<ol start="3"><li>a</li><li>b</li></ol><ul><li>c</li></ul>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "- a\nlazy\n\nout": "<ul><li>a<br>lazy</li></ul><p>out</p>",
    "> a\n> - b\n\nc": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>",
    "a\n\n---\n* * *": "<p>a</p><hr><hr>",
    "|a|b|\n|:-:|--:|\n|`x|y`|\\|||\nc": '<div class="table" tabindex="0"><table><thead><tr>'
    '<th class="centre">a</th><th class="right">b</th></tr></thead><tbody><tr><td class="centre">'
    '<code>x|y</code></td><td class="right">|</td></tr></tbody></table></div><p>c</p>',
    "a | b\nno table": "<p>a | b<br>no table</p>",
    "<b>&amp;</b><!-- x -->": "<p>&lt;b&gt;&amp;amp;&lt;/b&gt;&lt;!-- x --&gt;</p>",
}
PIECES = [
    *"* ** *** _ __ ~~ ` `` [ ]( ) ![ < > | \\ # \n \n\n".split(" "),
    *["\n- ", "\n1. ", "\n> ", "\n```", "\n~~~", "\n|", "|-|", "\n---\n", "    ", "http://x.y"],
    *["<script>", "javascript:alert(1)", "</p>", "&lt;", "word", "中文。", " ", "\n  - ", "\t"],
]
ALLOWED = {
    **{tag: set() for tag in "p br em strong del code hr li ul blockquote tr thead tbody".split()},
    **{tag: set() for tag in "h2 h3 h4 h5 h6 table figcaption span".split()},
    **{"a": {"href", "target", "rel"}, "ol": {"start"}, "th": {"class"}, "td": {"class"}},
    **{"figure": {"class"}, "div": {"class", "tabindex"}, "pre": {"tabindex"}},
}


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with chromium() as browser, Stub() as stub, opened(browser, stub.url) as page:
        yield page


def test_what_markdown_becomes(page: Any) -> None:
    assert dict(zip(CASES, page.evaluate(SHOW, list(CASES)), strict=True)) == CASES


def test_any_text_gives_only_harmless_elements(page: Any) -> None:
    """Whatever stands in a text: these tags, these attributes, these addresses."""
    choice = random.Random(0)
    texts = ["".join(choice.choices(PIECES, k=choice.randint(1, 40))) for _ in range(1500)]
    for text, shown in zip(texts, page.evaluate(SHOW, texts), strict=True):
        for tag, attributes in re.findall(r"<([a-z0-9]+)((?: [^<>]*)?)>", shown):
            assert tag in ALLOWED, (text, shown)
            assert set(re.findall(r' ([a-z-]+)="', attributes)) <= ALLOWED[tag], (text, shown)
        assert set(re.findall(r'href="([a-z]+:)', shown)) <= {"http:"}, (text, shown)


def test_a_growing_text_ends_as_if_it_came_at_once(page: Any) -> None:
    choice = random.Random(1)
    texts = ["".join(choice.choices(PIECES, k=30)) for _ in range(100)]
    grown = """async (texts) => {
      const { show } = await import("/markdown.js");
      return texts.map((text) => {
        const [place, whole] = [document.createElement("div"), document.createElement("div")];
        for (let end = 0; end <= text.length; end++) show(place, text.slice(0, end));
        show(whole, text);
        return place.innerHTML === whole.innerHTML;
      });
    }"""
    assert all(page.evaluate(grown, texts))


def test_finished_blocks_stay_while_the_text_grows(page: Any) -> None:
    kept = """async () => {
      const { show } = await import("/markdown.js");
      const place = document.createElement("div");
      show(place, "# one\\n\\ntwo");
      const [one, two] = place.children;
      show(place, "# one\\n\\ntwo and\\n-");
      const list = place.children[2].tagName;
      show(place, "# one\\n\\ntwo and\\n-3");
      const left = place.children.length;
      return [one === place.children[0], two === place.children[1], list, left];
    }"""
    assert page.evaluate(kept) == [True, False, "UL", 2]


HOSTILE = [
    *(piece * (200_000 // len(piece)) for piece in "[ [a]( *a ** _a > - | < \\ ![ ~~".split()),
    "  - a\n" * 30_000,
    "*a " * 30_000 + "a* " * 30_000,
    "> " * 30_000 + "[a](" * 30_000 + ")" * 30_000,
    " ".join("`" * count for count in range(600)),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:4] + text[-4:])
def test_long_hostile_texts_are_fast_and_shallow(page: Any, text: str) -> None:
    """No text is slow to read, or deeper than a browser can lay out."""
    measure = """async (text) => {
      const { show } = await import("/markdown.js");
      const place = document.createElement("div");
      const began = performance.now();
      show(place, text);
      const time = performance.now() - began;
      const deeper = (level) => level.flatMap((one) => [...one.children]);
      let depth = 0;
      for (let level = [place]; level.length; level = deeper(level)) depth++;
      return [time, depth];
    }"""
    milliseconds, depth = page.evaluate(measure, text)
    assert milliseconds < 2000
    assert depth < 60
