"""Vocabulary files of every Qwen: `qwen.tiktoken` (v1), `tokenizer.json`, or `vocab.json` with
`merges.txt` (1.5 and later), and what lies beside them.

All are byte-pair merges of UTF-8 bytes behind one regular expression; only the named control
tokens differ.
"""

import binascii
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_jax.files.strict_json import (
    FLAG,
    LARGEST_SIZE,
    NAME,
    TEXT,
    Kind,
    StrictObject,
    read_bytes,
    read_text,
)
from qwen_jax.text import byte_level
from qwen_jax.text.byte_level import Added

EXTRA = "extra.tiktoken"  # what a converted checkpoint calls its extra vocabulary
FILES = (
    "qwen.tiktoken",
    EXTRA,
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)  # what `read` may open, so what a copy of a checkpoint must keep

END_OF_TEXT = "<|endoftext|>"
V1_SPECIALS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_NAMED = Kind[Any](
    "a text, or an object with a text as content",
    lambda value: (
        isinstance(value, str | bool)
        or (isinstance(value, dict) and isinstance(value.get("content"), str))
    ),
    "",
)


@dataclass(frozen=True)
class Vocabulary:
    """What a folder says about its tokens.

    ranks: token bytes -> id, where the id is also the priority of the merge that makes it.
    specials: every control token, name -> id.
    markup: the names among them that belong to a visible answer, such as <think> and <tool_call>
        (`"special": false` in Hugging Face files).
    chat_template: jinja2 source, or None (v1 has none).
    names: what tokenizer_config.json calls bos_token, eos_token and so on; templates may use them.
    normalized: control tokens that are looked for in the NFC form of a text: v1's. The others are
        what divides it before.
    start: ids that begin a text to be completed, such as DeepSeek's; Qwen's own have none.
    end: ids behind a text that becomes a vector: Qwen3-Embedding's.
    """

    ranks: Mapping[bytes, int]
    specials: Mapping[str, int]
    markup: Collection[str] = frozenset()
    chat_template: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    normalized: Sequence[str] = ()
    start: Sequence[int] = ()
    end: Sequence[int] = ()

    def __post_init__(self) -> None:
        if missing := [byte for byte in range(256) if bytes([byte]) not in self.ranks]:
            raise ValueError(f"the vocabulary lacks the single bytes {missing}; it needs all 256")
        ids = [*self.ranks.values(), *self.specials.values()]
        if len(set(ids)) < len(ids):
            raise ValueError("two tokens share an id; a vocabulary needs one id for each token")
        if max(ids) >= LARGEST_SIZE:
            raise ValueError(f"a token has the id {max(ids)}, expected one below {LARGEST_SIZE}")


def read(folder: str | Path, extra_vocab_file: str | Path | None = None) -> Vocabulary | None:
    """The vocabulary of a checkpoint folder; None when it holds no tokenizer file at all.

    extra_vocab_file adds tokens to v1's: `base64 id` lines, ids from the last special's on; by
    default that of the folder. As in the original, entries already known or with used ids are
    skipped. Raises ValueError for files that tiktoken would not reproduce exactly.
    """
    folder = Path(folder)
    present = [name for name in FILES if (folder / name).is_file()]
    if not present:
        return None
    config = StrictObject.of(folder / "tokenizer_config.json")
    if "qwen.tiktoken" in present:
        ranks, specials = _read_v1(folder / "qwen.tiktoken", _extra(folder, extra_vocab_file))
        added = Added(specials, normalized=specials)
    elif extra_vocab_file is not None:
        raise ValueError(f"{extra_vocab_file} extends qwen.tiktoken, and {folder} has none")
    elif "tokenizer.json" in present:
        ranks, added = byte_level.read_tokenizer_json(folder / "tokenizer.json")
    elif "vocab.json" in present and "merges.txt" in present:
        ranks, added = byte_level.read_vocab_and_merges(folder, config)
    else:
        raise ValueError(
            f"{folder} has {', '.join(present)} but no vocabulary; add qwen.tiktoken, "
            "tokenizer.json, or vocab.json with merges.txt"
        )
    template = _chat_template(folder, config)
    starts = config.take(FLAG, "add_bos_token", default=False)
    names = _names(StrictObject.of(folder / "special_tokens_map.json")) | _names(config)
    config.stop()
    start = added.start or ([names["bos_token"]] if starts and "bos_token" in names else [])
    if strangers := [name for name in (*start, *added.end) if name not in added.ids]:
        raise ValueError(
            f"{folder} begins or ends texts with {strangers}, which are none of its tokens"
        )
    try:
        return Vocabulary(
            ranks,
            added.ids,
            added.markup,
            template,
            names,
            tuple(added.normalized),
            tuple(added.ids[name] for name in start),
            tuple(added.ids[name] for name in added.end),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _extra(folder: Path, given: str | Path | None) -> Path | None:
    """The file of more tokens: the one given, or that of the folder."""
    own = folder / EXTRA
    if given is None:
        return own if own.is_file() else None
    if own.is_file() and read_bytes(own) != read_bytes(Path(given)):
        raise ValueError(f"{folder} has another extra vocabulary, {EXTRA}, than {given}")
    return Path(given)


def _read_ranks(path: Path) -> list[tuple[bytes, int]]:
    """The lines `base64 rank` of a tiktoken file."""
    try:
        lines = map(bytes.split, read_bytes(path).splitlines())
        return [(binascii.a2b_base64(token), int(rank)) for token, rank in lines]
    except ValueError as error:
        raise ValueError(
            f"{path} is not a tiktoken vocabulary of `base64 rank` lines ({error}); "
            "if it is a small git-lfs pointer, download the real file"
        ) from error


def _read_v1(path: Path, extra: Path | None) -> tuple[dict[bytes, int], dict[str, int]]:
    ranks = dict(_read_ranks(path))
    if list(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path} does not count its tokens 0, 1, 2, …; download it again")
    specials = {name: len(ranks) + n for n, name in enumerate(V1_SPECIALS)}
    size = len(ranks) + len(specials)
    used = set(range(size))
    for token, id in _read_ranks(extra) if extra else ():
        if id < 0:
            raise ValueError(f"{extra} gives a token the id {id}; wanted {size}, {size + 1}, …")
        if token not in ranks and id not in used:
            ranks[token] = id
            used.add(id)
    if max(used) >= len(used):
        gap = next(id for id in range(size, max(used)) if id not in used)
        raise ValueError(f"{extra} leaves id {gap} free; wanted {size}, {size + 1}, … without gaps")
    return ranks, specials


def _names(config: StrictObject) -> dict[str, str]:
    """bos_token, eos_token, … as plain strings; some versions write them as {"content": …}."""
    keys = [k for k in config.left if k.endswith("_token") and not k.startswith("add_")]
    found = {key: config.take(_NAMED, key, default=None) for key in keys}
    config.stop()
    texts = {key: v["content"] if isinstance(v, dict) else v for key, v in found.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str) and text}


def _chat_template(folder: Path, config: StrictObject) -> str | None:
    """The template file, else the one in the config; of several named ones, the default."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja")
    if not isinstance(config.left.get("chat_template"), list):
        return config.take(TEXT, "chat_template", default=None)
    entries = [entry for _, entry in config.each("chat_template")]
    named = {entry.take(NAME, "name"): entry.take(TEXT, "template") for entry in entries}
    config.stop()
    if "default" not in named:
        raise ValueError(f"{folder} names chat templates {sorted(named)} but no default one")
    return named["default"]
