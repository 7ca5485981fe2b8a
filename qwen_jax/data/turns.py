"""One turn of a conversation in whatever spelling, as a message in the OpenAI form."""

from typing import Any, Literal

from qwen_jax.data.values import choice, fields, json_in, plain, present, text, wanted
from qwen_jax.files.problems import Wrong
from qwen_jax.text.functions import function_name, openai_function

Item = dict[str, Any]
Spelling = Literal["from", "role"]

ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
    **dict.fromkeys(("observation", "function_response", "tool_response", "tool"), "tool"),
    **dict.fromkeys(("system", "developer"), "system"),
}
OPENAI_ROLES = ROLES | {"function": "tool"}  # elsewhere that word has meant the call too
CONTENT: dict[Spelling, str] = {"from": "value", "role": "content"}
MORE_FIELDS = {
    "assistant": {"tool_calls", "function_call", "reasoning_content"},
    "tool": {"tool_call_id"},
}


def spelling(turn: Any, usual: Spelling) -> Spelling:
    """Whether a turn says "from" and "value", or "role" and "content"."""
    given = {name for name, value in turn.items() if value is not None}
    both: tuple[Spelling, Spelling] = ("from", "role")
    found = [speaker for speaker in both if given & {speaker, CONTENT[speaker]}]
    return found[0] if len(found) == 1 else usual


def read_turn(turn: Any, where: str, usual: Spelling) -> Item:
    """A message; its "weight", 0 or 1, is there if the turn says whether it is learnt."""
    speaker = spelling(wanted(turn, dict, where, "an object"), usual)
    roles = OPENAI_ROLES if speaker == "role" else ROLES
    role = roles[choice(turn.get(speaker), roles, f"{where}.{speaker}")]
    known = {speaker, CONTENT[speaker], "weight"}
    if speaker == "role":
        known |= {"name"} | MORE_FIELDS.get(role, set())
    given = fields(turn, where, known)
    weight = _weight(given.pop("weight", None), role, f"{where}.weight")
    field = f"{where}.{CONTENT[speaker]}"
    content = given.pop(CONTENT[speaker], None)
    del given[speaker]
    if role == "call":
        return _called(text(content, field), field) | weight
    if speaker == "from":
        return {"role": role, "content": text(content, field)} | weight
    calls = _calls(given, where)
    content = "" if calls and content is None else _joined(content, field)
    texts = {name: text(value, f"{where}.{name}") for name, value in given.items()}
    return {"role": role, **texts, "content": content, **calls, **weight}


def _weight(value: Any, role: str, where: str) -> Item:
    if value is None:
        return {}
    learnt = role in ("assistant", "call")
    if isinstance(value, bool) or value not in ((0, 1) if learnt else (0,)):
        got = value if isinstance(value, int | float) else "something else"
        only = "0 or 1" if learnt else "0: only answers are learnt"
        raise Wrong(f"{where}: got {got}, wanted {only}")
    return {"weight": int(value)}


def _joined(content: Any, where: str) -> str:
    """Content as one text; OpenAI's may be a list of parts."""
    if not isinstance(content, list):
        return text(content, where)
    texts = []
    for number, part in enumerate(content):
        here = f"{where}[{number}]"
        kind = wanted(part, dict, here, "an object").get("type")
        if kind != "text":
            raise Wrong(f"{here}.type: got {str(kind)[:40]!r}, wanted 'text'; no other is read")
        texts.append(text(fields(part, here, {"type", "text"}).get("text"), f"{here}.text"))
    return "".join(texts)


# --- functions --------------------------------------------------------------------------------
def _called(value: str, where: str) -> Item:
    """A turn of its own that is nothing but calls, as JSON."""
    calls = json_in(value, where)
    calls = calls if isinstance(calls, list) else [calls]
    made = [_call({"function": call}, where) for call in calls]
    return {"role": "assistant", "content": "", "tool_calls": made}


def _calls(given: Item, where: str) -> Item:
    """Those of a message, taken out of it; arguments as objects: templates write them as JSON."""
    calls = wanted(given.pop("tool_calls", []), list, f"{where}.tool_calls", "a list")
    made = [_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls)]
    if (older := given.pop("function_call", None)) is not None:
        made.append(_call({"function": older}, f"{where}.function_call"))
    return {"tool_calls": made} if made else {}


def _call(call: Any, where: str) -> Item:
    function = wanted(call, dict, where, "an object").get("function")
    wanted(function, dict, f"{where}.function", "an object")
    name = text(function.get("name"), f"{where}.function.name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = json_in(arguments, f"{where}.function.arguments")
    wanted(arguments, dict, f"{where}.function.arguments", "an object")
    plain(arguments, f"{where}.function.arguments")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def read_tools(value: Any, where: str = "tools") -> list[Item]:
    """Functions as templates are shown them when they are served, however they are written."""
    if isinstance(value, str):
        value = json_in(value, where) if value.strip() else None
    tools = []
    for number, tool in enumerate(wanted(value or [], list, where, "a list")):
        here = f"{where}[{number}]"
        plain(wanted(tool, dict, here, "an object"), here)
        made = present(tool)
        if isinstance(tool.get("function"), dict):
            made = {"type": "function", **made, "function": present(tool["function"])}
        else:
            made = {"type": "function", "function": openai_function(made)}
        if not isinstance(function_name(made["function"]), str):
            raise Wrong(f"{here}: got no function with a name, wanted one")
        tools.append(made)
    return tools
