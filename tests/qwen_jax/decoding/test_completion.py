"""Why answers end, log probabilities, and answers that every process of a run agrees on."""

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import convert
from qwen_jax import Sampling, generate, load, logits, memory
from qwen_jax.decoding import decode
from qwen_jax.decoding.completion import complete, stream_completions
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.text.tokenizer import Tokenizer
from tests.conftest import Golden
from tests.processes import joining
from tests.qwen_jax.memorised_model import memorised_model, with_defaults
from tests.qwen_jax.networks import GREEDY

SAID = "We🙂 quick brown fox"
NEW = 32  # new tokens of most answers here, so that few programs are compiled
TURNS = [("What?", "That."), ("<|im_start|>", "Fine <|im_end|>")]


@pytest.fixture(scope="module")
def talker(small: Tokenizer) -> Qwen:
    """A v1 chat model; only its vocabulary is not v1's."""
    text = f"\n {SAID}<|im_end|>"
    end = small.end_of_text
    return memorised_model(small, text, chat_format="chatml", eos_token_id=end, max_new_tokens=NEW)


# --- all there is to know about an answer ------------------------------------------------------
def test_why_an_answer_ended(talker: Qwen, small: Tokenizer) -> None:
    ask = lambda *prompts, ends, **how: [
        (answer.finish_reason, answer.text)
        for answer in complete(with_defaults(talker, eos_ids=ends), prompts, GREEDY, **how)
    ]
    newline, loop = small.encode("\n"), [0]
    ends = ((small.specials["<|im_end|>"],),)
    assert ask(newline, loop, ends=ends) == [("stop", f" {SAID}"), ("length", "!" * NEW)]
    assert ask(newline, loop, ends=((small.encode("ick")[0],),), stop="!!!") == [
        ("stop", " We🙂 quick"),
        ("stop", ""),
    ]
    assert ask(loop, loop, ends=((0,) * 8,), max_new_tokens=NEW) == [("stop", "!" * 7)] * 2


def test_stop_strings_count_after_min_tokens(talker: Qwen, small: Tokenizer) -> None:
    """As in the server, and as other stops do; what came before is text."""
    for least, text in ((0, ""), (3, "!" * 3), (NEW, "!" * NEW)):
        sampling = dataclasses.replace(GREEDY, min_tokens=least)
        (answer,) = complete(talker, [[0]], sampling, stop="!", max_new_tokens=NEW)
        assert answer.text == text
        assert answer.finish_reason == ("length" if least == NEW else "stop")


def test_an_answer_without_a_limit_ends_at_max_length(talker: Qwen) -> None:
    """Of prompt and answer together, where generation_config.json has that and no other limit."""
    params = with_defaults(talker, max_new_tokens=None, max_length=NEW + 1, eos_ids=())
    assert len(complete(params, [[0]], GREEDY)[0].tokens) == NEW
    assert len(complete(params, [[0]], GREEDY, max_new_tokens=NEW + 2)[0].tokens) == NEW + 2
    with pytest.raises(ValueError, match=r"the prompt has 33 tokens.* max_length 33; shorten it"):
        complete(params, [[0] * (NEW + 1)], GREEDY)


def test_the_checkpoint_chooses_the_type_of_the_cache(
    talker: Qwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, start = list[Any](), decode.start

    def watched(weights: Any, slots: int, length: int, dtype: Any, *how: Any) -> Any:
        asked.append(dtype)
        return start(weights, slots, length, dtype, *how)

    monkeypatch.setattr(decode, "start", watched)
    params = with_defaults(talker, cache_dtype="int8")
    complete(params, [[0]], GREEDY)
    complete(params, [[0]], GREEDY, cache_dtype="float32")
    assert asked == ["int8", "float32"]
    assert memory.dtype_of_cache(params) == "int8"


def test_an_end_with_the_last_token_is_a_stop(talker: Qwen, small: Tokenizer) -> None:
    count = len(small.encode(f" {SAID}")) + 1
    params = with_defaults(talker, eos_ids=((small.specials["<|im_end|>"],),))
    for most, reason in ((count, "stop"), (count - 1, "length")):
        for answers in stream_completions(
            params, [small.encode("\n")], GREEDY, max_new_tokens=most
        ):
            (answer,) = answers
        assert (len(answer.tokens), answer.finish_reason) == (most, reason)


def test_logprobs_are_for_those_who_ask(talker: Qwen) -> None:
    asks, other = complete(talker, [[5], [5]], [Sampling(temperature=0, logprobs=0), GREEDY])
    assert len(asks.logprobs) == len(asks.tokens)
    assert asks.top_logprobs == [{}] * len(asks.tokens)
    assert (other.logprobs, other.top_logprobs) == ([], [])


def test_logprobs_are_those_of_the_logits(talker: Qwen) -> None:
    warm = Sampling(temperature=50, logprobs=3, ignore_eos=True)
    samplings, prompts = [Sampling(temperature=0, logprobs=5), warm], [[5, 6], [9]]
    for prompt, answer, sampling in zip(
        prompts, complete(talker, prompts, samplings, seed=4), samplings, strict=True
    ):
        scores = logits(talker, [*prompt, *answer.tokens])[0, len(prompt) - 1 : -1]
        wanted = np.asarray(jax.nn.log_softmax(scores))
        chosen = wanted[range(NEW), answer.tokens]
        np.testing.assert_allclose(answer.logprobs, chosen, atol=1e-4)
        for place, top in enumerate(answer.top_logprobs):
            assert len(top) == sampling.logprobs
            best = np.sort(wanted[place])[::-1][: len(top)]
            np.testing.assert_allclose(list(top.values()), best, atol=1e-4)
            if sampling.temperature == 0:  # lm-eval asks that these be equal, not close
                assert top[answer.tokens[place]] == answer.logprobs[place] == max(top.values())


# --- several processes ---------------------------------------------------------------------------
PROCESS = (
    joining(devices=1)
    + """
import json
from qwen_jax import Sampling, generate, load
params = load(folder)
assert params.embed.sharding.mesh.size == 2
answers = [
    generate(params, [[5, 6, 7], [9]], Sampling(0), max_new_tokens=8),
    generate(params, [[5, 6, 7], [9]], Sampling(2.0), max_new_tokens=8, seed=[3, 2**40]),
    generate(params, [[5, 6, 7], [9]], Sampling(2.0), max_new_tokens=8),
]
print("answers", json.dumps(answers))
"""
)


def test_two_processes(golden: Golden, tmp_path: Path) -> None:
    """They share the network, and no word is said of who draws which random number."""
    folder = convert.to_native(golden("v1/base"), tmp_path / "native")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROCESS, str(rank), str(port), str(folder)],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    params, rows = load(folder, mesh=make_mesh(devices=jax.devices()[:1])), [[5, 6, 7], [9]]
    wanted = [
        generate(params, rows, Sampling(0), max_new_tokens=8),
        generate(params, rows, Sampling(2.0), max_new_tokens=8, seed=[3, 2**40]),
    ]
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    lines = [[s for s in out.splitlines() if s.startswith("answers")] for out in outputs]
    assert all(map(len, lines)), outputs
    one, other = (json.loads(line.removeprefix("answers")) for (line,) in lines)
    assert one == other
    assert one[:2] == wanted
    assert one[2] != one[1]
