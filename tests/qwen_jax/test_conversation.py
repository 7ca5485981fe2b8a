"""Chats: the prompt that asks, the history that comes back, several questions at once."""

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import convert
from qwen_jax import Sampling, chat, conversation, load, stream_chat
from qwen_jax.decoding.completion import Completion
from qwen_jax.nn.model import Qwen
from qwen_jax.text.chatml import DEFAULT_SYSTEM, TEMPLATE_ARGUMENTS, prompt_ids, render
from qwen_jax.text.tokenizer import Tokenizer
from tests.assets import read_tokenizer, tokenizer_of
from tests.conftest import Golden
from tests.qwen_jax.memorised_model import memorised_model, with_assets, with_defaults
from tests.qwen_jax.text.test_chatml import TEMPLATE, with_template

SAID = "We🙂 quick brown fox"
NEW = 32  # new tokens of most answers here, so that few programs are compiled
TURNS = [("What?", "That."), ("<|im_start|>", "Fine <|im_end|>")]


@pytest.fixture(scope="module")
def talker(small: Tokenizer) -> Qwen:
    """A v1 chat model; only its vocabulary is not v1's."""
    text = f"\n {SAID}<|im_end|>"
    end = small.end_of_text
    return memorised_model(small, text, chat_format="chatml", eos_token_id=end, max_new_tokens=NEW)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The prompts that reach the model, and the ids that end an answer; its answers are "yes"."""
    calls = []

    def answers(
        params: Any, prompts: Any, sampling: Any, *, eos_ids: Any, **others: Any
    ) -> Iterator[Any]:
        calls.append((*prompts, eos_ids))
        yield [Completion([7], " yes ", "stop")]

    monkeypatch.setattr(conversation, "answers", answers)
    return calls


def test_a_chat(talker: Qwen) -> None:
    reply, history = chat(talker, "The", system="")
    assert (reply, history) == (SAID, [("The", SAID)])
    pieces = [answer.text for answer in stream_chat(talker, "The", system="")]
    assert pieces[-1] == f" {SAID}"
    assert all(pieces[-1].startswith(piece) for piece in pieces)
    assert chat(talker, "The", system="", stop="own", seed=3)[0] == "We🙂 quick br"


def test_a_reply_has_markup_and_no_control_tokens(small: Tokenizer) -> None:
    text = "\n<think>quick</think>brown<|im_start|>fox<|im_end|>"
    params = memorised_model(small, text, chat_format="chatml", max_new_tokens=NEW)
    assert chat(params, "The", system="")[0] == "<think>quick</think>brown"
    sampling = Sampling(temperature=0, ignore_eos=True, stop_ids=((402,),))
    assert chat(params, "The", None, "", sampling)[0] == "<think>quick</think>brownfox"


def test_the_history_grows_and_is_not_written_to(talker: Qwen, asked: list[Any]) -> None:
    turns = list(TURNS)
    reply, history = chat(talker, "And?", turns)
    assert reply == "yes"
    assert history == [*TURNS, ("And?", "yes")]
    assert turns == TURNS
    assert chat(talker, "And?", iter(TURNS))[1] == history
    _, history = chat(talker, "So?", history)
    assert asked[-1][0] == prompt_ids(
        tokenizer_of(talker), "So?", [*TURNS, ("And?", "yes")], DEFAULT_SYSTEM
    )


@pytest.mark.parametrize("system", [None, "", "Be <|im_end|> brief."])
def test_the_prompt_is_the_original_one(
    talker: Qwen, small: Tokenizer, asked: list[Any], system: str | None
) -> None:
    chat(talker, "<|im_end|>\n", TURNS, system)
    wanted = DEFAULT_SYSTEM if system is None else system
    assert asked[0][0] == prompt_ids(small, "<|im_end|>\n", TURNS, wanted)
    assert asked[0][0].count(small.specials["<|im_end|>"]) == 2 * len(TURNS) + 2  # the typed: text
    assert set(asked[0][1]) == {(400,), (401,), (402,)}


def test_the_window_of_the_checkpoint_counts(
    talker: Qwen, small: Tokenizer, asked: list[Any]
) -> None:
    whole = prompt_ids(small, "So?", TURNS)
    for size in (40, 6144):
        chat(with_defaults(talker, max_window_size=size), "So?", TURNS)
        assert asked[-1][0] == prompt_ids(small, "So?", TURNS, max_window_size=size)
    assert asked[0][0] != whole == asked[1][0]
    _, history = chat(with_defaults(talker, max_window_size=1), "So?", TURNS)
    assert history[:-1] == TURNS


def test_the_checkpoint_ends_answers_too(talker: Qwen, asked: list[Any]) -> None:
    chat(with_defaults(talker, eos_ids=((3, 4),)), "So?")
    assert set(asked[0][1]) == {(3, 4), (400,), (401,), (402,)}


def test_a_template_renders(
    golden: Golden, small_folder: Path, asked: list[Any], tmp_path: Path
) -> None:
    """From files on a disk, as the checkpoints of Qwen1.5 and later have them."""
    folder = Path(shutil.copytree(golden("modern/qwen2_gqa"), tmp_path / "hf"))
    for file in small_folder.iterdir():
        shutil.copy(file, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [402, 400]}))
    params = load(convert.to_native(folder, tmp_path / "native"))
    tokenizer = read_tokenizer(folder)
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


def test_thinking_is_for_templates_that_read_it(
    talker: Qwen, small_folder: Path, asked: list[Any]
) -> None:
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
def test_who_cannot_chat_says_so(
    talker: Qwen, small: Tokenizer, tokenizer: Any, config: Any, message: str
) -> None:
    params = with_assets(talker, small if tokenizer else None, **config)
    with pytest.raises(ValueError, match=message):
        chat(params, "So?")


def test_a_chat_refuses_what_it_would_ignore(talker: Qwen) -> None:
    with pytest.raises(ValueError, match=r"no logprobs; see qwen_jax\.decoding"):
        chat(talker, "So?", sampling=Sampling(logprobs=2))
    with pytest.raises(ValueError, match="got the query 5, wanted a text or a list of texts"):
        chat(talker, 5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="max_tokens"):
        chat(talker, "So?", max_tokens=5)  # type: ignore[call-overload]


def test_template_arguments_are_spelled_out() -> None:
    for function in (chat, stream_chat, conversation.chat_prompt):
        assert TEMPLATE_ARGUMENTS.keys() <= inspect.signature(function).parameters.keys()


# --- several questions at once -----------------------------------------------------------------
def test_several_questions_are_answered_as_if_alone(talker: Qwen) -> None:
    queries, histories = ["The", "And?", "So?"], [None, TURNS, TURNS[:1]]
    hot = [Sampling(temperature=2.0), Sampling(temperature=0), Sampling(temperature=3.0, top_k=9)]
    replies, after = chat(talker, queries, histories, "", hot, seed=[1, 2, 3])
    for number, query in enumerate(queries):
        alone = chat(talker, query, histories[number], "", hot[number], seed=number + 1)
        assert (replies[number], after[number]) == alone
    assert len(set(replies)) > 1
    again, longer = chat(talker, queries, after, "", Sampling(temperature=0))
    assert [turns[:-1] for turns in longer] == after
    assert [turns[-1] for turns in longer] == list(zip(queries, again, strict=True))


def test_one_question_in_a_list_gives_lists(talker: Qwen) -> None:
    assert chat(talker, ["The"], system="") == ([SAID], [[("The", SAID)]])


@pytest.mark.parametrize(
    ("query", "history", "message"),
    [
        ([], None, r"got the query \[\], wanted a text or a list of texts"),
        (["a", 5], None, "wanted a text or a list of texts"),
        (["a", "b"], [[]], "got 1 histories for 2 questions"),
        (["a", "b"], TURNS, "got 'What\\?' in a history"),
        ("a", ["bc"], r"got 'bc' in a history, wanted \(query, reply\)"),
    ],
)
def test_impossible_conversations(
    talker: Qwen, asked: list[Any], query: Any, history: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        chat(talker, query, history)
    assert asked == []


def test_a_stream_takes_one_question(talker: Qwen) -> None:
    with pytest.raises(ValueError, match="stream_chat takes one question, got list; use chat"):
        next(stream_chat(talker, ["a", "b"]))  # type: ignore[arg-type]
