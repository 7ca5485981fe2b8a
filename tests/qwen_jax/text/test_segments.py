"""Long texts a stretch at a time: the same result as all at once, in time that grows as they do."""

import re
from unicodedata import combining, normalize

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen_jax.text import segments
from qwen_jax.text.segments import LONGEST_RUN, SORTED, nfc, split, stretches
from qwen_jax.text.tokenizer import Tokenizer
from tests.growth import linear

thorough = settings(max_examples=500, deadline=None)

# What composes, decomposes, sorts or blocks: Latin, Greek, Hangul, Bengali, Tibetan, kana, Kirat
# Rai, musical signs, compatibility ideographs; and everything else now and then.
JOINING = [
    *map(
        chr, (*range(0x300, 0x346), 0x338, 0x1100, 0x1112, 0x1161, 0x11A7, 0x11A8, 0xAC00, 0xAC01)
    ),
    *"aeK\u00e9\u1e9b\u0323\u212a\u2126\u1fbe\u0390\u1fd3\u09c7\u09be\u09d7\u0f71\u0f72\u0f73\u0f75",
    *"\u0f80\u0f81\u304b\u3099\uf900\U0002f800\U0001d15e\U0001d165\U0001d16f\U00016d63\U00016d67<=>",
]
unicode = st.lists(st.sampled_from(JOINING) | st.characters(codec="utf-8"), max_size=80)


@thorough
@given(text=unicode.map("".join))
@example("a" + "\u0301\u0316" * (LONGEST_RUN // 2))
@example("\u0f73" * (LONGEST_RUN // 2))
def test_every_seam_is_nfc(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SORTED", 3)
        assert nfc(text) == normalize("NFC", text)


@pytest.mark.parametrize("before", range(0, LONGEST_RUN + 20, 5))
def test_a_run_up_to_the_bound_is_nfc_wherever_it_stands(before: int) -> None:
    run = ("\u0301\u0316\u0345" * LONGEST_RUN)[:LONGEST_RUN]
    text = "é" * (SORTED - before) + "a" + run + "\u1112\u1161\u11ab"
    assert nfc(text) == normalize("NFC", text)


def test_a_longer_run_loses_nothing() -> None:
    text = "a" + "\u0301\u0316" * 5000 + "b"
    marks = nfc(text)[1:-1]
    assert nfc(text)[0] + nfc(text)[-1] == "áb"
    assert (marks.count("\u0316"), marks.count("\u0301")) == (5000, 4999)
    assert all(combining(mark) for mark in marks)


MARKED = ["\u0301\u0316", "\u0f73", "\u0344\u0316", "é\u0316", "\u1100\u1161\u11a8", "\u09c7\u09be"]


@pytest.mark.parametrize("part", MARKED)
def test_normalising_grows_as_the_text_does(part: str) -> None:
    assert linear(nfc, lambda size: "a" + part * size, 10_000)


@given(
    text=st.lists(st.sampled_from(["<a", "<ab>", "b>", "<", "c", "c<ab"]), max_size=20).map("".join)
)
def test_a_name_across_a_seam_is_found(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "STRETCH", 2)
        assert split(text, ["<a", "<ab>"]) == re.split("(<ab>|<a)", text)


PARTS = [
    "word",
    "Don't",
    "'s",
    "'",
    " ",
    "  ",
    "\n",
    "\r",
    " \n ",
    "\t",
    ",",
    "!?",
    "。",
    "，",
    "1",
    "_",
]
PARTS += ["你好", "\u0301", "é", "😀", "\x1c", "\u3000", "x'", "٣", "²"]


@thorough
@given(text=st.lists(st.sampled_from(PARTS), max_size=60).map("".join))
def test_stretches_have_the_tokens_of_the_whole(small: Tokenizer, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "STRETCH", 2)
        parts = list(stretches(text))
    assert "".join(parts) == text
    whole = small.encoding.encode_ordinary(text)
    assert [id for part in parts for id in small.encoding.encode_ordinary(part)] == whole


def test_ordinary_text_is_divided_often() -> None:
    text = "A sentence, in English. 一句中文，也有。\n" * 20_000
    assert max(map(len, stretches(text))) <= 2 * segments.STRETCH


NAMES = {f"<|extra_{n}|>" for n in range(200)} | {"<|im_start|>"}


@pytest.mark.parametrize("part", ["<|im_start", "<|im_start|>", "<", "a"])
def test_looking_for_control_tokens_grows_as_the_text_does(part: str) -> None:
    assert linear(lambda text: split(text, NAMES), lambda size: part * size, 10_000)
