"""A vocabulary in one file that is read at once: what a conversion makes of Hugging Face's.

Format: a line of JSON, then each token's id and its length (uint32, little-endian), then the bytes
of all tokens. The merges need no parsing: a token's id says when it is made.
"""

import json
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from qwen_jax.files import strict_json
from qwen_jax.text.vocabulary import Vocabulary

NAME = "vocabulary.bin"
_NUMBER = np.dtype("<u4")
_KINDS = {
    "tokens": int,
    "specials": dict,
    "markup": list,
    "chat_template": str | None,
    "names": dict,
}  # of the entries of the first line


def pack(vocabulary: Vocabulary) -> bytes:
    head = {**vars(vocabulary), "markup": sorted(vocabulary.markup)}
    ranks = head.pop("ranks")
    numbers = np.array([[*ranks.values()], [*map(len, ranks)]], _NUMBER)
    first = json.dumps({"tokens": len(ranks), **head})
    return first.encode() + b"\n" + numbers.tobytes() + b"".join(ranks)


def unpack(content: bytes) -> Vocabulary:
    """Raises ValueError for anything that `pack` does not make."""
    first, _, rest = content.partition(b"\n")
    head = strict_json.decode(first)
    if not _is_head(head):
        raise ValueError(f"{NAME} is no vocabulary: its first line has other entries")
    size = 2 * head.pop("tokens") * _NUMBER.itemsize
    if size > len(rest):
        raise ValueError(f"{NAME} is cut off: it has {len(rest)} bytes of tokens")
    ids, lengths = np.frombuffer(rest[:size], _NUMBER).reshape(2, -1).tolist()
    cuts = list(accumulate(lengths, initial=size))
    if cuts[-1] != len(rest) or max(ids, default=0) >= 2**31:
        raise ValueError(f"{NAME} is damaged: its tokens have other lengths or ids")
    ranks = dict(zip((rest[start:stop] for start, stop in pairwise(cuts)), ids, strict=True))
    if len(ranks) < len(ids):
        raise ValueError(f"{NAME} is damaged: it has a token twice")
    return Vocabulary(ranks, **head)


def _is_head(head: Any) -> bool:
    if not isinstance(head, dict) or head.keys() != _KINDS.keys():
        return False
    if not all(isinstance(head[name], kind) for name, kind in _KINDS.items()):
        return False
    sizes = [head["tokens"], *head["specials"].values()]
    texts = [*head["markup"], *head["names"].values()]
    return all(type(n) is int and 0 <= n < 2**31 for n in sizes) and all(
        isinstance(text, str) for text in texts
    )
