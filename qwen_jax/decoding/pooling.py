"""What a text amounts to: the hidden state of its last token, or how some ids would go on with it.

Pieces of texts come as to `prompts.prefill`, and nothing is sampled behind the last:

    state, vectors = pool(params, state, pieces)           # [count D]
    state, logits = pool(params, state, pieces, ids=ids)   # [count len(ids)]
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from qwen_jax.decoding.flat_params import Weights, flatten
from qwen_jax.decoding.pieces import Packed, Piece, newest, piece_program
from qwen_jax.decoding.prompts import own_pages, packed_for
from qwen_jax.decoding.state import State, constrain, gather_logits, replicated
from qwen_jax.nn.model import Qwen


def pool(
    params: Qwen | Weights,
    state: State,
    pieces: Sequence[Piece],
    table: np.ndarray | None = None,
    *,
    ids: Sequence[int] | None = None,
    tile: int | None = None,
    rows: int | None = None,
    count: int | None = None,
) -> tuple[State, Array]:
    """Compute pieces; of each, float32 of its last token. The other arguments are `prefill`'s.

    The slots stay idle. ids: whose logits are wanted in the place of the hidden state.
    """
    weights = flatten(params)
    packed = packed_for(weights, state, pieces, tile, rows, count)
    wanted = None if ids is None else np.asarray(ids, np.int32)
    return _pool(weights, state, packed, own_pages(table, packed), wanted)


@piece_program
def _pool(
    weights: Weights, state: State, x: Array, packed: Packed, ids: Array | None
) -> tuple[State, Array]:
    x, mesh = newest(x, packed), weights.structure.mesh
    if ids is not None:
        x = gather_logits(weights.model().logits(x), mesh)[:, ids]
    found = replicated(x.astype(jnp.float32), mesh)
    return constrain(State(state.cache, state.rows), mesh), found
