"""From what a client asks to prompts of ids, for every kind of checkpoint."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_jax.text import chatml
from serve.api.window import check_texts
from serve.service import Model
from serve.text import hermes, react, thinking
from serve.text.calls import Otherwise, name
from serve.text.grammar import Grammar, Rules, of_rules
from serve.text.message import Parser
from serve.text.thinking import ThinkingParser, Thought

Message = Mapping[str, Any]
Functions = Sequence[Mapping[str, Any]]


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


def chat(
    model: Model,
    messages: Sequence[Message],
    tools: Tools,
    enable_thinking: bool | None = None,
    body: Grammar | None = None,
    add_generation_prompt: bool = True,
) -> Prompt:
    """The prompt of a conversation. body: what the text of the answer has to follow.

    Raises ValueError for messages that the checkpoint's form of prompts cannot hold, Unusable for
    functions whose parameters cannot be enforced.
    """
    messages = [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]
    if model.tokenizer.chat_template is not None:
        arguments: dict[str, Any] = {"add_generation_prompt": add_generation_prompt}
        if enable_thinking is not None:
            arguments["enable_thinking"] = enable_thinking
        return _modern(model, messages, tools, body, arguments)
    if model.defaults.chat_format != "chatml":
        raise ValueError(
            f"{model.name} is a base model, it continues text and answers nobody; "
            "use /v1/completions"
        )
    if enable_thinking is not None:
        raise ValueError("enable_thinking needs a chat template that knows it; this model has none")
    if not add_generation_prompt:
        raise ValueError("add_generation_prompt=false needs a chat template; this model has none")
    return _original(model, messages, tools, body)


def completion(model: Model, text: str | list[int], rules: Rules | None = None) -> Prompt:
    """A text to continue; control tokens in it count, as they do among ids."""
    if isinstance(text, str):
        check_texts(model, [text], "prompt")
    ids = model.tokenizer.encode(text, specials=True) if isinstance(text, str) else text
    if not ids:
        raise ValueError("the prompt is empty, wanted at least one token")
    if max(ids) >= model.config.vocab:
        raise ValueError(f"the prompt has id {max(ids)}, this model has {model.config.vocab}")
    return Prompt(ids, model.defaults.eos_ids, rules=rules)


def _original(
    model: Model, messages: Sequence[Message], tools: Tools, body: Grammar | None
) -> Prompt:
    """Qwen v1: ChatML, functions as ReAct."""
    tokenizer, defaults = model.tokenizer, model.defaults
    said = react.conversation(react.parallel(messages), tools.functions)
    window = defaults.max_window_size or chatml.MAX_WINDOW_SIZE
    if said.query is not None:
        ids = chatml.prompt_ids(tokenizer, said.query, said.history, said.system, window)
    else:  # the last reply goes on; it is no history, which the window may cut
        query, reply = said.history[-1]
        ids = chatml.prompt_ids(tokenizer, query, said.history[:-1], said.system, 2**31)
        ids += tokenizer.encode(reply)
    rules = functools.partial(react.rules, going_on=said.query is None)
    return Prompt(
        ids,
        _ends(model),
        (react.STOP,) if tools.functions else (),
        react.ReactParser if tools.functions else Parser,
        _rules(tools, body, rules),
    )


def _modern(
    model: Model,
    messages: Sequence[Message],
    tools: Tools,
    body: Grammar | None,
    arguments: Mapping[str, Any],
) -> Prompt:
    """Qwen1.5 and later: the checkpoint's own template, functions as Hermes has them."""
    described = [
        {"type": "function", "function": _openai(function)} for function in tools.functions
    ]
    said = [_for_template(message) for message in messages]
    ids = chatml.render(model.tokenizer, said, described or None, **arguments)
    thought = thinking.after(model.tokenizer, ids)

    def parser() -> Parser:
        read = hermes.HermesParser(tools.parallel) if tools.functions else Parser()
        return read if thought == "none" else ThinkingParser(read, thought == "begun")

    rules = functools.partial(hermes.rules, tokens=model.tokenizer.markup)
    return Prompt(ids, _ends(model), (), parser, _rules(tools, body, rules, thought))


def _rules(
    tools: Tools,
    body: Grammar | None,
    calls: Callable[[Functions, Otherwise], str],
    thought: Thought = "none",
) -> Rules | None:
    """What an answer has to follow: calls that must be, or that are strict; the body; nothing."""
    blamed = tools.field if tools.functions else "response_format"
    if tools.must:
        rules = calls(tools.must, "nothing")
    elif tools.functions and body is not None:
        rules = calls(tools.functions, "body")
    elif any(function.get("strict") for function in tools.functions):
        rules = calls(tools.functions, "text")
    elif body is not None:
        rules = "answer: @body"
    else:
        return None
    return Rules(of_rules(f"{thinking.rules(thought)}\n{rules}"), body, blamed)


def _ends(model: Model) -> tuple[tuple[int, ...], ...]:
    stops = ((id,) for id in chatml.stop_ids(model.tokenizer))
    return tuple(dict.fromkeys((*model.defaults.eos_ids, *stops)))


def _openai(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function in OpenAI's form, whatever form it came in."""
    description = function.get("description_for_model") or function.get("description")
    made = {"name": name(function), "parameters": function.get("parameters") or {}}
    return made if description is None else {**made, "description": description}


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
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments
