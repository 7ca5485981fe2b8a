"""Records to ids and labels: the original's, and answers alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from qwen_jax.data import LossOn
from qwen_jax.data.examples import IGNORED, answered, encode
from qwen_jax.data.formats import Conversation, Document, Pair, parse
from qwen_jax.text.tokenizer import Tokenizer
from tests.assets import read_vocabulary

GOLDEN = Path(__file__).parents[2] / "golden/text/finetune_preprocess.json"
CASES = json.loads(GOLDEN.read_text("utf-8"))
CHAT = Conversation(
    [
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "a fox"},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "世界"},
    ]
)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
)


@pytest.fixture(scope="session")
def later(small_folder: Path) -> Tokenizer:
    return Tokenizer(dataclasses.replace(read_vocabulary(small_folder), chat_template=TEMPLATE))


@pytest.mark.parametrize("case", CASES)
def test_ids_and_labels_are_the_original_ones(real: Tokenizer, case: dict[str, Any]) -> None:
    record = parse({"conversations": case["conversations"]}, "conversations")
    ids, labels = (whole[: case["max_len"]] for whole in encode(record, real, case["system"]))
    padding = case["max_len"] - len(ids)
    assert [*ids, *[real.end_of_text] * padding] == case["input_ids"]
    assert [*labels, *[IGNORED] * padding] == case["labels"]
    assert ids.dtype == labels.dtype == np.int32


def learnt(tokenizer: Tokenizer, record: Conversation, **options: Any) -> str:
    ids, labels = encode(record, tokenizer, **options)
    assert set(labels[labels != ids]) <= {IGNORED}
    return tokenizer.decode(ids[labels == ids])


def test_answers_alone(small: Tokenizer, later: Tokenizer) -> None:
    for tokenizer in (small, later):
        assert learnt(tokenizer, CHAT, loss_on="assistant") == "a fox<|im_end|>\n世界<|im_end|>\n"


def test_answers_and_the_marks_of_every_turn(small: Tokenizer, later: Tokenizer) -> None:
    turns = "<|im_start|><|im_end|>\n<|im_start|>a fox<|im_end|>\n"
    turns += "<|im_start|><|im_end|>\n<|im_start|>世界<|im_end|>\n"
    assert learnt(later, CHAT) == turns
    assert learnt(small, CHAT) == "<|im_start|><|im_end|>\n" + turns  # and the system's


def test_the_system_of_a_conversation_that_brings_none(small: Tokenizer, later: Tokenizer) -> None:
    own = Conversation([{"role": "system", "content": "own"}, *CHAT.messages])
    for tokenizer in (small, later):
        wanted = encode(own, tokenizer)[0].tolist()
        assert encode(CHAT, tokenizer, "own")[0].tolist() == wanted
        assert encode(own, tokenizer, "other")[0].tolist() == wanted
        assert encode(CHAT, tokenizer, "other")[0].tolist() != wanted


def test_tools_reach_the_template(small_folder: Path) -> None:
    source = "{{ tools[0].name }}" + TEMPLATE
    tokenizer = Tokenizer(dataclasses.replace(read_vocabulary(small_folder), chat_template=source))
    ids, _ = encode(Conversation(CHAT.messages, [{"name": "weather"}]), tokenizer)
    assert tokenizer.decode(ids).startswith("weather<|im_start|>")


@pytest.mark.parametrize("loss_on", ["turns", "assistant"])
def test_of_a_document_all_is_learnt(small: Tokenizer, loss_on: Any) -> None:
    text = "The fox <|im_end|> 世界"
    ids, labels = encode(Document(text), small, "unused", loss_on)
    assert ids.tolist() == labels.tolist() == [*small.encode(text), small.end_of_text]


def test_an_answer_of_no_weight_is_not_learnt(small: Tokenizer, later: Tokenizer) -> None:
    record = dataclasses.replace(CHAT, learnt=(False, True))
    for tokenizer in (small, later):
        assert learnt(tokenizer, record, loss_on="assistant") == "世界<|im_end|>\n"
    turns = "<|im_start|><|im_end|>\n<|im_start|>"
    assert learnt(later, record) == turns * 2 + "世界<|im_end|>\n"


def test_of_a_prompt_nothing_is_learnt(small: Tokenizer, later: Tokenizer) -> None:
    record = dataclasses.replace(CHAT, learnt=(False, True), prompt=True)
    for tokenizer in (small, later):
        for loss_on in get_args(LossOn):
            assert learnt(tokenizer, record, loss_on=loss_on) == "世界<|im_end|>\n"


def test_of_a_pair_the_completion_is_learnt(small: Tokenizer) -> None:
    ids, labels = encode(Pair("The fox", " jumps"), small)
    assert ids.tolist() == [*small.encode("The fox jumps"), small.end_of_text]
    assert labels.tolist() == [IGNORED] * len(small.encode("The fox")) + [
        *small.encode(" jumps"),
        small.end_of_text,
    ]


def test_what_says_something(small: Tokenizer, later: Tokenizer) -> None:
    """The marks of turns, learnt or not, do not."""
    for tokenizer in (small, later):
        for loss_on in get_args(LossOn):
            ids, labels = encode(CHAT, tokenizer, loss_on=loss_on)
            assert tokenizer.decode(ids[answered(ids, labels, tokenizer)]) == "a fox世界"
