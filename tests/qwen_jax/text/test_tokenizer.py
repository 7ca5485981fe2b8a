"""Text to ids and back: the original's ids, Hugging Face's ids, and streams that lose nothing."""

import json
import time
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Oracle

from qwen_jax.text.segments import split
from qwen_jax.text.tokenizer import (
    MOST_BLANKS,
    NFC_SHRINKS,
    PADDING_ROWS,
    StopStrings,
    TextStream,
    Tokenizer,
    _without_long_blanks,
)
from tests.assets import read_tokenizer
from tests.growth import linear

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/text/tokenizer.json").read_text("utf-8"))

quick = settings(max_examples=300, deadline=None)

# Whole words reach the merges, single characters every branch of the pattern. Arbitrary Unicode
# would not do: Hugging Face's NFC knows fewer combining marks than Python's.
words = "quick brown jumps, lazy doesn't 你好，世界。 我是一只猫 def return; Café 3.14159".split()
controls = "<|endoftext|> <|im_start|> <|im_end|> <think> </think> <tool_call> </tool_call>".split()
characters = [*" \t\n\r\x0b\x85\xa0\u3000'sSdtTrREmML0٣Aé中猫😀\u0301\u0327\u200d\ufb01.<|>!\x00"]
plain = st.lists(st.sampled_from(words + characters), max_size=40).map("".join)
mixed = st.lists(st.sampled_from(words + characters + controls), max_size=40)


def test_ids_and_text_are_the_original_ones(real: Tokenizer) -> None:
    for row in GOLDEN["rows"]:
        assert real.encode(row["text"]) == row["ids_no_special"]
        assert real.encode(row["text"], specials=True) == row["ids"]
        assert real.decode(row["ids"]) == row["decoded"]


def test_half_characters_decode_as_the_original_does(real: Tokenizer) -> None:
    for row in GOLDEN["partial"]:
        assert real.decode(row["ids"]) == row["replace"]
        assert real.decode(row["ids"], errors="ignore") == row["ignore"]


@quick
@given(text=plain)
def test_plain_text_has_hugging_face_ids(small: Tokenizer, oracle: Any, text: str) -> None:
    ids = small.encode(text)
    assert ids == oracle.encode(text).ids
    assert small.decode(ids) == oracle.decode(ids)


@quick
@given(pieces=mixed)
def test_control_tokens_count_when_asked_for(
    small: Tokenizer, oracle: Any, pieces: list[Any]
) -> None:
    text = "".join(pieces)
    ids = small.encode(text, specials=True)
    assert ids == oracle.encode(text).ids
    assert small.decode(ids, skip_specials=True) == oracle.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "text", ["<|im_end|>\u0338 x", "e<|im_end|>\u0301", "<|im_end|>\u0338" * 3]
)
def test_control_tokens_divide_a_text_before_it_is_normalised(
    small: Tokenizer, oracle: Any, text: str
) -> None:
    ids = small.encode(text, specials=True)
    assert ids == oracle.encode(text).ids
    assert small.specials["<|im_end|>"] in ids


def test_those_of_v1_are_looked_for_behind_it(real: Tokenizer) -> None:
    """As in the original, which normalises first: a mark that joins the last sign hides them."""
    assert real.specials["<|im_end|>"] not in real.encode("<|im_end|>\u0338", specials=True)
    assert real.encode("<|im_end|>\u0301", specials=True)[0] == real.specials["<|im_end|>"]


def test_normalised_tokens_are_looked_for_behind_it(small_folder: Path, tmp_path: Path) -> None:
    content = json.loads((small_folder / "tokenizer.json").read_text("utf-8"))
    content["added_tokens"][2]["normalized"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours = read_tokenizer(tmp_path)
    theirs = Oracle.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("<|im_end|>\u0338 x", "<|im_start|>\u0338<|im_end|>a", "b<|im_end|>\u0301"):
        assert ours.encode(text, specials=True) == theirs.encode(text).ids


@quick
@given(pieces=mixed)
def test_text_is_text_by_default(small: Tokenizer, pieces: list[Any]) -> None:
    assert not set(small.encode("".join(pieces))) & set(small.specials.values())


def test_only_the_named_control_tokens_count(small: Tokenizer) -> None:
    ids = small.encode("<|im_end|><think>", specials={"<think>"})
    assert ids[-1] == small.specials["<think>"]
    assert small.specials["<|im_end|>"] not in ids
    with pytest.raises(ValueError, match=r"\['<pad>'\] are no control tokens"):
        small.encode("", specials={"<pad>"})


def test_a_name_within_a_longer_name_loses(small: Tokenizer) -> None:
    assert split("x<ab>y", ["<a", "<ab>"]) == ["x", "<ab>", "y"]


def test_skipping_specials_keeps_the_visible_markup(small: Tokenizer) -> None:
    ids = small.encode("<|im_start|><think>so</think><|im_end|>", specials=True)
    assert small.decode(ids, skip_specials=True) == "<think>so</think>"


def test_lone_surrogates_become_replacement_characters(small: Tokenizer) -> None:
    assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"


def test_numpy_ids_decode(small: Tokenizer) -> None:
    assert small.decode(np.array(small.encode("你好"))) == "你好"


def test_padding_rows_are_silent_and_other_ids_are_errors(small: Tokenizer) -> None:
    end = max(small.specials.values())
    assert small.decode([*small.encode("a"), end + 1, end + PADDING_ROWS]) == "a"
    for id in (end + PADDING_ROWS + 1, -1):
        with pytest.raises(ValueError, match=f"got token id {id}, this vocabulary ends at {end}"):
            small.decode([id])


@pytest.mark.parametrize("text", [" " * 1_200_000 + "a", "a" + "\n" * 900_000 + "\t" * 1_000_001])
def test_a_million_blanks_encode(small: Tokenizer, text: str) -> None:
    assert small.decode(small.encode(text)) == text


def test_blanks_that_tiktoken_can_encode_are_not_divided(small: Tokenizer) -> None:
    text = "a" + " " * 700_000 + "b"
    assert small.encode(text) == small.encoding.encode_ordinary(text)


@quick
@given(data=st.data(), skip=st.booleans(), errors=st.sampled_from(["replace", "ignore"]))
def test_a_stream_adds_up_to_the_decoded_whole(
    small: Tokenizer, data: Any, skip: bool, errors: str
) -> None:
    ids = data.draw(st.lists(st.integers(0, small.vocab_size + 5), max_size=60))
    stream, text = TextStream(small, errors, skip_specials=skip), ""
    start = 0
    while start < len(ids):
        step = data.draw(st.integers(1, 7))
        text += stream.push(ids[start : start + step])
        start += step
    assert text + stream.flush() == small.decode(ids, errors, skip_specials=skip)


def test_a_stream_never_shows_half_a_character(small: Tokenizer) -> None:
    stream = TextStream(small)
    ids = small.encode("😀 ß 中 👩‍👩‍👧")
    pushed = [stream.push([id]) for id in ids]
    assert "" in pushed
    assert "\ufffd" not in "".join(pushed)
    stream.push(small.encode("😀")[:1])
    assert stream.flush() == "\ufffd"


def first_complete(text: str, stops: list[str]) -> tuple[str, bool]:
    """What StopStrings promises, by looking at the whole text."""
    for end in range(1, len(text) + 1):
        if met := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, met))], True
    return text, False


letters = st.text("ab\n", max_size=5)


@quick
@given(
    pushes=st.lists(letters, max_size=15),
    stops=st.lists(letters.filter(bool), max_size=4),
)
def test_stop_strings_cut_as_on_the_whole_text(pushes: list[Any], stops: list[Any]) -> None:
    watch, shown, held = StopStrings(stops), "", ""
    for text in pushes:
        held += text
        safe, stopped = watch.push(text)
        shown += safe
        held = held[len(safe) :]
        if stopped:
            break
        assert not held or any(stop.startswith(held) for stop in stops)  # no more than needed
    assert (shown + watch.flush(), watch.stopped) == first_complete("".join(pushes), stops)


def test_nothing_comes_after_a_stop() -> None:
    watch = StopStrings(["\nObservation:"])
    assert watch.push("Action\nObs") == ("Action", False)
    assert watch.push("ervation: 4") == ("", True)
    assert watch.push("more") == ("", True)
    assert watch.flush() == ""


@pytest.mark.parametrize("stops", ["stop", ["stop", ""]])
def test_stop_strings_that_make_no_sense_are_refused(stops: str | list[str]) -> None:
    with pytest.raises(ValueError, match="wanted a list of non-empty strings"):
        StopStrings(stops)


HOSTILE = [
    "a",
    " ",
    "\n",
    "^",
    "\u0301\u0316",
    "a\u0301\u0316",
    "<|im_start",
    "<|im_end|>",
    "\ud800",
    "中",
]


@pytest.mark.parametrize("part", HOSTILE, ids=ascii)
def test_encoding_grows_as_the_text_does(small: Tokenizer, part: str) -> None:
    encode = lambda text: small.encode(text, specials=True)
    assert linear(encode, lambda size: part * size, 5000)


def test_blanks_between_the_bounds_are_no_work() -> None:
    text = " " * (2 * MOST_BLANKS + 1) + ("x" + " " * (MOST_BLANKS - 1)) * 3
    started = time.thread_time()
    parts = _without_long_blanks(text)
    assert time.thread_time() - started < 5
    assert "".join(parts) == text
    assert [len(part) for part in parts[1:3]] == [MOST_BLANKS, 0]


@pytest.mark.parametrize(
    "text", ["é\n" * 50_000, "中文" * 50_000, "a\ud800" * 50_000, "q" * 99_999]
)
def test_long_texts_have_the_ids_of_the_whole(small: Tokenizer, text: str) -> None:
    assert small.encode(text) == small.encoding.encode(text, disallowed_special=())


@quick
@given(text=plain | st.text(max_size=50))
@example(text="\u1fbe\u0308\u0301" * 20)
@example(text="\u212a" * 50)
def test_a_text_has_no_fewer_tokens_than_the_least(small: Tokenizer, text: str) -> None:
    assert small.least_tokens(text) <= len(small.encode(text))
    assert small.least_tokens(text) <= len(small.encode(text, specials=True))


def test_the_least_is_as_if_every_token_were_the_longest(small: Tokenizer) -> None:
    longest = max((small.token_bytes(id) for id in range(small.vocab_size)), key=len)
    text = "a" * len(longest) * 1000
    assert small.least_tokens(text) == 1000
    assert small.least_tokens(text + "a") == 1001
    assert small.least_tokens("") == 0


def test_nfc_shrinks_no_text_further_than_is_told() -> None:
    """Every character as the longest spelling of the characters that it decomposes into."""
    spelled: dict[str, int] = {}
    for char in map(chr, (*range(0xD800), *range(0xE000, 0x30000))):
        whole = unicodedata.normalize("NFD", char)
        if len(whole) == 1:
            spelled[whole] = max(spelled.get(whole, 0), len(char.encode()))
    for char in map(chr, (*range(0xD800), *range(0xE000, 0x30000))):
        longest = sum(spelled[part] for part in unicodedata.normalize("NFD", char))
        assert longest <= NFC_SHRINKS * len(char.encode()), ascii(char)


@pytest.mark.parametrize("stop", ["a" * 20_000 + "b", "ab" * 10_000 + "c"])
def test_long_stop_strings_are_watched_in_linear_time(stop: str) -> None:
    def watch(pushes: Iterable[str]) -> None:
        stops = StopStrings([stop, stop[1:]])
        for text in pushes:
            stops.push(text)

    assert linear(watch, lambda size: [stop[:2]] * size, 2000)
