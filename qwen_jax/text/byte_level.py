"""Byte-level BPE as Hugging Face stores it: `tokenizer.json`, or `vocab.json` with `merges.txt`.

Only Qwen's kind is read: NFC, one regular expression, PATTERN, and merges in the order of the ids,
so that tiktoken makes the same of every text.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen_jax.files.problems import Problems
from qwen_jax.files.strict_json import (
    ANYTHING,
    COUNT,
    FLAG,
    NAME,
    TEXT,
    Kind,
    StrictObject,
    either,
    listed,
    read_text,
    shown,
    tabled,
)

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# These files spell a byte as a printable character: itself, or the next free one from 256.
_VISIBLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_BYTE_OF = {byte: byte for byte in _VISIBLE} | {
    256 + n: byte for n, byte in enumerate(sorted(set(range(256)) - set(_VISIBLE)))
}
_MERGES = listed(either(TEXT, listed(TEXT)))


@dataclass(frozen=True)
class Added:
    """Tokens beside the merges. The other fields are as in `vocabulary.Vocabulary`."""

    ids: Mapping[str, int]
    markup: Collection[str] = frozenset()
    normalized: Collection[str] = frozenset()
    start: Sequence[str] = ()
    end: Sequence[str] = ()


def read_tokenizer_json(path: Path) -> tuple[dict[bytes, int], Added]:
    """The ranks of its merges, and what it adds to them."""
    file = StrictObject.of(path)
    model = file.inside("model")
    tokens = ((token, token.take(COUNT, "id")) for _, token in file.each("added_tokens"))
    start, end = _around(file.inside("post_processor"))
    added = replace(_added(tokens), start=start, end=end)
    vocab, merges = model.take(tabled(COUNT), "vocab"), model.take(_MERGES, "merges")
    _refuse_other_kinds(path, file, model)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return _merge_ranks(path, vocab, pairs, added.ids), added


def read_vocab_and_merges(folder: Path, config: StrictObject) -> tuple[dict[bytes, int], Added]:
    """The same of the older files; config is tokenizer_config.json."""
    kind = config.take(ANYTHING, "tokenizer_class", default=None)
    if kind not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise ValueError(
            f"tokenizer_config.json in {folder} says tokenizer_class {shown(kind)}, wanted "
            "Qwen2Tokenizer: vocab.json and merges.txt alone do not tell how text is divided"
        )
    lines = read_text(folder / "merges.txt").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    tokens = []
    for key, token in config.each("added_tokens_decoder"):
        if not (key.isascii() and key.isdecimal()) or len(key) > 9:
            token.problems.append(f"added_tokens_decoder has the key {shown(key)}, expected an id")
            continue
        tokens.append((token, int(key)))
    added = _added(tokens)
    config.stop()
    if not tokens:  # added_tokens.json is older yet: it tells no markup, models then had none
        added = Added(_ids(folder / "added_tokens.json"))
    vocab = _ids(folder / "vocab.json")
    return _merge_ranks(folder / "merges.txt", vocab, merges, added.ids), added


def _ids(path: Path) -> dict[str, int]:
    """A file that is a table of tokens and ids."""
    whole = StrictObject(str(path), {"its content": StrictObject.of(path).left})
    made = whole.take(tabled(COUNT), "its content")
    whole.stop()
    return made


def _added(tokens: Iterable[tuple[StrictObject, int]]) -> Added:
    """From what files say of each; one that matches loosely is a problem."""
    ids: dict[str, int] = {}
    markup, normalized = set[str](), set[str]()
    for token, id in tokens:
        name = token.take(NAME, "content")
        if name in ids:
            token.wrong("content", name, "another than that of a token before")
        ids[name] = id
        if not token.take(FLAG, "special", default=False):
            markup.add(name)
        if token.take(FLAG, "normalized", default=False):
            normalized.add(name)
        if loosely := [n for n in ("lstrip", "rstrip", "single_word") if token.left.pop(n, None)]:
            token.problems.append(
                f"added tokens that match loosely: got {[name]} with {', '.join(loosely)}"
            )
        token.leave()
    return Added(ids, markup, normalized)


def _around(processor: StrictObject) -> tuple[list[str], list[str]]:
    """The tokens that a post-processor puts before and behind a text.

    A problem for anything else it does.
    """
    kind = processor.take(ANYTHING, "type", default="ByteLevel")
    if kind == "Sequence":
        start, end = list[str](), list[str]()
        for _, one in processor.each("processors"):  # each around what the one before made
            before, behind = _around(one)
            start, end = [*before, *start], [*end, *behind]
        return start, end
    if kind == "ByteLevel":  # it moves offsets, no ids
        return [], []
    single = processor.take(listed(_PIECE), "single", default=[]) if kind == _TEMPLATE else []
    kinds = [next(iter(piece)) for piece in single]
    if kinds.count("Sequence") != 1:
        processor.problems.append(
            f"post_processor: got {shown(kind)}, wanted ByteLevel, or {_TEMPLATE} of one text"
        )
        return [], []
    at = kinds.index("Sequence")
    named = lambda pieces: [piece["SpecialToken"]["id"] for piece in pieces]
    return named(single[:at]), named(single[at + 1 :])


_TEMPLATE = "TemplateProcessing"
_PIECE = Kind[Any](
    "a SpecialToken or a Sequence with an id",
    lambda piece: (
        isinstance(piece, dict)
        and list(piece) in (["SpecialToken"], ["Sequence"])
        and all(isinstance(one, dict) and isinstance(one.get("id"), str) for one in piece.values())
    ),
    {},
)


def _merge_ranks(
    source: Path, vocab: Mapping[str, int], merges: Sequence[Sequence[str]], added: Collection[str]
) -> dict[bytes, int]:
    """Ranks of a byte-level BPE whose ids follow its merge order, as tiktoken takes for granted."""
    vocab = {token: id for token, id in vocab.items() if token not in added}
    if odd := {char for char in set("".join(vocab)) if ord(char) not in _BYTE_OF}:
        raise ValueError(f"{source} has tokens with {sorted(odd)}: it is not a byte-level BPE")
    merged = [vocab.get("".join(pair)) if len(pair) == 2 else None for pair in merges]
    if merged != sorted(id for token, id in vocab.items() if len(token) > 1):
        raise ValueError(
            f"{source} numbers its tokens in another order than its merges make them, "
            "which tiktoken cannot follow; only Qwen's own vocabularies are supported"
        )
    return {token.translate(_BYTE_OF).encode("latin-1"): id for token, id in vocab.items()}


def _refuse_other_kinds(path: Path, file: StrictObject, model: StrictObject) -> None:
    """Raise for a tokenizer.json that is not Qwen's: NFC, the pattern, byte-level BPE, no extras.

    Its truncation and padding are left unread: settings of whoever saved it, not of the vocabulary.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    pattern = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"}
    before = file.inside("pre_tokenizer")
    inner = [stage for _, stage in before.each("pretokenizers")]
    stages = [  # trim_offsets moves offsets, no ids
        {key: value for key, value in stage.left.items() if key != "trim_offsets"}
        for stage in inner or [before]
    ]
    normalizer = file.take(ANYTHING, "normalizer", default=None)
    if normalizer == {"type": "Sequence", "normalizers": [{"type": "NFC"}]}:
        normalizer = {"type": "NFC"}
    kind = model.take(ANYTHING, "type", default=None)
    plain = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    extras = [key for key in plain if model.left.pop(key, None)]
    ids_only = {"unk_token", "fuse_unk", "ignore_merges"}
    checks = {
        "normalizer": (normalizer, {"type": "NFC"}),
        "pre_tokenizer": (stages, [pattern | {"invert": False}, byte_level]),
        "decoder": (file.inside("decoder").take(ANYTHING, "type", default=None), "ByteLevel"),
        "model type": (kind, "BPE"),
        "model settings": (extras, []),
        "model keys": (sorted(model.left.keys() - ids_only), []),
    }
    file.leave({"version", "truncation", "padding"})
    wrong = [f"{name}: got {shown(g)}, wanted {w}" for name, (g, w) in checks.items() if g != w]
    Problems([*file.problems, *wrong]).stop(f"{path} is no Qwen tokenizer")
