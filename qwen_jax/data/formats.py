"""One item of a data file to one record: a conversation in the OpenAI form, or a document.

Three formats, told apart by the field that holds the content: "conversations" (the original's and
ShareGPT's), "messages" (OpenAI's) and "text".
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from qwen_jax.files.problems import Wrong
from qwen_jax.files.strict_json import decode

Item = dict[str, Any]

SPEAKERS = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
    **dict.fromkeys(("observation", "function_response", "tool_response", "tool"), "tool"),
    "system": "system",
}
MESSAGE_FIELDS = {
    "system": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "tool_calls", "reasoning_content"},
    "tool": {"role", "content", "name", "tool_call_id"},
}
NOTES = {"id"}  # fields that need no notice
KINDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True)
class Conversation:
    """Messages as `transcript` takes them; `unread` names fields of the item that say nothing."""

    messages: list[Item]
    tools: list[Item] = field(default_factory=list)
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Document:
    text: str
    unread: frozenset[str] = frozenset()


Record = Conversation | Document


def recognise(item: Any) -> str:
    """The format of an item. Raises Wrong, whose lines begin with the field, for none or two."""
    _wanted(item, dict, "", "an object")
    found = [name for name in READERS if name in item]
    if len(found) != 1:
        got = ", ".join(sorted(map(repr, item))) or "no fields"
        raise Wrong(f"got {got}, wanted one of {', '.join(map(repr, READERS))}")
    return found[0]


def parse(item: Any, format: str) -> Record:
    """The record in `item`. Raises Wrong with every turn's fault."""
    if (found := recognise(item)) != format:
        raise Wrong(f"got {found!r} in a file that begins with {format!r}; wanted one format")
    try:
        return READERS[format](item)
    except RecursionError:
        raise Wrong("nested too deeply") from None


def document(text: str, unread: frozenset[str] = frozenset()) -> Document:
    """Raises Wrong for text that no tokenizer should see, and for none."""
    if not _text(text, "text").strip():
        raise Wrong("text: got nothing but blanks, wanted text")
    return Document(text, unread)


def _conversations(item: Item) -> Conversation:
    turns = _each(item, "conversations", _turn)
    if (system := item.get("system")) is not None and _text(system, "system"):
        turns.insert(0, {"role": "system", "content": system})
    first = 1 if turns[0]["role"] == "system" else 0
    if first < len(turns) and turns[first]["role"] != "user":
        del turns[first]  # as the original: a greeting that answers nothing
    tools = item.get("tools")
    if isinstance(tools, str):
        tools = _json(tools, "tools") if tools.strip() else None
    read = {"conversations", "system", "tools"}
    return _conversation(turns, "conversations", tools, item.keys() - read)


def _messages(item: Item) -> Conversation:
    messages, tools = _each(item, "messages", _message), item.get("tools")
    return _conversation(messages, "messages", tools, item.keys() - {"messages", "tools"})


def _document(item: Item) -> Document:
    return document(item["text"], frozenset(item.keys() - {"text"} - NOTES))


READERS: dict[str, Callable[[Item], Record]] = {
    "conversations": _conversations,
    "messages": _messages,
    "text": _document,
}


def _conversation(messages: list[Item], name: str, tools: Any, others: Set[str]) -> Conversation:
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise Wrong(f"{name}: got no turn of a user's, wanted at least one")
    if "system" in roles[1:]:
        raise Wrong(f"{name}: got a system text behind the start, wanted at most one, first")
    for number, tool in enumerate(_wanted(tools or [], list, "tools", "a list")):
        _plain(_wanted(tool, dict, f"tools[{number}]", "an object"), f"tools[{number}]")
    return Conversation(messages, tools or [], frozenset(others - NOTES))


def _each(item: Item, name: str, read: Callable[[Any, str], Item]) -> list[Item]:
    """Every turn of a list; the faults of all of them together."""
    turns: list[Item] = []
    lines: list[str] = []
    for number, turn in enumerate(_wanted(item[name], list, name, "a list")):
        try:
            turns.append(read(turn, f"{name}[{number}]"))
        except Wrong as wrong:
            lines += wrong.lines
    if lines:
        raise Wrong(*lines)
    if not turns:
        raise Wrong(f"{name}: got an empty list, wanted at least one turn")
    return turns


def _turn(turn: Any, where: str) -> Item:
    """A ShareGPT turn as a message."""
    fields = _fields(turn, where, {"from", "value"})
    speaker = _choice(fields.get("from"), SPEAKERS, f"{where}.from")
    value = _text(fields.get("value"), f"{where}.value")
    if SPEAKERS[speaker] != "call":
        return {"role": SPEAKERS[speaker], "content": value}
    calls = _json(value, f"{where}.value")
    calls = calls if isinstance(calls, list) else [calls]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [_call({"function": call}, f"{where}.value") for call in calls],
    }


def _message(message: Any, where: str) -> Item:
    """An OpenAI message, its calls' arguments as objects, because templates write them as JSON."""
    role = _choice(
        _wanted(message, dict, where, "an object").get("role"), MESSAGE_FIELDS, f"{where}.role"
    )
    fields = _fields(message, where, MESSAGE_FIELDS[role])
    calls = _wanted(fields.pop("tool_calls", []), list, f"{where}.tool_calls", "a list")
    content = fields.get("content", "" if calls else None)
    texts = {name: _text(value, f"{where}.{name}") for name, value in fields.items()}
    made: Item = texts | {"content": _text(content, f"{where}.content")}
    if calls:
        paths = (f"{where}.tool_calls[{number}]" for number in range(len(calls)))
        made["tool_calls"] = [_call(call, path) for call, path in zip(calls, paths, strict=True)]
    return made


def _call(call: Any, where: str) -> Item:
    function = _wanted(call, dict, where, "an object").get("function")
    _wanted(function, dict, f"{where}.function", "an object")
    name = _text(function.get("name"), f"{where}.function.name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{where}.function.arguments")
    _wanted(arguments, dict, f"{where}.function.arguments", "an object")
    _plain(arguments, f"{where}.function.arguments")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _fields(value: Any, where: str, known: set[str]) -> Item:
    """The fields that are not null; one that is not known could change what is learnt."""
    _wanted(value, dict, where, "an object")
    given = {name: part for name, part in value.items() if part is not None}
    if unknown := sorted(given.keys() - known):
        names = ", ".join(sorted(known))
        raise Wrong(*(f"{where}.{name}: unknown field, wanted {names}" for name in unknown))
    return given


def _wanted(value: Any, kind: type, where: str, wanted: str) -> Any:
    if not isinstance(value, kind):
        prefix = f"{where}: " if where else ""
        raise Wrong(f"{prefix}got {KINDS[type(value)]}, wanted {wanted}")
    return value


def _choice(value: Any, known: Mapping[str, Any], where: str) -> str:
    if _text(value, where) not in known:
        raise Wrong(f"{where}: got {value[:40]!r}, wanted one of {', '.join(known)}")
    return value


def _text(value: Any, where: str) -> str:
    _wanted(value, str, where, "text")
    if "\0" in value:
        raise Wrong(f"{where}: got a NUL character, wanted text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start].encode("ascii", "backslashreplace").decode()
        raise Wrong(f"{where}: got {half}, half of a character, wanted text") from None
    return value


def _plain(value: Any, where: str) -> None:
    """Checks every text in JSON."""
    if isinstance(value, str):
        _text(value, where)
    elif isinstance(value, list):
        for part in value:
            _plain(part, where)
    elif isinstance(value, dict):
        for name, part in value.items():
            _plain(name, where)
            _plain(part, where)


def _json(text: str, where: str) -> Any:
    try:
        return decode(text)
    except ValueError as error:
        raise Wrong(f"{where}: {error}") from None
