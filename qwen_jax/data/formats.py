"""One item of a data file to one record: a conversation in the OpenAI form, a document, or a pair.

The formats are told apart by the field that holds the content: "conversations" (the original's and
ShareGPT's), "messages" (OpenAI's), "instruction" with "output" (Alpaca's), "prompt" with
"completion" (TRL's), and "text".
"""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from qwen_jax.data.turns import Item, Spelling, read_tools, read_turn, spelling
from qwen_jax.data.values import present, text, wanted
from qwen_jax.files.problems import Wrong

NOTES = {"id", "parallel_tool_calls"}  # fields that need no notice
TOOLS = ("tools", "functions")
# what says which of several answers is the better one, or whether one is good
PREFERENCES = ("label", "kto_tag")
PREFERENCE_STARTS = ("chosen", "rejected", "preferred", "non_preferred")


@dataclass(frozen=True)
class Conversation:
    """Messages as `transcript` takes them; `unread` names fields of the item that say nothing.

    learnt: for each answer whether it is, all of them where this is empty. prompt: nothing is that
    stands before the first one that is learnt.
    """

    messages: list[Item]
    tools: list[Item] = field(default_factory=list)
    unread: frozenset[str] = frozenset()
    learnt: tuple[bool, ...] = ()
    prompt: bool = False


@dataclass(frozen=True)
class Document:
    text: str
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pair:
    """A text and how it goes on, without any form of conversation; the latter is learnt."""

    prompt: str
    completion: str
    unread: frozenset[str] = frozenset()


Record = Conversation | Document | Pair


def recognise(item: Any) -> str:
    """The format of an item. Raises Wrong, whose lines begin with the field, for none or two."""
    given = present(wanted(item, dict, "", "an object"))
    if judged := [name for name in given if _is_preference(name)]:
        raise Wrong(
            f"{', '.join(judged)}: got data for preference learning, where not every answer is "
            "wanted; keep the good ones, without this field"
        )
    found = [name for name in READERS if name in given]
    # these come as notes beside another format too
    for name, partner in (("instruction", "output"), ("prompt", "completion")):
        if name in found and partner not in given and len(found) > 1:
            found.remove(name)
    if found == ["instruction", "text"]:  # the same once more, in Alpaca's words
        found.remove("text")
    if len(found) != 1:
        got = ", ".join(sorted(map(repr, given))) or "no fields"
        raise Wrong(f"got {got}, wanted one of {', '.join(map(repr, READERS))}")
    return found[0]


def _is_preference(name: str) -> bool:
    return name in PREFERENCES or name.startswith(PREFERENCE_STARTS)


def parse(item: Any, format: str) -> Record:
    """The record in `item`. Raises Wrong with every turn's fault."""
    if (found := recognise(item)) != format:
        raise Wrong(f"got {found!r} in a file that begins with {format!r}; wanted one format")
    try:
        return READERS[format](present(item))
    except RecursionError:
        raise Wrong("nested too deeply") from None


def document(content: str, unread: frozenset[str] = frozenset()) -> Document:
    """Raises Wrong for text that no tokenizer should see, and for none."""
    if not text(content, "text").strip():
        raise Wrong("text: got nothing but blanks, wanted text")
    return Document(content, unread)


def _conversations(item: Item) -> Conversation:
    turns = _each(item, "conversations", "from")
    first = 1 if turns[0]["role"] == "system" else 0
    original = spelling(item["conversations"][0], "from") == "from"
    if original and first < len(turns) and turns[first]["role"] != "user":
        del turns[first]  # as the original: a greeting that answers nothing
    return _conversation(_system(item, turns), "conversations", item)


def _messages(item: Item) -> Conversation:
    return _conversation(_system(item, _each(item, "messages", "role")), "messages", item)


def _instruction(item: Item) -> Conversation:
    parts = [text(item[name], name) for name in ("instruction", "input") if name in item]
    question = "\n".join(part for part in parts if part)
    if not question.strip():
        raise Wrong("instruction: got nothing but blanks, wanted text")
    pairs = [*_history(item.get("history", [])), (question, item.get("output"))]
    turns = [
        {"role": role, "content": text(content, "output")}
        for pair in pairs
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    names = {"instruction", "input", "output", "history"}
    return _conversation(_system(item, turns), "instruction", item, names)


def _history(pairs: Any) -> list[tuple[str, str]]:
    made = []
    for number, pair in enumerate(wanted(pairs, list, "history", "a list")):
        where = f"history[{number}]"
        if len(wanted(pair, list, where, "a list")) != 2:
            raise Wrong(f"{where}: got a list of {len(pair)}, wanted a question and an answer")
        made.append((text(pair[0], f"{where}[0]"), text(pair[1], f"{where}[1]")))
    return made


def _prompt(item: Item) -> Conversation | Pair:
    prompt, completion = item["prompt"], item.get("completion")
    names = {"prompt", "completion"}
    if isinstance(prompt, str):
        pair = text(prompt, "prompt"), text(completion, "completion")
        return Pair(*pair, frozenset(item.keys() - names - NOTES))
    asked, answered = (_each(item, name, "role") for name in ("prompt", "completion"))
    turns = _system(item, [*asked, *answered])
    answers = [turn["role"] == "assistant" for turn in asked].count(True)
    for number, turn in enumerate(turn for turn in turns if turn["role"] == "assistant"):
        if number < answers:
            turn["weight"] = 0
    return _conversation(turns, "prompt", item, names, prompt=True)


def _document(item: Item) -> Document:
    return document(item["text"], frozenset(item.keys() - {"text"} - NOTES))


READERS: dict[str, Callable[[Item], Record]] = {
    "conversations": _conversations,
    "messages": _messages,
    "instruction": _instruction,
    "prompt": _prompt,
    "text": _document,
}


def _system(item: Item, turns: list[Item]) -> list[Item]:
    """With the system text of an item that has one beside its turns."""
    if "system" in item and text(item["system"], "system"):
        return [{"role": "system", "content": item["system"]}, *turns]
    return turns


def _conversation(
    turns: Sequence[Item], name: str, item: Item, read: Set[str] = frozenset(), prompt: bool = False
) -> Conversation:
    roles = [turn["role"] for turn in turns]
    if "user" not in roles:
        raise Wrong(f"{name}: got no turn of a user's, wanted at least one")
    if "system" in roles[1:]:
        raise Wrong(f"{name}: got a system text behind the start, wanted at most one, first")
    weights = [turn.get("weight", 1) for turn in turns if turn["role"] == "assistant"]
    messages = [{n: value for n, value in turn.items() if n != "weight"} for turn in turns]
    tools = [tool for field in TOOLS for tool in read_tools(item.get(field, []), field)]
    unread = item.keys() - {name, "system", *TOOLS} - read - NOTES
    learnt = () if all(weights) else tuple(map(bool, weights))
    return Conversation(messages, tools, frozenset(unread), learnt, prompt)


def _each(item: Item, name: str, usual: Spelling) -> list[Item]:
    """Every turn of a list; the faults of all of them together."""
    turns: list[Item] = []
    lines: list[str] = []
    for number, turn in enumerate(wanted(item.get(name), list, name, "a list")):
        try:
            turns.append(read_turn(turn, f"{name}[{number}]", usual))
        except Wrong as wrong:
            lines += wrong.lines
    if lines:
        raise Wrong(*lines)
    if not turns:
        raise Wrong(f"{name}: got an empty list, wanted at least one turn")
    return turns
