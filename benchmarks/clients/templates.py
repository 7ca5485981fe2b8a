"""Prompts with tools as the server makes them, and as transformers does, to the token.

    python -m benchmarks.clients.templates FOLDER...

FOLDER: tokenizer.json and tokenizer_config.json of a Qwen that has a chat template. Random lists
of tools and random conversations come in as a client sends them. Writes
benchmarks/results/templates.json; a prompt that differs ends with 1. Needs transformers.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any, cast

import tyro

from benchmarks.support import record
from qwen_jax.checkpoint import examine
from qwen_jax.decoding.generation_config import Defaults
from qwen_jax.text.tokenizer import Tokenizer
from serve.adapters import Loaded
from serve.api import chat, prompting
from serve.cache_memory import Room
from serve.schemas.requests import ChatRequest
from serve.service import Model

LISTS = 160
_WORDS = ["city", "weather", "Zürich", "天气", "<b>", "a&b", "it's", 'say "hi"', "\\n", "😀"]
_WORDS += ["x_y", "new\nline", "tab\t", "{{ x }}", "{% if %}", "null", "1e5", " ", "é", "\u2028"]
_KINDS = ["string", "integer", "number", "boolean", "array", "object", "null"]


class Maker:
    """Random tools and conversations."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def _maybe(self, chance: float = 0.5) -> bool:
        return self._random.random() < chance

    def _shuffled(self, fields: dict[str, Any]) -> dict[str, Any]:
        names = list(fields)
        self._random.shuffle(names)
        return {name: fields[name] for name in names}

    def _text(self, most: int = 8) -> str:
        return " ".join(self._random.choices(_WORDS, k=self._random.randint(1, most)))

    def _name(self) -> str:
        letters = self._random.choices("abcdefgh_XYZ0189-", k=self._random.randint(1, 20))
        return "f" + "".join(letters)

    def _value(self, depth: int = 2) -> Any:
        plain = [None, True, False, 0, -7, 2**40, 1.0, 1e-7, 0.1, 1e22, "", self._text(3)]
        if depth and self._maybe(0.3):
            return [self._value(depth - 1) for _ in range(self._random.randint(0, 3))]
        if depth and self._maybe(0.3):
            return {
                self._text(2): self._value(depth - 1) for _ in range(self._random.randint(0, 3))
            }
        return self._random.choice(plain)

    def _schema(self, depth: int = 3) -> dict[str, Any]:
        kind = self._random.choice(_KINDS)
        made: dict[str, Any] = {"type": kind if self._maybe(0.9) else [kind, "null"]}
        if self._maybe():
            made["description"] = self._text()
        if self._maybe(0.2):
            made["default"] = self._value()
        if self._maybe(0.2):
            made["enum"] = [self._value(0) for _ in range(3)]
        if kind == "array" and depth:
            made["items"] = self._schema(depth - 1)
        if kind == "object" and depth:
            count = self._random.randint(0, 4)
            made["properties"] = {self._text(1): self._schema(depth - 1) for _ in range(count)}
            made["required"] = list(made["properties"])[: self._random.randint(0, count)]
            if self._maybe(0.3):
                made["additionalProperties"] = self._maybe()
        return self._shuffled(made)

    def tools(self) -> list[dict[str, Any]]:
        return [self._tool() for _ in range(self._random.randint(1, 6))]

    def _tool(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self._name()}
        if self._maybe(0.8):
            function["description"] = self._text(20) if self._maybe(0.9) else ""
        if self._maybe(0.9):
            properties = {self._text(1): self._schema() for _ in range(self._random.randint(0, 5))}
            schema: dict[str, Any] = {"type": "object", "properties": properties}
            if self._maybe():
                schema["required"] = list(properties)[:2]
            function["parameters"] = self._shuffled(schema) if self._maybe(0.95) else {}
        if self._maybe(0.2):
            function["strict"] = self._maybe()
        return self._shuffled({"type": "function", "function": self._shuffled(function)})

    def messages(self, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = []
        if self._maybe():
            said.append({"role": "system", "content": self._text(20)})
        for _ in range(self._random.randint(1, 3)):
            said.append({"role": "user", "content": self._text(20)})
            if self._maybe(0.6):
                said += self._called(tools)
            if self._maybe(0.6):
                said.append({"role": "assistant", "content": self._text(20)})
        if said[-1]["role"] == "assistant":
            said.append({"role": "user", "content": self._text(20)})
        return said

    def _called(self, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Calls, with arguments as objects, and an answer to each."""
        calls = []
        for number in range(self._random.randint(1, 3)):
            name = self._random.choice(tools)["function"]["name"]
            arguments = {self._text(1): self._value() for _ in range(self._random.randint(0, 3))}
            function = {"name": name, "arguments": arguments}
            calls.append({"id": f"call_{number}", "type": "function", "function": function})
        content = self._text(9) if self._maybe() else ""
        answers = [
            {"role": "tool", "tool_call_id": call["id"], "content": self._text(20)}
            for call in calls
        ]
        return [{"role": "assistant", "content": content, "tool_calls": calls}, *answers]


def sent(message: dict[str, Any]) -> dict[str, Any]:
    """A message as OpenAI's API has it: arguments are text, what is not said is null."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(arguments)}}
        for call in message["tool_calls"]
        for arguments in [call["function"]["arguments"]]
    ]
    return {**message, "content": message["content"] or None, "tool_calls": calls}


def served(model: Model, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
    """The ids of the server's prompt."""
    body = {"messages": list(map(sent, messages)), "tools": tools}
    fields = ChatRequest.model_validate(json.loads(json.dumps(body)))
    said = [message.said() for message in fields.messages]
    return list(prompting.chat(model, said, chat.tools_of(fields)).ids)


def compare(*folders: Path) -> bool:
    """Whether all prompts are equal."""
    import transformers

    found: dict[str, dict[str, int]] = {}
    for folder in folders:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        _, config, _ = examine("demo")
        nothing = cast(Any, None)
        ours = Tokenizer.load(folder)
        assert ours is not None
        model = Model(
            "qwen",
            Loaded(),
            "generate",
            config,
            ours,
            Defaults(),
            Room(2**14, 64, 2**20),
            nothing,
            nothing,
            lambda length: 0,
        )
        differ, tokens, make = [], 0, Maker(len(found))
        for _ in range(LISTS):
            tools = make.tools()
            messages = make.messages(tools)
            ids = served(model, messages, tools)
            tokens += len(ids)
            wanted = theirs.apply_chat_template(
                messages, tools=tools, add_generation_prompt=True, return_dict=False
            )
            if ids != wanted:
                differ.append({"ours": ours.decode(ids), "theirs": ours.decode(wanted)})
        found[folder.name] = {"lists": LISTS, "tokens": tokens, "different": len(differ)}
        example = json.dumps(differ[:1], ensure_ascii=False, indent=1)
        print(f"{folder.name}: {found[folder.name]}, for example {example}")
    result = {"versions": record.versions("transformers", "jinja2"), "checkpoints": found}
    record.write("templates", result)
    return not any(one["different"] for one in found.values())


if __name__ == "__main__":
    sys.exit(0 if tyro.cli(compare) else 1)
