"""A vocabulary in one file that is read at once: what a conversion makes of Hugging Face's.

Format: a line of JSON, then each token's id and its length (uint32, little-endian), then the bytes
of all tokens. The merges need no parsing: a token's id says when it is made.
"""

import json
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from qwen_jax.files.strict_json import COUNT, TEXT, StrictObject, decode, listed, tabled
from qwen_jax.text.vocabulary import Vocabulary

NAME = "vocabulary.bin"
_NUMBER = np.dtype("<u4")


def pack(vocabulary: Vocabulary) -> bytes:
    head = {**vars(vocabulary), "markup": sorted(vocabulary.markup)}
    ranks = head.pop("ranks")
    numbers = np.array([[*ranks.values()], [*map(len, ranks)]], _NUMBER)
    first = json.dumps({"tokens": len(ranks), **head})
    return first.encode() + b"\n" + numbers.tobytes() + b"".join(ranks)


def unpack(content: bytes) -> Vocabulary:
    """Raises ValueError for anything that `pack` does not make."""
    first, _, rest = content.partition(b"\n")
    head = StrictObject(NAME, decode(first))
    made = Vocabulary(
        ranks=_ranks(rest, head.take(COUNT, "tokens")),
        specials=head.take(tabled(COUNT), "specials"),
        markup=head.take(listed(TEXT), "markup"),
        chat_template=head.take(TEXT, "chat_template", default=None),
        names=head.take(tabled(TEXT), "names"),
        normalized=head.take(listed(TEXT), "normalized"),
        start=head.take(listed(COUNT), "start"),
    )
    head.finish(())
    return made


def _ranks(content: bytes, count: int) -> dict[bytes, int]:
    size = 2 * count * _NUMBER.itemsize
    if size > len(content):
        raise ValueError(f"{NAME} is cut off: it has {len(content)} bytes of tokens")
    ids, lengths = np.frombuffer(content[:size], _NUMBER).reshape(2, -1).tolist()
    cuts: Sequence[int] = list(accumulate(lengths, initial=size))
    if cuts[-1] != len(content):
        raise ValueError(f"{NAME} is damaged: its tokens have other lengths")
    tokens = (content[start:stop] for start, stop in pairwise(cuts))
    ranks = dict(zip(tokens, ids, strict=True))
    if len(ranks) < count:
        raise ValueError(f"{NAME} is damaged: it has a token twice")
    return ranks
