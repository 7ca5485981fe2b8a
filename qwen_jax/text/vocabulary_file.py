"""A vocabulary in one file that is read at once: what a conversion makes of Hugging Face's.

Format: a line of JSON, then each token's id and its length (uint32, little-endian), then the bytes
of all tokens. The merges need no parsing: a token's id says when it is made.
"""

import json
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from qwen_jax.files.strict_json import COUNT, TEXT, StrictObject, decode, listed, tabled
from qwen_jax.text.vocabulary import Vocabulary

NAME = "vocabulary.bin"
_NUMBER = np.dtype("<u4")


def pack(vocabulary: Vocabulary) -> bytes:
    head = {**vars(vocabulary), "markup": sorted(vocabulary.markup)}
    ranks = head.pop("ranks")
    if not head["end"]:  # few have one
        del head["end"]
    numbers = np.array([[*ranks.values()], [*map(len, ranks)]], _NUMBER)
    first = json.dumps({"tokens": len(ranks), **head})
    return first.encode() + b"\n" + numbers.tobytes() + b"".join(ranks)


def unpack(content: bytes) -> Vocabulary:
    """Raises ValueError for anything that `pack` does not make."""
    first, _, rest = content.partition(b"\n")
    head = StrictObject(NAME, decode(first))
    size = 2 * head.take(COUNT, "tokens") * _NUMBER.itemsize
    entries: dict[str, Any] = {
        "specials": head.take(tabled(COUNT), "specials"),
        "markup": frozenset(head.take(listed(TEXT), "markup")),
        "chat_template": head.take(TEXT, "chat_template", default=None),
        "names": head.take(tabled(TEXT), "names"),
        "normalized": tuple(head.take(listed(TEXT), "normalized")),
        "start": tuple(head.take(listed(COUNT), "start")),
        "end": tuple(head.take(listed(COUNT), "end", default=[])),
    }
    head.finish()
    if size > len(rest):
        raise ValueError(f"{NAME} is cut off: it has {len(rest)} bytes of tokens")
    ids, lengths = np.frombuffer(rest[:size], _NUMBER).reshape(2, -1).tolist()
    cuts = list(accumulate(lengths, initial=size))
    if cuts[-1] != len(rest) or max(ids, default=0) >= 2**31:
        raise ValueError(f"{NAME} is damaged: its tokens have other lengths or ids")
    ranks = dict(zip((rest[start:stop] for start, stop in pairwise(cuts)), ids, strict=True))
    if len(ranks) < len(ids):
        raise ValueError(f"{NAME} is damaged: it has a token twice")
    return Vocabulary(ranks, **entries)
