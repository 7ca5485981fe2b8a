"""Function calling for Qwen v1: ReAct, word for word as the original API server has it."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_jax.text.chatml import DEFAULT_SYSTEM
from serve.text import calls
from serve.text.calls import Otherwise, name
from serve.text.grammar import quoted
from serve.text.message import Call, Message, Parser, held_back

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
_MARKERS = (_ACTION, _INPUT, _ANSWER)


@dataclass(frozen=True)
class Conversation:
    """What a v1 prompt is made of."""

    query: str | None  # None: the last reply in the history goes on
    history: list[tuple[str, str]]
    system: str
    # later system messages, by the place of the query or reply that they precede
    asides: Mapping[int, list[str]] = field(default_factory=dict)

    @property
    def turns(self) -> list[list[tuple[str, str]]]:
        """(role, text) of each message, turn by turn; the last is open, or unanswered."""
        said = [text for pair in self.history for text in pair]
        said += [] if self.query is None else [self.query]
        turns: list[list[tuple[str, str]]] = []
        for place, text in enumerate(said):
            if place % 2 == 0:
                turns.append([])
            turns[-1] += [("system", aside) for aside in self.asides.get(place, ())]
            turns[-1].append(("assistant" if place % 2 else "user", text))
        turns[-1] += [("system", aside) for aside in self.asides.get(len(said), ())]
        return turns


def conversation(
    messages: Sequence[Mapping[str, Any]],
    functions: Sequence[Mapping[str, Any]] = (),
    going_on: bool = False,
) -> Conversation:
    """Messages and functions in OpenAI's form; raises ValueError for what the form cannot hold.

    going_on: the last message does, so blanks at its end count.
    """
    if not any(message["role"] == "user" for message in messages):
        raise ValueError("Invalid request: Expecting at least one user message.")
    first = list(itertools.takewhile(lambda message: message["role"] == "system", messages))
    system = "\n\n".join(_trimmed(message["content"]) for message in first) if first else None
    parts: list[tuple[str, list[str]]] = []  # (role, what makes its text)
    asides: dict[int, list[str]] = {}
    messages = messages[len(first) :]
    ends = max(place for place, message in enumerate(messages) if message["role"] != "system")
    for place, message in enumerate(messages):
        if message["role"] == "system":
            asides.setdefault(len(parts), []).append(_trimmed(message["content"]))
        else:
            _append(parts, message, bool(functions), place == ends, going_on)
    turns = [(role, "".join(texts)) for role, texts in parts]
    if turns[-1][0] == "assistant" and len(turns) in asides:  # it goes on, nothing stands behind
        asides.setdefault(len(turns) - 1, []).extend(asides.pop(len(turns)))
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
    return Conversation(query, history, DEFAULT_SYSTEM if system is None else system, asides)


def _append(
    turns: list[tuple[str, list[str]]],
    message: Mapping[str, Any],
    active: bool,
    last: bool,
    going_on: bool,
) -> None:
    role, given = message["role"], message.get("content") or ""
    content = given.lstrip("\n") if last and going_on else _trimmed(given)
    if role == "user":
        turns.append(("user", [content]))
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
            turns[-1][1].append(f"\n{content}")
        else:
            turns.append(("assistant", [content]))
    elif role == "function":
        if not turns or turns[-1][0] != "assistant":
            raise ValueError("Invalid request: Expecting role assistant before role function.")
        next_thought = "\nThought:" if last else ""
        turns[-1][1].append(f"{_OBSERVATION} {content}{next_thought}")
    else:
        raise ValueError(f"Invalid request: Incorrect role {role}.")


def _trimmed(content: str | None) -> str:
    return (content or "").lstrip("\n").rstrip()


def _instruction(functions: Sequence[Mapping[str, Any]]) -> str:
    lines, names = [], []
    for function in functions:
        names.append(name(function))
        lines.append(
            _TOOL.format(
                name=names[-1],
                title=function.get("name_for_human") or function.get("name", names[-1]),
                description=function.get("description_for_model")
                or function.get("description", ""),
                parameters=json.dumps(function.get("parameters", {}), ensure_ascii=False),
            )
        )
    return _INSTRUCTION.format(tools="\n\n".join(lines), names=", ".join(names))


def rules(functions: Sequence[Mapping[str, Any]], otherwise: Otherwise, going_on: bool) -> str:
    """Lark rules of an `answer` that calls a function, or is what it may be otherwise.

    going_on: the prompt ends with "Thought:".
    """
    need = f"{'' if going_on else 'Thought:'} I need a tool.{_ACTION}"
    shapes = {
        "nothing": f"{quoted(need)} function",
        "body": "acting function | answering @body",
        "text": "/(?s:.+)/ | acting function | answering /(?s:.*)/",
    }
    free = [  # text up to the first marker, which ends any other reading of it
        f"acting[lazy]: /(?s:.*)/ {quoted(_ACTION)}",
        f"answering[lazy]: /(?s:.*)/ {quoted(_ANSWER)}",
    ]
    return "\n".join(
        [
            f"answer: {shapes[otherwise]}",
            *calls.rules(functions, lambda name: f" {name}{_INPUT} "),
            *(free if otherwise != "nothing" else []),
        ]
    )


class ReactParser(Parser):
    """Finds the call, or the final answer, in a ReAct text as it grows.

    Thoughts before a call are content. Before a call or a final answer begins, nothing is known,
    so nothing comes out. Only the first call counts, as in the original.
    """

    def __init__(self) -> None:
        self._state = "open"
        self._parts: list[str] = []  # of the text so far, while the state is open
        self._size = 0
        self._tail = ""  # its last characters, where a marker may have begun
        self._met: dict[str, int] = {}  # where each marker first stands
        self._blanks: list[str] = []  # arguments are trimmed, so these wait for what follows them
        self._pending = ""  # behind the blanks, what may begin a marker
        self._begun = False  # any arguments yet

    def push(self, text: str) -> Message:
        if self.done:
            return Message()
        if self._state == "answer":
            return Message(text)
        if self._state == "call":
            return self._arguments(text)
        if not self._meets(text):
            return Message()
        whole, (action, given, answer) = "".join(self._parts), map(self._met.get, _MARKERS)
        if answer is not None and (action is None or answer < action):
            self._state = "answer"
            return Message(whole[answer + len(_ANSWER) :])
        if action is None or given is None or given < action:
            return Message()
        return self._call(whole, action, given)

    def _meets(self, text: str) -> bool:
        """Take in more of an open text; whether a marker is new in it."""
        self._parts.append(text)
        start, recent = self._size - len(self._tail), self._tail + text
        found = {marker: recent.find(marker) for marker in _MARKERS if marker not in self._met}
        new = {marker: start + at for marker, at in found.items() if at >= 0}
        self._met |= new
        self._size += len(text)
        self._tail = recent[-max(map(len, _MARKERS)) :]
        return bool(new)

    def _call(self, text: str, action: int, given: int) -> Message:
        name = text[action + len(_ACTION) : given].strip()
        if not name:
            return Message()
        self._state = "call"
        before = text[:action]
        thought = before.find(_THOUGHT)
        content = before[thought + len(_THOUGHT) :] if thought >= 0 else before
        found = Message(content.strip(), calls={0: Call(name)})
        found.add(self._arguments(text[given + len(_INPUT) :]))
        return found

    def _arguments(self, text: str) -> Message:
        text = self._pending + text
        if not self._begun:
            text = text.lstrip()
        end = text.find(_OBSERVATION)
        self.done = end >= 0
        if not self.done:
            end = len(text) - held_back(text, (_OBSERVATION,))
        self._pending = text[end:]
        kept = text[:end].rstrip()
        blanks = text[len(kept) : end]
        if not kept:
            self._blanks.append(blanks)
            return Message()
        told = "".join([*self._blanks, kept])
        self._blanks, self._begun = [blanks], True
        return _more(told)

    def finish(self) -> Message:
        """What is left once the text has ended."""
        if self._state == "call" and not self.done:
            return _more("".join([*self._blanks, self._pending]).rstrip())
        if self._state != "open":
            return Message()
        text = "".join(self._parts)
        at = text.rfind(_ANSWER)
        return Message(text[at + len(_ANSWER) :] if at >= 0 else text)


def _more(arguments: str) -> Message:
    return Message(calls={0: Call("", arguments)} if arguments else {})


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
            for index, call in enumerate(calls):
                content = message.get("content") if index == 0 else ""
                said = {"role": "assistant", "content": content, "function_call": call["function"]}
                flat.append(said)
                asked.add(call["id"])
                if call["id"] in answers:
                    answer = answers[call["id"]]["content"]
                    flat.append({"role": "function", "content": answer})
        else:
            flat.append(dict(message))
    return flat
