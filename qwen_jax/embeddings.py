"""Texts as vectors: what a checkpoint for embeddings, such as Qwen3-Embedding, makes of them."""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import jax
import numpy as np

from qwen_jax.decoding import decode, generation_config
from qwen_jax.decoding.flat_params import Weights, flatten
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.pieces import Piece, share
from qwen_jax.decoding.prompts import CHUNK, pool, tile_of
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.generate import prompts_of
from qwen_jax.nn.model import Qwen
from qwen_jax.text.tokenizer import Tokenizer

_SLOTS = 32  # texts whose keys and values are held at once
_TOKENS = 32 * CHUNK  # that there is room for at once, but for one text that is longer


def embed(
    params: Qwen, texts: Any, *, dimensions: int | None = None, normalize: bool = True
) -> np.ndarray:
    """Vectors of texts: of one, float32 [D]; of a list of them, float32 [N D].

    texts: a str, a list of ids, or a list of either. Behind a str comes the token that the
        checkpoint ends texts with, or <|endoftext|>; ids are taken as they are. Qwen3-Embedding
        wants queries, and no documents, as "Instruct: what is looked for\\nQuery:the query".
    dimensions: so many of them, where the checkpoint was trained for that; default, all.
    normalize: to length 1.
    The vector of a text does not depend on the others. Raises ValueError for a text that is longer
    than the checkpoint reads.
    """
    rows, single = prompts_of(params, texts, whole_ids)
    generation_config.check_prompt(params.config, max(map(len, rows)))
    dimensions = check_dimensions(dimensions, params.config.width)
    weights = flatten(params)
    found = np.zeros((len(rows), params.config.width), np.float32)
    for numbers in _groups([len(row) for row in rows]):
        found[numbers] = _last_states(weights, [rows[number] for number in numbers])
    made = shortened(found, dimensions, normalize)
    return made[0] if single else made


def end_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids behind every text that becomes a vector."""
    return tokenizer.end or (tokenizer.end_of_text,)


def whole_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that becomes a vector: as a text to complete, and it has an end."""
    return [*tokenizer.encode_prompt(text), *end_of(tokenizer)]


def check_dimensions(dimensions: int | None, width: int) -> int:
    """How many are wanted; raises ValueError for more than there are."""
    if dimensions is None:
        return width
    whole = isinstance(dimensions, Integral) and not isinstance(dimensions, bool)
    if not whole or not 1 <= dimensions <= width:
        raise ValueError(f"got dimensions {dimensions!r}, this checkpoint has 1 to {width}")
    return int(dimensions)


def shortened(vectors: np.ndarray, dimensions: int, normalize: bool) -> np.ndarray:
    """The first dimensions of hidden states [N D], each row of length 1 if that is wanted."""
    made = vectors[:, :dimensions]
    if normalize:
        made = made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
    return np.asarray(made, np.float32)


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of texts that are computed together: those of like length."""
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        longest = decode.cache_length(lengths[number], 1)
        if group and (len(group) == _SLOTS or (len(group) + 1) * longest > _TOKENS):
            yield group
            group = []
        group.append(number)
    yield group


def _last_states(weights: Weights, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """float32 [N D]: each text's last hidden state."""
    settings, lengths = SamplingArrays.of(Sampling(), (), 0), [len(text) for text in texts]
    slots = decode.power(len(texts))
    state = decode.start(weights, slots, decode.cache_length(max(lengths), 1))
    tile = tile_of(weights.platform, max(lengths))
    found = np.zeros((len(texts), weights.structure.config.width), np.float32)
    for call in share(lengths, tile, CHUNK // tile):
        pieces = [
            Piece(number, texts[number][start:end], start, lengths[number], settings, 0, last=False)
            for number, start, end in call
        ]
        state, vectors = pool(weights, state, pieces, tile=tile)
        for (number, _, end), vector in zip(call, jax.device_get(vectors), strict=False):
            if end == lengths[number]:
                found[number] = vector
    return found
