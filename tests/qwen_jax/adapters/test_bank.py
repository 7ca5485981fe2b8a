"""Adapters that take each other's places in a network that stays compiled."""

from typing import Any

import jax
import numpy as np
import pytest

from qwen_jax.adapters.bank import Bank, Full, with_room
from qwen_jax.decoding import decode
from qwen_jax.nn.sharding import make_mesh, shardings
from tests.adapters import merged
from tests.qwen_jax.adapters.test_attach import IDS, case
from tests.qwen_jax.adapters.test_several import several
from tests.qwen_jax.networks import cache_sizes, finish, prefill
from tests.reference import greedy


def test_they_come_and_go() -> None:
    """Each answers as the reference with it alone, over devices; ranks and numbers are shared."""
    params, made = several("v1")
    hf, tensors, *_ = case("v1")
    params = jax.device_put(params, shardings(params.config, make_mesh(2, 1)))
    params = with_room(params, ranks=9, adapters=2)
    bank, leaves = Bank(params), jax.tree.leaves(params)
    places: list[Any] = [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves]

    def answered(number: int) -> list[int]:
        network = jax.tree.unflatten(jax.tree.structure(params), leaves)
        state = decode.start(network, 2, 64)
        state, output = prefill(network, state, 0, IDS, new=8, adapter=number)
        state, tokens = finish(network, state, {0: output.tokens[0].tolist()})
        return tokens[0]

    wanted = {
        name: greedy(hf, merged(tensors, adapter), IDS, 8)[len(IDS) :]
        for name, adapter in made.items()
    }
    bare = greedy(hf, tensors, IDS, 8)[len(IDS) :]
    assert answered(0) == bare
    programs = cache_sizes(decode._step.plain)
    assert bank.put(made["0"], leaves.__setitem__) == 1  # 4 ranks
    assert bank.put(made["2"], leaves.__setitem__) == 2  # 5 ranks
    assert [answered(0), answered(1), answered(2)] == [bare, wanted["0"], wanted["2"]]
    with pytest.raises(Full, match="it has rank 2, and of 9 ranks 0 are free"):
        bank.put(made["1"], leaves.__setitem__)
    bank.remove(1)
    assert bank.put(made["1"], leaves.__setitem__) == 1
    assert [answered(0), answered(1), answered(2)] == [bare, wanted["1"], wanted["2"]]
    assert [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves] == places
    assert cache_sizes(decode._step.plain) == programs


def test_one_that_fails_halfway_leaves_no_trace() -> None:
    params, made = several("qwen2")
    bank, placed = Bank(with_room(params, 4, 1)), dict[int, Any]()

    def fail(place: int, array: Any) -> None:
        if len(placed) == 3:
            raise MemoryError
        placed[place] = array

    with pytest.raises(MemoryError):
        bank.put(made["0"], fail)
    assert bank.free == 4
    placed.clear()
    assert bank.put(made["1"], placed.__setitem__) == 1
    scales = [np.asarray(array) for array in placed.values() if array.shape == (2, 4)]
    used = {tuple(np.flatnonzero(one[1])) for one in scales}
    assert used == {(), (0, 1)}
