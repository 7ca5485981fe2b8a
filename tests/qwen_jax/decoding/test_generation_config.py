"""generation_config.json: what the published files ask for, and what none may ask for."""

from typing import Any

import pytest

from qwen_jax import generate
from qwen_jax.decoding.generation_config import Defaults
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.text.tokenizer import Tokenizer
from tests.qwen_jax.memorised_model import memorised_model

END_OF_TEXT, IM_END = 151643, 151645
V1_BASE = {  # Qwen/Qwen-7B
    "chat_format": "raw",
    "eos_token_id": END_OF_TEXT,
    "pad_token_id": END_OF_TEXT,
    "stop_words_ids": [[END_OF_TEXT]],
    "max_new_tokens": 512,
    "do_sample": True,
    "top_k": 0,
    "top_p": 0.8,
    "transformers_version": "4.31.0",
}
V1_CHAT = {  # Qwen/Qwen-14B-Chat
    "chat_format": "chatml",
    "eos_token_id": END_OF_TEXT,
    "pad_token_id": END_OF_TEXT,
    "max_window_size": 6144,
    "max_new_tokens": 512,
    "do_sample": True,
    "top_k": 0,
    "top_p": 0.8,
    "repetition_penalty": 1.1,
    "transformers_version": "4.31.0",
}
V1_FIRST_CHAT = V1_BASE | {  # Qwen/Qwen-7B-Chat of August 2023
    "chat_format": "chatml",
    "max_context_size": 1024,
    "max_generate_size": 512,
    "decay_factor": 0.9,
    "decay_bound": 0.1,
    "decay_start": 0,
    "decay_threshold": 0.5,
}
QWEN25_CHAT = {  # Qwen/Qwen2.5-7B-Instruct
    "bos_token_id": END_OF_TEXT,
    "pad_token_id": END_OF_TEXT,
    "do_sample": True,
    "eos_token_id": [IM_END, END_OF_TEXT],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "transformers_version": "4.37.0",
}
QWEN2_BASE = {  # Qwen/Qwen2-7B
    "bos_token_id": END_OF_TEXT,
    "do_sample": False,
    "eos_token_id": END_OF_TEXT,
    "max_new_tokens": 2048,
    "transformers_version": "4.37.0",
}
GREEDY = Sampling(temperature=0)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (V1_BASE, Defaults(Sampling(top_p=0.8), ((END_OF_TEXT,),), 512, "raw")),
        (
            V1_CHAT,
            Defaults(
                Sampling(top_p=0.8, repetition_penalty=1.1), ((END_OF_TEXT,),), 512, "chatml", 6144
            ),
        ),
        (V1_FIRST_CHAT, Defaults(Sampling(top_p=0.8), ((END_OF_TEXT,),), 512, "chatml")),
        (
            QWEN25_CHAT,
            Defaults(
                Sampling(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05),
                ((IM_END,), (END_OF_TEXT,)),
            ),
        ),
        (QWEN2_BASE, Defaults(GREEDY, ((END_OF_TEXT,),), 2048)),
        ({}, Defaults(GREEDY)),
    ],
    ids=["v1", "v1-chat", "v1-first-chat", "qwen2.5-chat", "qwen2", "nothing"],
)
def test_published_files(content: dict[str, Any], wanted: Defaults) -> None:
    assert Defaults.from_hf(content) == wanted


@pytest.mark.parametrize(
    ("content", "sampling"),
    [
        ({}, Sampling(top_k=50)),  # transformers' own default
        ({"top_k": 0}, Sampling()),
        ({"top_k": None}, Sampling()),
        ({"top_k": 5, "min_p": 0.1}, Sampling(top_k=5, min_p=0.1)),
        ({"top_k": 0, "min_new_tokens": 3}, Sampling(min_tokens=3)),
        ({"top_k": 0, "temperature": None, "top_p": None, "min_p": None}, Sampling()),
    ],
)
def test_sampling(content: dict[str, Any], sampling: Sampling) -> None:
    assert Defaults.from_hf({"do_sample": True} | content).sampling == sampling


@pytest.mark.parametrize("do_sample", [{}, {"do_sample": False}, {"do_sample": None}])
def test_without_do_sample_only_penalties_count(do_sample: dict[str, Any]) -> None:
    """transformers ignores what only sampling reads; the files of many base models have it."""
    warm = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1}
    made = Defaults.from_hf(do_sample | warm | {"repetition_penalty": 1.05, "min_new_tokens": 2})
    assert made.sampling == Sampling(temperature=0, repetition_penalty=1.05, min_tokens=2)


def test_null_is_absent() -> None:
    names = (
        "eos_token_id stop_words_ids max_new_tokens min_new_tokens chat_format max_window_size "
        "repetition_penalty num_beams num_return_sequences no_repeat_ngram_size typical_p"
    )
    assert Defaults.from_hf(dict.fromkeys(names.split())) == Defaults(GREEDY)


def test_each_end_is_kept_once() -> None:
    content = {"eos_token_id": [1, 2, None], "stop_words_ids": [[3, 4], [1], [3, 4]]}
    assert Defaults.from_hf(content).eos_ids == ((1,), (2,), (3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_beams": 4}, "num_beams is 4; only 1 is supported"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2; only 1"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size is 3; only 0"),
        ({"typical_p": 0.9}, "typical_p is 0.9; only 1.0"),
        ({"penalty_alpha": 0.6}, r"unknown keys \['penalty_alpha'\]"),
        ({"do_sample": 1}, "do_sample is 1, expected true or false"),
        ({"do_sample": True, "temperature": 0}, "temperature is 0, expected a number above 0"),
        ({"do_sample": True, "top_k": -1}, "top_k is -1, expected a whole number from 0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p is 1.5, expected a number from"),
        ({"do_sample": True, "min_p": "x"}, "min_p is 'x', expected a number"),
        ({"repetition_penalty": -1}, "repetition_penalty is -1, expected a number above 0"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1, expected a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected a whole number above 0"),
        ({"max_window_size": 1.5}, "max_window_size is 1.5, expected a whole number above 0"),
        ({"chat_format": "alpaca"}, "chat_format is 'alpaca', expected 'raw' or 'chatml'"),
        ({"eos_token_id": "a"}, "eos_token_id is 'a', expected a token id, or a list"),
        ({"eos_token_id": True}, "eos_token_id is True, expected a token id"),
        ({"eos_token_id": {}}, r"eos_token_id is \{\}, expected a token id"),
        ({"stop_words_ids": 5}, "stop_words_ids is 5, expected a list"),
        ({"stop_words_ids": [5]}, r"stop_words_ids\[0\] is 5, expected a sequence of 1 to 8 ids"),
        ({"stop_words_ids": [[]]}, r"stop_words_ids\[0\] is \[\], expected a sequence"),
        ({"stop_words_ids": [[1] * 9]}, "expected a sequence of 1 to 8 ids"),
    ],
)
def test_what_we_do_not_do_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Defaults.from_hf(content)


def test_every_problem_is_named_at_once() -> None:
    content = {"num_beams": 4, "top_k": -1, "do_sample": True, "eos_token_id": "a", "wings": 2}
    with pytest.raises(ValueError) as caught:
        Defaults.from_hf(content | {"max_new_tokens": 0, "chat_format": "alpaca"})
    for name in ("num_beams", "top_k", "'a'", "wings", "max_new_tokens", "chat_format"):
        assert name in str(caught.value)
    assert str(caught.value).startswith("generation_config.json cannot be read: ")


def test_a_sequence_of_stop_words_ends_the_answer_that_completes_it(small: Tokenizer) -> None:
    brown = small.encode(" brown")
    assert len(brown) > 1
    said = "\nquick brown fox"
    params = memorised_model(small, said, stop_words_ids=[brown, [brown[-1], 0]], max_new_tokens=32)
    assert generate(params, small.encode("\n")) == small.encode("quick brown")
    assert generate(params, "\n") == "quick brown"
    assert generate(params, "\n", Sampling(temperature=0, ignore_eos=True)).startswith(said[1:])
