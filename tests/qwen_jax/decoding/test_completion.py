"""Chats, log probabilities, and answers that every process of a run agrees on."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import convert
from qwen_jax import Sampling, chat, generate, load, logits
from qwen_jax.conversation import stream_chat
from qwen_jax.decoding.completion import Completion, complete
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.text.chatml import DEFAULT_SYSTEM, prompt_ids, render
from qwen_jax.text.tokenizer import Tokenizer
from tests.processes import joining
from tests.qwen_jax.memorised_model import memorised_model, with_assets, with_defaults
from tests.qwen_jax.networks import GREEDY
from tests.qwen_jax.text.test_chatml import TEMPLATE, with_template

SAID = "We🙂 quick brown fox"
NEW = 32  # new tokens of most answers here, so that few programs are compiled
TURNS = [("What?", "That."), ("<|im_start|>", "Fine <|im_end|>")]


@pytest.fixture(scope="module")
def talker(small):
    """A v1 chat model; only its vocabulary is not v1's."""
    text = f"\n {SAID}<|im_end|>"
    end = small.end_of_text
    return memorised_model(small, text, chat_format="chatml", eos_token_id=end, max_new_tokens=NEW)


@pytest.fixture
def asked(monkeypatch):
    """The prompts that reach the model, and the ids that end an answer; its answers are "yes"."""
    calls = []

    def answers(params, prompts, sampling, *, eos_ids, **others):
        calls.append((*prompts, eos_ids))
        yield [Completion([7], " yes ", "stop")]

    monkeypatch.setattr(conversation, "answers", answers)
    return calls


# --- chat ----------------------------------------------------------------------------------------
def test_a_chat(talker):
    reply, history = chat(talker, "The", system="")
    assert (reply, history) == (SAID, [("The", SAID)])
    pieces = [answer.text for answer in stream_chat(talker, "The", system="")]
    assert pieces[-1] == f" {SAID}"
    assert all(pieces[-1].startswith(piece) for piece in pieces)
    assert chat(talker, "The", system="", stop="own", seed=3)[0] == "We🙂 quick br"


def test_a_reply_has_markup_and_no_control_tokens(small):
    text = "\n<think>quick</think>brown<|im_start|>fox<|im_end|>"
    params = memorised_model(small, text, chat_format="chatml", max_new_tokens=NEW)
    assert chat(params, "The", system="")[0] == "<think>quick</think>brown"
    sampling = Sampling(temperature=0, ignore_eos=True, stop_ids=((402,),))
    assert chat(params, "The", None, "", sampling)[0] == "<think>quick</think>brownfox"


def test_the_history_grows_and_is_not_written_to(talker, asked):
    turns = list(TURNS)
    reply, history = chat(talker, "And?", turns)
    assert reply == "yes"
    assert history == [*TURNS, ("And?", "yes")]
    assert turns == TURNS
    assert chat(talker, "And?", iter(TURNS))[1] == history
    _, history = chat(talker, "So?", history)
    assert asked[-1][0] == prompt_ids(
        talker.assets.tokenizer, "So?", [*TURNS, ("And?", "yes")], DEFAULT_SYSTEM
    )


@pytest.mark.parametrize("system", [None, "", "Be <|im_end|> brief."])
def test_the_prompt_is_the_original_one(talker, small, asked, system):
    chat(talker, "<|im_end|>\n", TURNS, system)
    wanted = DEFAULT_SYSTEM if system is None else system
    assert asked[0][0] == prompt_ids(small, "<|im_end|>\n", TURNS, wanted)
    assert asked[0][0].count(small.specials["<|im_end|>"]) == 2 * len(TURNS) + 2  # the typed: text
    assert set(asked[0][1]) == {(400,), (401,), (402,)}


def test_the_window_of_the_checkpoint_counts(talker, small, asked):
    whole = prompt_ids(small, "So?", TURNS)
    for size in (40, 6144):
        chat(with_defaults(talker, max_window_size=size), "So?", TURNS)
        assert asked[-1][0] == prompt_ids(small, "So?", TURNS, max_window_size=size)
    assert asked[0][0] != whole == asked[1][0]
    _, history = chat(with_defaults(talker, max_window_size=1), "So?", TURNS)
    assert history[:-1] == TURNS


def test_the_checkpoint_ends_answers_too(talker, asked):
    chat(with_defaults(talker, eos_ids=((3, 4),)), "So?")
    assert set(asked[0][1]) == {(3, 4), (400,), (401,), (402,)}


def test_a_template_renders(golden, small_folder, asked, tmp_path):
    """From files on a disk, as the checkpoints of Qwen1.5 and later have them."""
    folder = Path(shutil.copytree(golden("modern/qwen2_gqa"), tmp_path / "hf"))
    for file in small_folder.iterdir():
        shutil.copy(file, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [402, 400]}))
    params = load(convert.to_native(folder, tmp_path / "native"))
    tokenizer = Tokenizer.load(folder)
    messages = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "That."},
        {"role": "user", "content": "So <|im_end|>?"},
    ]
    chat(params, "So <|im_end|>?", TURNS[:1])
    assert asked[-1] == (render(tokenizer, messages), ((402,), (400,), (401,)))
    system = [{"role": "system", "content": ""}]
    chat(params, "So <|im_end|>?", TURNS[:1], "")
    assert asked[-1][0] == render(tokenizer, system + messages)
    chat(params, "So <|im_end|>?", TURNS[:1], enable_thinking=False)
    assert asked[-1][0] == render(tokenizer, messages, enable_thinking=False)
    assert asked[-1][0] != asked[0][0]


def test_thinking_is_for_templates_that_read_it(talker, small_folder, asked):
    other = with_template(small_folder, "{{ messages[0].content }}")
    for params in (talker, with_assets(talker, other)):
        with pytest.raises(ValueError, match="enable_thinking"):
            chat(params, "So?", enable_thinking=True)
    assert asked == []


@pytest.mark.parametrize(
    ("tokenizer", "config", "message"),
    [
        (True, {"chat_format": "raw"}, "this is a base model .* use generate, or a Chat check"),
        (True, {}, "no chat template and no chat_format; use generate"),
        (False, {"chat_format": "chatml"}, "this checkpoint has no tokenizer"),
    ],
)
def test_who_cannot_chat_says_so(talker, small, tokenizer, config, message):
    params = with_assets(talker, small if tokenizer else None, **config)
    with pytest.raises(ValueError, match=message):
        chat(params, "So?")


def test_a_chat_refuses_what_it_would_ignore(talker):
    with pytest.raises(ValueError, match=r"no logprobs; see qwen_jax\.completion\.complete"):
        chat(talker, "So?", sampling=Sampling(logprobs=2))
    with pytest.raises(ValueError, match="user content of type int, wanted a string"):
        chat(talker, 5)
    with pytest.raises(TypeError, match="max_tokens"):
        chat(talker, "So?", max_tokens=5)


# --- all there is to know about an answer ------------------------------------------------------
def test_why_an_answer_ended(talker, small):
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


def test_an_end_with_the_last_token_is_a_stop(talker, small):
    count = len(small.encode(f" {SAID}")) + 1
    params = with_defaults(talker, eos_ids=((small.specials["<|im_end|>"],),))
    for most, reason in ((count, "stop"), (count - 1, "length")):
        for answers in stream_completions(
            params, [small.encode("\n")], GREEDY, max_new_tokens=most
        ):
            (answer,) = answers
        assert (len(answer.tokens), answer.finish_reason) == (most, reason)


def test_logprobs_are_for_those_who_ask(talker):
    asks, other = complete(talker, [[5], [5]], [Sampling(temperature=0, logprobs=0), GREEDY])
    assert len(asks.logprobs) == len(asks.tokens)
    assert asks.top_logprobs == [{}] * len(asks.tokens)
    assert other.logprobs == other.top_logprobs == []


def test_logprobs_are_those_of_the_logits(talker):
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


def test_two_processes(golden, tmp_path):
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
