"""How a model bears long texts: perplexity by length, and a needle found at every depth.

    perplexities(params, documents, [1024, 8192])   # documents: token ids of long texts
    found = needles(params, haystack, [1024, 8192], [0, 50, 100])   # haystack: a long text

Both take a text at its true length in one piece, so that dynamic NTK sees that length. For the
rows of the published table, `switched` turns NTK and log-n on and off.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from qwen_jax.conversation import chat_prompt
from qwen_jax.decoding.completion import defaults_of, text_tokenizer
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.evaluate.answering import Asked, answers
from qwen_jax.evaluate.scoring import Text, likelihoods
from qwen_jax.nn.model import Qwen
from qwen_jax.text.tokenizer import Tokenizer

Grid = dict[int, dict[float, bool]]  # tokens -> percent of depth -> was the needle found?

_QUESTION = "What is the secret number that the text above tells? Answer with the number alone."
_NEEDLE = " The secret number is {}. Remember it. "
_ROOM = 32  # tokens of an answer


def switched(params: Qwen, ntk: bool, logn: bool) -> Qwen:
    """The same original Qwen with dynamic NTK and log-n attention on or off.

    Raises ValueError for a model that has neither.
    """
    trained = params.config.ntk_length or params.config.logn_length
    if trained is None:
        raise ValueError("this checkpoint has neither dynamic NTK nor log-n attention to switch")
    config = dataclasses.replace(
        params.config,
        ntk_length=trained if ntk else None,
        logn_length=trained if logn else None,
    )
    return dataclasses.replace(params, config=config)


def perplexities(
    params: Qwen, documents: Sequence[Sequence[int]], lengths: Sequence[int]
) -> dict[int, float]:
    """For each length, of the first so many ids of all documents: each after those before it.

    Raises ValueError for a document that is shorter.
    """
    found, shortest = {}, min(map(len, documents))
    for length in lengths:
        if not 2 <= length <= shortest:
            raise ValueError(
                f"got a length of {length}, wanted 2 to {shortest}, the shortest document's"
            )
        texts = [Text(ids[:1], ids[1:length]) for ids in documents]
        losses = [-one.logprobs for one in likelihoods(params, texts, batch=1)]
        found[length] = math.exp(np.concatenate(losses).mean(dtype=np.float64))
    return found


# --- a needle in a haystack ---------------------------------------------------------------------
def needles(
    params: Qwen,
    haystack: str,
    lengths: Sequence[int],
    depths: Sequence[float],
    seed: int = 0,
    slots: int = 1,
) -> Grid:
    """For each length in tokens and depth in percent: is a number of seven digits found there?

    The haystack is cut so that the whole prompt has about that length, and the needle stands behind
    the last sentence that ends before the depth. A chat model is asked, another continues.
    """
    cells, asked, numbers = list(product(lengths, depths)), [], []
    drawn = np.random.default_rng(seed)
    for length, depth in cells:
        numbers.append(str(drawn.integers(1_000_000, 10_000_000)))
        asked.append(_ask(params, haystack, length, depth, numbers[-1]))
    grid: Grid = {length: dict.fromkeys(depths, False) for length in lengths}
    for index, answer in answers(params, asked, slots):
        length, depth = cells[index]
        grid[length][depth] = numbers[index] in re.findall(r"\d+", answer.text.replace(",", ""))
    return grid


def _ask(params: Qwen, haystack: str, length: int, depth: float, number: str) -> Asked:
    tokenizer, defaults = text_tokenizer(params), defaults_of(params)
    needle = _NEEDLE.format(number)
    fixed = len(tokenizer.encode(f"{needle}\n\n{_QUESTION}")) + _ROOM
    text = _cut(tokenizer, haystack, length - fixed)
    at = text.rfind(". ", 0, round(len(text) * depth / 100)) + 1
    prompt = f"{text[:at]}{needle}{text[at:]}\n\n{_QUESTION}"
    if defaults.chat_format == "raw":
        ids = tokenizer.encode(f"{prompt}\nThe secret number is")
        ends = tuple(dict.fromkeys((*defaults.eos_ids, (tokenizer.end_of_text,))))
    else:
        ids, ends = chat_prompt(params, prompt)
    return Asked(ids, Sampling(temperature=0.0), ends, _ROOM)


def _cut(tokenizer: Tokenizer, text: str, count: int) -> str:
    """Its first `count` tokens."""
    ids = tokenizer.encode(text[: 16 * max(count, 0)])
    if count < 1 or len(ids) < count:
        raise ValueError(
            f"a haystack of {len(ids)} tokens is no place for {count}; give a longer text, or "
            "another length"
        )
    return tokenizer.decode(ids[:count])


def draw(grid: Grid, title: str, file: Path) -> None:
    """A picture of what `needles` found, white where it did not look; needs matplotlib."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    lengths, depths = list(grid), sorted({depth for row in grid.values() for depth in row})
    cells = np.asarray([[grid[n].get(depth, np.nan) for n in lengths] for depth in depths], float)
    figure = Figure(figsize=(1.2 + 0.7 * len(lengths), 1.4 + 0.35 * len(depths)))
    axes = figure.subplots()
    axes.imshow(cells, cmap=ListedColormap(["#d1495b", "#66a182"]), vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:g} %" for depth in depths])
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth of the needle")
    axes.set_title(f"{title}: {np.nanmean(cells):.0%} found (green)", fontsize=9)
    figure.savefig(file, dpi=90, bbox_inches="tight")
