"""Vocabulary files of every Qwen: `qwen.tiktoken` (v1), `tokenizer.json`, or `vocab.json` with
`merges.txt` (1.5 and later), and what lies beside them.

All are byte-pair merges of UTF-8 bytes behind one regular expression, PATTERN; only the named
control tokens differ.
"""

import binascii
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_jax.files import strict_json
from qwen_jax.files.problems import Problems

FILES = (
    "qwen.tiktoken",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)  # what `read` may open, so what a copy of a checkpoint must keep

END_OF_TEXT = "<|endoftext|>"
V1_SPECIALS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Byte-level BPE files spell a byte as a printable character: itself, or the next free one from 256.
_VISIBLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_BYTE_OF = {byte: byte for byte in _VISIBLE} | {
    256 + n: byte for n, byte in enumerate(sorted(set(range(256)) - set(_VISIBLE)))
}


@dataclass(frozen=True)
class Vocabulary:
    """What a folder says about its tokens.

    ranks: token bytes -> id, where the id is also the priority of the merge that makes it.
    specials: every control token, name -> id.
    markup: the names among them that belong to a visible answer, such as <think> and <tool_call>
        (`"special": false` in Hugging Face files).
    chat_template: jinja2 source, or None (v1 has none).
    names: what tokenizer_config.json calls bos_token, eos_token and so on; templates may use them.
    """

    ranks: Mapping[bytes, int]
    specials: Mapping[str, int]
    markup: Collection[str] = ()
    chat_template: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if missing := [byte for byte in range(256) if bytes([byte]) not in self.ranks]:
            raise ValueError(f"the vocabulary lacks the single bytes {missing}; it needs all 256")
        ids = [*self.ranks.values(), *self.specials.values()]
        if len(set(ids)) < len(ids):
            raise ValueError("two tokens share an id; a vocabulary needs one id for each token")


def read(folder: str | Path, extra_vocab_file: str | Path | None = None) -> Vocabulary | None:
    """The vocabulary of a checkpoint folder; None when it holds no tokenizer file at all.

    extra_vocab_file adds tokens to v1's: `base64 id` lines, ids from the last special's on. As in
    the original, entries already known or with used ids are skipped.
    Raises ValueError for files that tiktoken would not reproduce exactly.
    """
    folder = Path(folder)
    present = [name for name in FILES if (folder / name).is_file()]
    if not present:
        return None
    config = _json(folder / "tokenizer_config.json", optional=True)
    markup: Collection[str] = ()
    if "qwen.tiktoken" in present:
        ranks, specials = _read_v1(folder / "qwen.tiktoken", extra_vocab_file)
    elif extra_vocab_file is not None:
        raise ValueError(f"{extra_vocab_file} extends qwen.tiktoken, and {folder} has none")
    elif "tokenizer.json" in present:
        ranks, specials, markup = _read_tokenizer_json(folder / "tokenizer.json")
    elif "vocab.json" in present and "merges.txt" in present:
        ranks, specials, markup = _read_vocab_and_merges(folder, config)
    else:
        raise ValueError(
            f"{folder} has {', '.join(present)} but no vocabulary; add qwen.tiktoken, "
            "tokenizer.json, or vocab.json with merges.txt"
        )
    return Vocabulary(ranks, specials, markup, _chat_template(folder, config), _names(config))


def _read_ranks(path: Path) -> list[tuple[bytes, int]]:
    """The lines `base64 rank` of a tiktoken file."""
    try:
        lines = map(bytes.split, path.read_bytes().splitlines())
        return [(binascii.a2b_base64(token), int(rank)) for token, rank in lines]
    except ValueError as error:
        raise ValueError(
            f"{path} is not a tiktoken vocabulary of `base64 rank` lines ({error}); "
            "if it is a small git-lfs pointer, download the real file"
        ) from error


def _read_v1(path: Path, extra: str | Path | None) -> tuple[dict[bytes, int], dict[str, int]]:
    ranks = dict(_read_ranks(path))
    if list(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path} does not count its tokens 0, 1, 2, …; download it again")
    specials = {name: len(ranks) + n for n, name in enumerate(V1_SPECIALS)}
    size = len(ranks) + len(specials)
    used = set(range(size))
    for token, id in _read_ranks(Path(extra)) if extra else ():
        if token not in ranks and id not in used:
            ranks[token] = id
            used.add(id)
    if max(used) >= len(used):
        gap = next(id for id in range(size, max(used)) if id not in used)
        raise ValueError(f"{extra} leaves id {gap} free; wanted {size}, {size + 1}, … without gaps")
    return ranks, specials


def _merge_ranks(
    source: Path, vocab: Mapping[str, int], merges: Sequence[Sequence[str]], added: Collection[str]
) -> dict[bytes, int]:
    """Ranks of a byte-level BPE whose ids follow its merge order, as tiktoken takes for granted."""
    vocab = {token: id for token, id in vocab.items() if token not in added}
    if odd := {char for char in set("".join(vocab)) if ord(char) not in _BYTE_OF}:
        raise ValueError(f"{source} has tokens with {sorted(odd)}: it is not a byte-level BPE")
    merged = [vocab.get("".join(pair)) for pair in merges]
    if merged != sorted(id for token, id in vocab.items() if len(token) > 1):
        raise ValueError(
            f"{source} numbers its tokens in another order than its merges make them, "
            "which tiktoken cannot follow; only Qwen's own vocabularies are supported"
        )
    return {token.translate(_BYTE_OF).encode("latin-1"): id for token, id in vocab.items()}


def _read_tokenizer_json(path: Path) -> tuple[dict[bytes, int], dict[str, int], set[str]]:
    file = _json(path)
    model, added = file["model"], file.get("added_tokens", [])
    _refuse_other_kinds(path, file)
    specials = {token["content"]: token["id"] for token in added}
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    ranks = _merge_ranks(path, model["vocab"], merges, specials)
    return ranks, specials, {token["content"] for token in added if not token["special"]}


def _refuse_other_kinds(path: Path, file: Mapping[str, Any]) -> None:
    """Raise for a tokenizer.json that is not Qwen's: NFC, the pattern, byte-level BPE, no extras.

    Its truncation and padding are left unread: settings of whoever saved it, not of the vocabulary.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    pattern = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"}
    before = file.get("pre_tokenizer") or {}
    stages = [  # trim_offsets moves offsets, no ids
        {key: value for key, value in stage.items() if key != "trim_offsets"}
        for stage in before.get("pretokenizers", [before])
    ]
    model = file["model"]
    plain = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    ids_only = {"type", "vocab", "merges", "unk_token", "fuse_unk", "ignore_merges", *plain}
    checks = {
        "normalizer": (file.get("normalizer"), {"type": "NFC"}),
        "pre_tokenizer": (stages, [pattern | {"invert": False}, byte_level]),
        "post_processor": ((file.get("post_processor") or byte_level)["type"], "ByteLevel"),
        "decoder": ((file.get("decoder") or {}).get("type"), "ByteLevel"),
        "model type": (model.get("type"), "BPE"),
        "model settings": ([key for key in plain if model.get(key)], []),
        "model keys": (sorted(model.keys() - ids_only), []),
        "added tokens that match loosely": (
            [
                token["content"]
                for token in file.get("added_tokens", [])
                if token.get("lstrip") or token.get("rstrip") or token.get("single_word")
            ],
            [],
        ),
    }
    wrong = [f"{name}: got {g}, wanted {w}" for name, (g, w) in checks.items() if g != w]
    Problems(wrong).stop(f"{path} is no Qwen tokenizer")


def _read_vocab_and_merges(
    folder: Path, config: Mapping[str, Any]
) -> tuple[dict[bytes, int], dict[str, int], set[str]]:
    kind = config.get("tokenizer_class")
    if kind not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise ValueError(
            f"tokenizer_config.json in {folder} says tokenizer_class {kind!r}, wanted "
            "Qwen2Tokenizer: vocab.json and merges.txt alone do not tell how text is divided"
        )
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if decoder := config.get("added_tokens_decoder"):
        specials = {token["content"]: int(id) for id, token in decoder.items()}
        markup = {token["content"] for token in decoder.values() if not token["special"]}
    else:  # this older file does not tell markup apart, and the models of its time had none
        specials, markup = _json(folder / "added_tokens.json", optional=True), set()
    ranks = _merge_ranks(folder / "merges.txt", _json(folder / "vocab.json"), merges, specials)
    return ranks, specials, markup


def _json(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        return strict_json.read(path)
    except ValueError as error:
        raise ValueError(f"{error}; download it again") from None


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … as plain strings; some versions write them as {"content": …}."""
    named = {key: value for key, value in config.items() if key.endswith("_token") and value}
    texts = {key: v["content"] if isinstance(v, dict) else v for key, v in named.items()}
    return {key: text for key, text in texts.items() if isinstance(text, str)}  # add_bos_token


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The template file, else the one in the config; of several named ones, the default."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        if "default" not in named:
            raise ValueError(f"{folder} names chat templates {sorted(named)} but no default one")
        return named["default"]
    return template
