"""Chat: a user's questions in, answers out, with the history of the conversation."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from jax.typing import DTypeLike

from qwen_jax.decoding.completion import (
    Completion,
    Samplings,
    Seeds,
    answers,
    defaults_of,
    refuse_logprobs,
    text_tokenizer,
)
from qwen_jax.nn.model import Qwen
from qwen_jax.text import chatml

Turns = list[tuple[str, str]]  # (query, reply), oldest first
History = Iterable[tuple[str, str]]


@overload
def chat(  # type: ignore[overload-overlap]  # a str is a sequence of str
    params: Qwen,
    query: str,
    history: History | None = None,
    system: str | None = None,
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
    enable_thinking: bool | None = None,
) -> tuple[str, Turns]: ...
@overload
def chat(
    params: Qwen,
    query: Sequence[str],
    history: Sequence[History | None] | None = None,
    system: str | None = None,
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
    enable_thinking: bool | None = None,
) -> tuple[list[str], list[Turns]]: ...
def chat(
    params: Qwen,
    query: Any,
    history: Any = None,
    system: str | None = None,
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
    enable_thinking: bool | None = None,
) -> Any:
    """Answer a user: the reply, and the history to pass in next time.

    query: a question, or a list of questions of different users, which are answered together;
        then history is a list with a history for each, and lists come back.
    history: earlier (query, reply) turns; what does not fit a v1 checkpoint's window is left out
        of the prompt, oldest first, and stays in the history.
    system: default, "You are a helpful assistant." for v1, the chat template's own for the rest.
    enable_thinking: for chat templates that have it.
    The other keywords are those of `generate`. Control tokens in query, history and system are
    text.
    """
    refuse_logprobs(sampling)
    queries, histories = _conversations(query, history)
    prompts = [
        chat_prompt(params, one, turns, system, enable_thinking=enable_thinking)
        for one, turns in zip(queries, histories, strict=True)
    ]
    *_, found = answers(
        params,
        [ids for ids, _ in prompts],
        sampling,
        max_new_tokens=max_new_tokens,
        stop=stop,
        seed=seed,
        cache_dtype=cache_dtype,
        draft_tokens=draft_tokens,
        attention=attention,
        eos_ids=prompts[0][1],
        watch=True,
    )
    replies = [answer.text.strip() for answer in found]
    after = [
        [*turns, (one, reply)]
        for one, turns, reply in zip(queries, histories, replies, strict=True)
    ]
    return (replies[0], after[0]) if isinstance(query, str) else (replies, after)


def stream_chat(
    params: Qwen,
    query: str,
    history: History | None = None,
    system: str | None = None,
    sampling: Samplings = None,
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    seed: Seeds = None,
    cache_dtype: DTypeLike | None = None,
    draft_tokens: int | None = None,
    attention: str | None = None,
    enable_thinking: bool | None = None,
) -> Iterator[Completion]:
    """The answer of `chat` as it grows: one Completion, again and again, its text ever longer."""
    if not isinstance(query, str):
        raise ValueError(f"stream_chat takes one question, got {type(query).__name__}; use chat")
    ids, stops = chat_prompt(params, query, history, system, enable_thinking=enable_thinking)
    growing = answers(
        params,
        [ids],
        sampling,
        max_new_tokens=max_new_tokens,
        stop=stop,
        seed=seed,
        cache_dtype=cache_dtype,
        draft_tokens=draft_tokens,
        attention=attention,
        eos_ids=stops,
        watch=True,
    )
    for (answer,) in growing:
        yield answer


def chat_prompt(
    params: Qwen,
    query: str,
    history: History | None = None,
    system: str | None = None,
    *,
    enable_thinking: bool | None = None,
) -> tuple[list[int], tuple[tuple[int, ...], ...]]:
    """The ids that ask for an answer to `query`, and the sequences of ids that end the answer."""
    tokenizer, defaults = text_tokenizer(params), defaults_of(params)
    if defaults.chat_format == "raw":
        raise ValueError(
            "this is a base model (its chat_format is raw), it continues text and answers nobody; "
            "use generate, or a Chat checkpoint"
        )
    if tokenizer.chat_template is None and defaults.chat_format is None:
        raise ValueError("this checkpoint has no chat template and no chat_format; use generate")
    messages = [{"role": "system", "content": system}] if system is not None else []
    for question, answer in history or ():
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": query})
    asked: dict[str, Any] = {}
    if enable_thinking is not None:
        asked["enable_thinking"] = enable_thinking
    if tokenizer.chat_template is None:
        asked["max_window_size"] = defaults.max_window_size
    ids = chatml.render(tokenizer, messages, **asked)
    stops = ((id,) for id in chatml.stop_ids(tokenizer))
    return ids, tuple(dict.fromkeys((*defaults.eos_ids, *stops)))


def _conversations(query: Any, history: Any) -> tuple[list[str], list[Turns]]:
    """Questions, and a history for each."""
    if isinstance(query, str):
        return [query], [_turns(history)]
    queries = list(query) if isinstance(query, Iterable) else []
    if not queries or not all(isinstance(one, str) for one in queries):
        raise ValueError(f"got the query {query!r}, wanted a text or a list of texts")
    histories = [None] * len(queries) if history is None else list(history)
    if len(histories) != len(queries):
        raise ValueError(f"got {len(histories)} histories for {len(queries)} questions")
    return queries, [_turns(one) for one in histories]


def _turns(history: Any) -> Turns:
    turns = list(history or ())
    for turn in turns:
        pair = isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2
        if not pair or not all(isinstance(part, str) for part in turn):
            raise ValueError(f"got {turn!r} in a history, wanted (query, reply)")
    return turns
