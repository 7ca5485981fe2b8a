"""Conversations to token ids and back: ChatML for v1, the checkpoint's own template for the rest.

What a user types never becomes a control token: `<|im_end|>` in a message stays text.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from qwen_jax.sandbox.process import ask
from qwen_jax.text.segments import slices, split
from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.vocabulary import END_OF_TEXT

DEFAULT_SYSTEM = "You are a helpful assistant."
MAX_WINDOW_SIZE = 6144  # tokens, where generation_config.json gives none

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
STOPS = {"chatml": (IM_END, IM_START, END_OF_TEXT), "raw": (END_OF_TEXT,)}
# How a prompt ends: a reply begins, the last message has ended, or it goes on.
Ending = Literal["reply", "closed", "open"]
ROLES = ("system", "user", "assistant", "tool")
TEMPLATE_ARGUMENTS = {"enable_thinking": bool}  # what a request may pass on to a template


def prompt_ids(
    tokenizer: Tokenizer,
    query: str,
    history: Iterable[tuple[str, str]] = (),
    system: str = DEFAULT_SYSTEM,
    max_window_size: int = MAX_WINDOW_SIZE,
    chat_format: str = "chatml",
) -> list[int]:
    """The prompt of a Qwen v1 model that answers `query`.

    history: (query, reply) turns, oldest first. The oldest are dropped, whole, so that system and
        history stay below max_window_size tokens; as in the original the query is not counted.
    chat_format: "chatml", or "raw" for base models: the query alone, control tokens in it count.
    """
    _check_format(chat_format)
    history = list(history)
    if chat_format == "raw":
        if history:
            raise ValueError('the chat format "raw" has no history; put it in the query')
        return tokenizer.encode(query, specials=True)
    turns = [[("user", question), ("assistant", answer)] for question, answer in history]
    return turns_ids(tokenizer, system, [*turns, [("user", query)]], max_window_size)


def turns_ids(
    tokenizer: Tokenizer,
    system: str,
    turns: Sequence[Sequence[tuple[str, str]]],
    max_window_size: int = MAX_WINDOW_SIZE,
    ending: Ending = "reply",
) -> list[int]:
    """The prompt of a Qwen v1 model; each turn, (role, text) of its messages, is kept or dropped.

    The last turn is always kept; the others as `prompt_ids` says.
    """
    newline = tokenizer.encode("\n")
    *earlier, last = [
        [id for role, text in turn for id in [*newline, *_segment(tokenizer, role, text)]]
        for turn in turns
    ]
    start = _segment(tokenizer, "system", system)
    kept: list[list[int]] = []  # the latest first
    size = len(start)
    for turn in reversed(earlier):
        size += len(turn)
        if size >= max_window_size:
            break
        kept.append(turn)
    ids = [*start, *itertools.chain.from_iterable(reversed(kept)), *last]
    if ending == "open":
        return ids[:-1]
    if ending == "closed":
        return ids
    return [*ids, *newline, *control(tokenizer, IM_START), *tokenizer.encode("assistant"), *newline]


def stop_ids(tokenizer: Tokenizer, chat_format: str = "chatml") -> list[int]:
    """The ids that end an answer; with a chat template those its vocabulary has, eos_token too."""
    _check_format(chat_format)
    names = STOPS[chat_format]
    if tokenizer.chat_template is not None:
        eos = tokenizer.names.get("eos_token", "")
        both = dict.fromkeys((*names, eos))
        names = tuple(name for name in both if name in tokenizer.specials)
    return control(tokenizer, *names)


def reply_text(tokenizer: Tokenizer, ids: Iterable[int], chat_format: str = "chatml") -> str:
    """The answer in generated `ids`: up to the first stop id, decoded, stripped.

    Every id before it counts; the original loses the last one when the length limit ends an answer.
    For "raw" <|endoftext|> is left out wherever it stands, as in the original.
    """
    stops = stop_ids(tokenizer, chat_format)
    if chat_format == "raw":
        kept = [id for id in ids if id not in stops]
    else:
        kept = list(itertools.takewhile(lambda id: id not in stops, ids))
    return tokenizer.decode(kept).strip()


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    max_window_size: int | None = None,
    continue_final_message: bool = False,
    **template_arguments: Any,
) -> list[int]:
    """Token ids of a conversation in the OpenAI form, [{"role": …, "content": …}, …].

    With a chat template, the ids are Hugging Face's for the same messages, except that control
    tokens inside strings of messages and tools are text; <think> and the like count in what the
    assistant said. Without one (v1), the messages are a `prompt_ids` call, and max_window_size is
    its history window. continue_final_message: the prompt ends where the last message's text does.
    Raises ValueError for whatever the template or the format cannot express.
    """
    messages = [checked(message) for message in messages]
    if not messages:
        raise ValueError("got no messages, wanted at least one from the user")
    for name, value in template_arguments.items():
        if name not in TEMPLATE_ARGUMENTS:
            known = ", ".join(TEMPLATE_ARGUMENTS)
            raise ValueError(f"got template argument {name!r}, wanted one of {known}")
        if not isinstance(value, TEMPLATE_ARGUMENTS[name]):
            raise ValueError(f"got {name}={value!r}, wanted a {TEMPLATE_ARGUMENTS[name].__name__}")
    asked = template_arguments | ({"tools": tools} if tools else {})
    if tokenizer.chat_template is not None:
        if max_window_size is not None:
            raise ValueError("max_window_size is for checkpoints without a chat template")
        asked["add_generation_prompt"] = add_generation_prompt
        made = pieces(tokenizer, messages, asked, continue_final_message)
        return [id for _, ids in made for id in ids]
    if asked or not add_generation_prompt or continue_final_message:
        wanted = ", ".join(asked) or "add_generation_prompt=False"
        raise ValueError(f"{wanted} needs a chat template, and this checkpoint has none")
    window = MAX_WINDOW_SIZE if max_window_size is None else max_window_size
    return prompt_ids(tokenizer, *_turns(messages), max_window_size=window)


def _check_format(chat_format: str) -> None:
    if chat_format not in STOPS:
        raise ValueError(f"got chat_format {chat_format!r}, wanted one of {', '.join(STOPS)}")


def control(tokenizer: Tokenizer, *names: str) -> list[int]:
    """Their ids. Raises ValueError for those that the vocabulary lacks."""
    if missing := [name for name in names if name not in tokenizer.specials]:
        raise ValueError(f"this vocabulary has no {', '.join(missing)}; ChatML needs them")
    return [tokenizer.specials[name] for name in names]


def _segment(tokenizer: Tokenizer, role: str, content: str) -> list[int]:
    """<|im_start|>role\ncontent<|im_end|>, each part encoded by itself as the original does."""
    start, end = control(tokenizer, IM_START, IM_END)
    texts = tokenizer.encode(role) + tokenizer.encode("\n") + tokenizer.encode(content)
    return [start, *texts, end]


def checked(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with a role that templates know and content that is a string."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"got a message with role {role!r}, wanted one of {', '.join(ROLES)}")
    if content is None and role == "assistant" and message.get("tool_calls"):
        content = ""  # a template would print None, or fail
    if not isinstance(content, str):
        raise ValueError(f"got {role} content of type {type(content).__name__}, wanted a string")
    return {**message, "content": content}


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str]], str]:
    """(query, history, system) of messages that a v1 prompt can hold."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = messages if system is None else messages[1:]
    roles = [message["role"] for message in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise ValueError(
            f"got the roles {', '.join(m['role'] for m in messages)}; without a chat template it "
            "must be user and assistant in turn, from user to user, after at most one system"
        )
    said = [message["content"] for message in turns]
    history = list(zip(said[:-1:2], said[1::2], strict=True))
    return said[-1], history, DEFAULT_SYSTEM if system is None else system


def pieces(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    asked: Mapping[str, Any],
    continue_final_message: bool = False,
) -> list[tuple[str, list[int]]]:
    """The rendered template in pieces: a control token's name and id, or a text and its ids.

    A template returns one string, in which a typed `<|im_end|>` would look like its own. So each
    character that may begin a control token is first swapped for a private one that occurs nowhere;
    the texts keep those, the ids do not.
    """
    source = tokenizer.chat_template
    assert source is not None
    begins, markup = _beginnings(tokenizer.specials), "|".join(map(re.escape, tokenizer.markup))
    said = f"(?!{markup})(?:{begins})" if markup else begins  # the model wrote its own markup
    used = set(source)
    for part in slices(json.dumps([messages, asked], ensure_ascii=False)):
        used.update(part)
    firsts = sorted({name[0] for name in tokenizer.specials})
    private = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in used)
    masks = dict(zip(firsts, private, strict=False))
    if len(masks) < len(firsts):
        raise ValueError("the messages use every private character of Unicode; send fewer of them")
    disguised = [
        _disguise(message, said if message["role"] == "assistant" else begins, masks)
        for message in messages
    ]
    variables = _disguise(asked, begins, masks) | {"messages": disguised}
    originals = {ord(mask): first for first, mask in masks.items()}

    def ids(piece: str) -> list[int]:
        if piece in tokenizer.specials:
            return [tokenizer.specials[piece]]
        return tokenizer.encode("".join(part.translate(originals) for part in slices(piece)))

    text = _run(source, tokenizer.names, variables)
    if continue_final_message:
        text = _left_open(text, disguised[-1]["content"])
    return [(piece, ids(piece)) for piece in split(text, tokenizer.specials) if piece]


def _left_open(text: str, content: str) -> str:
    """A rendered text up to the end of its last message, as transformers cuts it.

    Blanks at that end stay where the template kept them.
    """
    at = text.rfind(content.strip())
    if at < 0 or not content.strip():
        raise ValueError("continue_final_message needs a last message with text that is shown")
    kept = content.lstrip()
    return text[: at + len(kept if text.startswith(kept, at) else content.strip())]


def _beginnings(names: Iterable[str]) -> str:
    """A pattern for what may begin a control token: `<`, wherever it stands.

    A whole name could be put together from two strings that a template joins; its first character
    cannot. Only names that begin like a word are looked for whole, lest every word be disguised.
    """
    starts = {name if name[0].isalnum() else name[0] for name in names}
    return "|".join(map(re.escape, sorted(starts))) or "(?!)"


def _disguise(value: Any, pattern: str, masks: Mapping[str, str]) -> Any:
    """`value` with the first character of each match in its strings masked."""
    if isinstance(value, str):
        return re.sub(pattern, lambda found: masks[found[0][0]] + found[0][1:], value)
    if isinstance(value, Mapping):
        return dict(_disguise(list(value.items()), pattern, masks))
    if isinstance(value, list | tuple):
        return [_disguise(item, pattern, masks) for item in value]
    return value


def _run(source: str, names: Mapping[str, str], variables: Mapping[str, Any]) -> str:
    """The template's output; whatever goes wrong in somebody's template is a ValueError."""
    try:
        text, reads = ask("render", source, {"tools": None, **names, **variables})
    except ValueError as error:
        raise ValueError(f"this checkpoint's chat template failed: {error}") from None
    if ignored := variables.keys() - {"messages", "add_generation_prompt", *reads}:
        raise ValueError(f"this checkpoint's chat template ignores {', '.join(sorted(ignored))}")
    return text
