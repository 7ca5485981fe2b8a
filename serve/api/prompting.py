"""From what a client asks to prompts of ids, for every kind of checkpoint."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_jax.text import chatml
from qwen_jax.text.chatml import Ending
from qwen_jax.text.functions import openai_function
from qwen_jax.text.tokenizer import Tokenizer
from serve.api.window import check_texts
from serve.http.body import measure
from serve.service import Model
from serve.text import hermes, react, thinking
from serve.text.calls import Otherwise, outlined_function
from serve.text.grammar import Form, Grammar, Rules, of_rules, outlined
from serve.text.message import Parser
from serve.text.thinking import ThinkingParser, Thought

Message = Mapping[str, Any]
Functions = Sequence[Mapping[str, Any]]
_FILL = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@dataclass(frozen=True)
class Prompt:
    """A prompt of ids, and how to read what follows it."""

    ids: list[int]
    ends: tuple[tuple[int, ...], ...]  # sequences of ids that end the answer
    stop: tuple[str, ...] = ()  # texts that do, beside those the client names
    parser: Callable[[], Parser] = Parser
    rules: Rules | None = None  # that the answer has to follow


@dataclass(frozen=True)
class Tools:
    """Functions a model may call; must: it has to call one of these; parallel: or several."""

    functions: Functions = ()
    must: Functions = ()
    parallel: bool = True
    field: str = "tools"  # that they came in
    described: Sequence[Mapping[str, Any]] = ()  # the same, as templates show them


def chat(
    model: Model,
    messages: Sequence[Message],
    tools: Tools,
    enable_thinking: bool | None = None,
    form: Form | None = None,
    ending: Ending = "reply",
) -> Prompt:
    """The prompt of a conversation. form: what the text of the answer has to follow.

    Raises ValueError for messages that the checkpoint's form of prompts cannot hold, Unusable for
    functions whose parameters cannot be enforced.
    """
    messages = [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]
    template = model.tokenizer.chat_template
    if enable_thinking == thinking.always(template):
        enable_thinking = None  # asks for what happens anyway
    if template is not None:
        arguments: dict[str, Any] = {"add_generation_prompt": ending == "reply"}
        if ending == "open":
            arguments["continue_final_message"] = True
        if enable_thinking is not None:
            arguments["enable_thinking"] = enable_thinking
        return _modern(model, messages, tools, form, arguments)
    if model.defaults.chat_format != "chatml":
        raise ValueError(
            f"{model.name} is a base model, it continues text and answers nobody; "
            "use /v1/completions"
        )
    if enable_thinking is not None:
        raise ValueError("enable_thinking needs a chat template that knows it; this model has none")
    return _original(model, messages, tools, form, ending)


class NoFilling(ValueError):
    """The vocabulary has no tokens that say where the middle of a text is missing."""


def completion(
    model: Model, text: str | list[int], rules: Rules | None = None, suffix: str | None = None
) -> Prompt:
    """A text to continue, or to fill up to a suffix; control tokens in it count, as among ids."""
    if isinstance(text, str):
        check_texts(model, [text], "prompt")
    ids = model.tokenizer.encode_prompt(text) if isinstance(text, str) else text
    if not ids:
        raise ValueError("the prompt is empty, wanted at least one token")
    if max(ids) >= model.config.vocab:
        raise ValueError(f"the prompt has id {max(ids)}, this model has {model.config.vocab}")
    ends = model.defaults.eos_ids
    if suffix is not None:
        check_texts(model, [suffix], "suffix")
        ids, ends = _filling(model.tokenizer, ids, suffix), (*ends, *_file_ends(model.tokenizer))
    return Prompt(ids, tuple(dict.fromkeys(ends)), rules=rules)


def _filling(tokenizer: Tokenizer, ids: list[int], suffix: str) -> list[int]:
    """The form of Qwen2.5-Coder."""
    if missing := [name for name in _FILL if name not in tokenizer.specials]:
        raise NoFilling(
            f"suffix needs {', '.join(missing)}, and this model's vocabulary has no such tokens; "
            "leave it out"
        )
    before, after, middle = (tokenizer.specials[name] for name in _FILL)
    return [before, *ids, after, *tokenizer.encode(suffix, specials=True), middle]


def _file_ends(tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    """A middle ends where another text, or file, begins."""
    for end in (*_FILL, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|endoftext|>"):
        if end in tokenizer.specials:
            yield (tokenizer.specials[end],)


def _original(
    model: Model,
    messages: Sequence[Message],
    tools: Tools,
    form: Form | None,
    ending: Ending,
) -> Prompt:
    """Qwen v1: ChatML, functions as ReAct."""
    tokenizer, defaults = model.tokenizer, model.defaults
    said = react.conversation(react.parallel(messages), tools.functions, ending == "open")
    window = defaults.max_window_size or chatml.MAX_WINDOW_SIZE
    if said.query is None and ending == "reply":
        ending = "open"  # the last reply goes on
    ids = chatml.turns_ids(tokenizer, said.system, said.turns, window, ending)
    rules = functools.partial(react.rules, going_on=said.query is None)
    return Prompt(
        ids,
        _ends(model),
        (react.STOP,) if tools.functions else (),
        react.ReactParser if tools.functions else Parser,
        _rules(tools, form, rules),
    )


def _modern(
    model: Model,
    messages: Sequence[Message],
    tools: Tools,
    form: Form | None,
    arguments: Mapping[str, Any],
) -> Prompt:
    """Qwen1.5 and later: the checkpoint's own template, functions as Hermes has them."""
    described = tools.described or [
        {"type": "function", "function": openai_function(function)} for function in tools.functions
    ]
    said = [_for_template(message) for message in messages]
    ids = chatml.render(model.tokenizer, said, described or None, **arguments)
    thought = thinking.after(model.tokenizer, ids)
    if "continue_final_message" in arguments:
        thought = thinking.within(model.tokenizer, said[-1]["content"])

    calls = functools.partial(hermes.rules, tokens=model.tokenizer.markup)
    rules = _rules(tools, form, calls, thought)

    def parser() -> Parser:
        followed = rules is not None
        read = hermes.HermesParser(tools.parallel, followed) if tools.functions else Parser()
        return read if thought == "none" else ThinkingParser(read, thought == "begun")

    return Prompt(ids, _ends(model), (), parser, rules)


def _rules(
    tools: Tools,
    form: Form | None,
    calls: Callable[[Functions, Otherwise], str],
    thought: Thought = "none",
) -> Rules | None:
    """What an answer has to follow: calls that must be, or that are strict; the body; nothing."""
    strict = any(function.get("strict") for function in tools.functions)
    if form is None and not tools.must and not strict:
        return None
    body, body_blamed = (form.grammar, form.field) if form else (None, "")
    blamed = tools.field if tools.functions else body_blamed

    def written(functions: Functions, must: Functions) -> Grammar:
        if must:
            rules = calls(must, "nothing")
        elif functions:
            rules = calls(functions, "text" if body is None else "body")
        else:
            rules = "answer: @body"
        return of_rules(f"{thinking.rules(thought)}\n{rules}")

    loose = written(*([outlined_function(f) for f in fs] for fs in (tools.functions, tools.must)))
    instead = Rules(loose, body and outlined(body), blamed)
    return Rules(written(tools.functions, tools.must), body, blamed, body_blamed, instead)


def _ends(model: Model) -> tuple[tuple[int, ...], ...]:
    stops = ((id,) for id in chatml.stop_ids(model.tokenizer))
    return tuple(dict.fromkeys((*model.defaults.eos_ids, *stops)))


def _for_template(message: Message) -> dict[str, Any]:
    """A message as templates read it: arguments are objects, a function's answer is a tool's."""
    kept = {name: value for name, value in message.items() if value is not None}
    if kept["role"] == "function":
        kept["role"] = "tool"
    if call := kept.pop("function_call", None):
        kept["tool_calls"] = [{"type": "function", "function": call}]
    for call in kept.get("tool_calls", ()):
        call["function"] = {**call["function"], "arguments": _object(call["function"]["arguments"])}
    kept.setdefault("content", "")
    return kept


def _object(arguments: str) -> Any:
    try:
        measure(arguments.encode())  # a body within a body
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
