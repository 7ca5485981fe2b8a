"""Function calling for Qwen v1: ReAct, word for word as the original API server has it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_jax.chatml import DEFAULT_SYSTEM
from serve.tools.calls import Delta, Forced, alternatives, held_back

STOP = "Observation:"  # here the model would make up what the function answers

_TOOL = (
    "{name}: Call this tool to interact with the {title} API. What is the {title} API useful for? "
    "{description} Parameters: {parameters}"
)
_INSTRUCTION = """\
Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""
_ACTION, _INPUT, _OBSERVATION = "\nAction:", "\nAction Input:", "\nObservation:"
_ANSWER, _THOUGHT = "\nFinal Answer: ", "Thought: "


@dataclass(frozen=True)
class Conversation:
    """What a v1 prompt is made of."""

    query: str | None  # None: the last reply in the history goes on
    history: list[tuple[str, str]]
    system: str


def conversation(
    messages: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]] = ()
) -> Conversation:
    """Messages and functions in OpenAI's form; raises ValueError for what the form cannot hold."""
    if not any(message["role"] == "user" for message in messages):
        raise ValueError("Invalid request: Expecting at least one user message.")
    messages, system = list(messages), DEFAULT_SYSTEM
    if messages[0]["role"] == "system":
        system = _trimmed(messages.pop(0)["content"])
    turns: list[tuple[str, str]] = []  # (role, text)
    for place, message in enumerate(messages):
        _append(turns, message, bool(functions), last=place == len(messages) - 1)
    query = turns.pop()[1] if turns[-1][0] == "user" else None
    if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("Invalid request: user and assistant have to take turns.")
    said = [text for _, text in turns]
    history = list(zip(said[::2], said[1::2], strict=True))
    if functions:
        told = f"{_instruction(functions)}\n\nQuestion: "
        if history:
            history[-1] = (told + history[-1][0], history[-1][1])
        else:
            assert query is not None
            query = told + query
    return Conversation(query, history, system)


def _append(
    turns: list[tuple[str, str]], message: Mapping[str, Any], active: bool, last: bool
) -> None:
    role, content = message["role"], _trimmed(message.get("content"))
    if role == "user":
        turns.append(("user", content))
    elif role == "assistant":
        if not turns:
            raise ValueError("Invalid request: Expecting role user before role assistant.")
        if call := message.get("function_call"):
            if not content.startswith("Thought:"):
                content = _THOUGHT + content
            content += f"{_ACTION} {call['name']}{_INPUT} {call['arguments']}"
        elif active:
            content = f"Thought: I now know the final answer.{_ANSWER}{content}"
        if turns[-1][0] == "assistant":
            turns[-1] = ("assistant", f"{turns[-1][1]}\n{content}")
        else:
            turns.append(("assistant", content))
    elif role == "function":
        if not turns or turns[-1][0] != "assistant":
            raise ValueError("Invalid request: Expecting role assistant before role function.")
        going_on = "\nThought:" if last else ""
        turns[-1] = ("assistant", f"{turns[-1][1]}{_OBSERVATION} {content}{going_on}")
    else:
        raise ValueError(f"Invalid request: Incorrect role {role}.")


def _trimmed(content: str | None) -> str:
    return (content or "").lstrip("\n").rstrip()


def _instruction(functions: Sequence[Mapping[str, Any]]) -> str:
    lines, names = [], []
    for function in functions:
        if function.get("parameters") is None:
            raise ValueError("Invalid request: a function needs parameters.")
        names.append(name(function))
        lines.append(
            _TOOL.format(
                name=names[-1],
                title=function.get("name_for_human") or function.get("name"),
                description=function.get("description_for_model") or function.get("description"),
                parameters=json.dumps(function["parameters"], ensure_ascii=False),
            )
        )
    return _INSTRUCTION.format(tools="\n\n".join(lines), names=", ".join(names))


def name(function: Mapping[str, Any]) -> str:
    """What the model calls a function."""
    return str(function.get("name_for_model") or function["name"])


def forced(functions: Sequence[Mapping[str, Any]], going_on: bool) -> Forced:
    """An answer that calls one of the functions. going_on: the prompt ends with "Thought:"."""
    opening = " I need a tool." if going_on else "Thought: I need a tool."
    called = [{**function, "name": name(function)} for function in functions]
    return Forced(opening + _ACTION, alternatives(called, f" NAME{_INPUT} ", ""))


class Parser:
    """Finds the call, or the final answer, in a ReAct text as it grows.

    Thoughts before a call are content. Before a call or a final answer begins, nothing is known,
    so nothing comes out. Only the first call counts, as in the original.
    """

    def __init__(self) -> None:
        self._text, self._state, self._pending = "", "open", ""
        self.called = False

    def push(self, text: str) -> list[Delta]:
        if self._state == "done":
            return []
        if self._state == "answer":
            return [Delta(text)] if text else []
        if self._state == "call":
            return self._arguments(text)
        self._text += text
        place, action = self._text.find(_ANSWER), self._text.find(_ACTION)
        if place >= 0 and not 0 <= action < place:
            self._state = "answer"
            return self.push(self._text[place + len(_ANSWER) :])
        return self._find_call()

    def _find_call(self) -> list[Delta]:
        text = self._text
        action = text.find(_ACTION)
        given = text.find(_INPUT)
        if not 0 <= action < given:
            return []
        name = text[action + len(_ACTION) : given].strip()
        if not name:
            return []
        self._state, self.called = "call", True
        before = text[:action]
        thought = before.find(_THOUGHT)
        content = before[thought + len(_THOUGHT) :] if thought >= 0 else before
        rest = text[given + len(_INPUT) :].lstrip()
        return [Delta(content.strip(), 0, name), *self._arguments(rest)]

    def _arguments(self, text: str) -> list[Delta]:
        """Arguments are trimmed, so blanks wait for what follows them."""
        text = self._pending + text
        if not self._begun:
            text = text.lstrip()
        end = text.find(_OBSERVATION)
        if end >= 0:
            self._state, kept = "done", text[:end].rstrip()
        else:
            kept = text[: len(text) - held_back(text, (_OBSERVATION,))].rstrip()
            self._pending = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return [Delta(call=0, arguments=kept)] if kept else []

    _begun = False

    def finish(self) -> list[Delta]:
        """What is left once the text has ended."""
        if self._state == "call":
            kept = self._pending.rstrip()
            return [Delta(call=0, arguments=kept)] if kept else []
        if self._state != "open":
            return []
        place = self._text.rfind(_ANSWER)
        content = self._text[place + len(_ANSWER) :] if place >= 0 else self._text
        return [Delta(content)] if content else []


def parallel(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with tools as messages with functions; calls made together come in turn.

    Raises ValueError for a tool's answer that nobody asked for.
    """
    flat: list[dict[str, Any]] = []
    answers = {m["tool_call_id"]: m for m in messages if m["role"] == "tool"}
    asked: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in asked:
                raise ValueError(f"tool_call_id {message['tool_call_id']!r} answers no call")
        elif calls := message.get("tool_calls"):
            for place, call in enumerate(calls):
                content = message.get("content") if place == 0 else ""
                said = {"role": "assistant", "content": content, "function_call": call["function"]}
                flat.append(said)
                asked.add(call["id"])
                if call["id"] in answers:
                    answer = answers[call["id"]]["content"]
                    flat.append({"role": "function", "content": answer})
        else:
            flat.append(dict(message))
    return flat
