"""Room beside a network's layers for adapters that come and go while it answers.

Its arrays are made once, full of zeros, and those that take their place have the same shapes: a
program that was compiled for the network serves it whatever is in the bank.
"""

from collections.abc import Callable

import numpy as np
from jax import Array

from qwen_jax.adapters.attach import WHOLE, A, B, beside, deltas_of, wrap
from qwen_jax.adapters.peft import Adapter
from qwen_jax.nn.lora import Deltas, LoraLinear, Rows
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.tree import named_layers, named_leaves
from qwen_jax.storage.hf_layout import model_type_of, tensor_mappings


def with_room(params: Qwen, ranks: int, adapters: int) -> Qwen:
    """params with room for so many adapters beside every linear layer of its blocks.

    ranks: of all of them together.
    """
    put = beside(params)
    scales = np.zeros((adapters + 1, ranks), np.float32)
    made: dict[str, dict[Rows | None, Deltas]] = {}
    for mapping in tensor_mappings(params.config, model_type_of(params)).values():
        if mapping.layer is not None:
            (out, width), leaf = mapping.shape, mapping.leaf
            a, b = np.zeros((ranks, width), np.int8), np.zeros((out, ranks), np.int8)
            made.setdefault(mapping.layer, {})[mapping.rows] = Deltas(
                put(a, leaf, A), put(b, leaf, B), put(scales, leaf, WHOLE), None, mapping.rows
            )
    return wrap(params, {layer: tuple(parts.values()) for layer, parts in made.items()})


class Full(ValueError):
    """There is no room until another adapter is removed."""


class Bank:
    """Which ranks of the room belong to which adapter, and what its arrays hold.

    params: as `with_room` made them. An adapter has a number from 1 to `adapters`; rows of a batch
    that follow another never see what is put at its ranks.
    """

    def __init__(self, params: Qwen):
        self._config, self._model_type = params.config, model_type_of(params)
        self._put = beside(params)
        places = {name: place for place, name in enumerate(named_leaves(params))}
        self._parts: dict[tuple[str, Rows | None], _Part] = {}
        for layer, adapted in named_layers(params, LoraLinear).items():
            for index, deltas in enumerate(adapted.deltas):
                of = f"{layer}.deltas.{index}"
                at = [places[f"{of}.{name}"] for name in ("a", "b", "scales")]
                self._parts[layer, deltas.rows] = _Part(deltas, at)
        count, ranks = next(iter(self._parts.values())).scales.shape
        self.adapters = count - 1
        self._owner = np.zeros(ranks, np.int32)  # the number of each rank's adapter; 0: free
        self._numbers = set[int]()  # of those in it

    @property
    def ranks(self) -> int:
        """Of all adapters together."""
        return len(self._owner)

    @property
    def size(self) -> int:
        """Bytes of an adapter that fills it, in float32."""
        return sum(4 * (part.a.size + part.b.size) for part in self._parts.values())

    @property
    def free(self) -> int:
        """Ranks that nobody has."""
        return int((self._owner == 0).sum())

    def put(self, adapter: Adapter, replace: Callable[[int, Array], None]) -> int:
        """Give an adapter its ranks, and its number.

        replace(place, array): what from now on is at a place among the leaves of params. Raises
        ValueError for one that does not fit the network, Full for one that does not fit what is
        free, before anything changes.
        """
        deltas = deltas_of(adapter, self._config, self._model_type)
        found = {(layer, one.rows): one for layer, parts in deltas.items() for one in parts}
        rank = max(len(one.a) for one in found.values())
        number = self._free_number(rank)
        ranks = np.flatnonzero(self._owner == 0)[:rank]
        for name, part in self._parts.items():
            delta, leaf = found.get(name), f"{name[0]}.kernel"
            part.scales[number] = 0
            if delta is not None:
                own = ranks[: len(delta.a)]
                part.a[own], part.b[:, own], part.scales[number, own] = (
                    delta.a,
                    delta.b,
                    delta.scale,
                )
                replace(part.places[0], self._put(part.a, leaf, A))
                replace(part.places[1], self._put(part.b, leaf, B))
            replace(part.places[2], self._put(part.scales, leaf, WHOLE))
        self._owner[ranks] = number
        self._numbers.add(number)
        return number

    def remove(self, number: int) -> None:
        """Nobody follows it any more; its ranks are free."""
        self._owner[self._owner == number] = 0
        self._numbers.discard(number)

    def _free_number(self, rank: int) -> int:
        if rank > self.ranks:
            raise ValueError(f"it has rank {rank}, and there is room for {self.ranks} ranks in all")
        if rank > self.free:
            raise Full(f"it has rank {rank}, and of {self.ranks} ranks {self.free} are free")
        free = set(range(1, self.adapters + 1)) - self._numbers
        if not free:
            raise Full(f"there are {self.adapters} adapters, as many as there is room for")
        return min(free)


class _Part:
    """The room beside one projection as the host knows it."""

    def __init__(self, deltas: Deltas, places: list[int]):
        self.places = places  # of a, b and scales
        dtype = np.dtype(deltas.a.dtype)
        self.a, self.b = np.zeros(deltas.a.shape, dtype), np.zeros(deltas.b.shape, dtype)
        self.scales = np.zeros(deltas.scales.shape, np.float32)
