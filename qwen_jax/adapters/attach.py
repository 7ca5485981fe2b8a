"""Adapters in our network: added beside its layers, taken out again, merged into its weights.

`peft` reads and writes them by Hugging Face's names; here each finds its layer, and its rows their
places, however our layers are fused.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from qwen_jax.adapters.peft import Adapter, module_of
from qwen_jax.adapters.peft_config import LoraConfig, ends
from qwen_jax.config import Config
from qwen_jax.files.problems import Problems
from qwen_jax.nn.lora import Delta, Deltas, LoraLinear, Rows
from qwen_jax.nn.model import Linear, Qwen
from qwen_jax.nn.sharding import dividing, mesh_of, shardings
from qwen_jax.nn.tree import map_linears, named_leaves
from qwen_jax.storage.hf_layout import TensorMapping, model_type_of, tensor_mappings

V1_TARGETS = ("c_attn", "c_proj", "w1", "w2")
LATER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


# --- does it fit ------------------------------------------------------------------------------
def check(adapter: Adapter, config: Config, model_type: str) -> None:
    """Raise ValueError with everything in which an adapter does not fit a network."""
    base = f" (made for {adapter.settings.base})" if adapter.settings.base else ""
    title = f"the adapter{base} does not fit this network, a {model_type} of {config.layers} layers"
    Problems(_misfits(adapter, config, tensor_mappings(config, model_type))).stop(title)


def _misfits(adapter: Adapter, config: Config, table: dict[str, TensorMapping]) -> Iterator[str]:
    for module, (a, b) in adapter.deltas.items():
        mapping = table.get(module + ".weight")
        if mapping is None or mapping.layer is None:
            yield f"{module} is no linear layer of its blocks"
        elif (b.shape[0], a.shape[1]) != mapping.shape:
            yield f"{module} is [{b.shape[0]}, {a.shape[1]}], the layer is {list(mapping.shape)}"
    for tensor, array in adapter.saved.items():
        mapping = table.get(tensor)
        if mapping is None:
            yield f"{tensor} is no tensor of it"
        elif array.shape != mapping.shape:
            yield f"{tensor} is {list(array.shape)}, the network's is {list(mapping.shape)}"
        elif mapping.rows is not None:
            yield f"{tensor} is whole, which only works for layers that we do not fuse"
    twins = _twins(table)
    given = [adapter.saved[tensor] for tensor in twins if tensor in adapter.saved]
    if given and not (len(given) == len(twins) and all(np.array_equal(given[0], x) for x in given)):
        yield f"{' and '.join(twins)} are one array here, the adapter makes them differ"


def _twins(table: dict[str, TensorMapping]) -> list[str]:
    """The names of the embedding: that of the head as well, where the two are tied."""
    return [tensor for tensor, mapping in table.items() if mapping.leaf == "embed"]


# --- in and out -------------------------------------------------------------------------------
def add(params: Qwen, adapter: Adapter, dtype: Any = None, model_type: str | None = None) -> Qwen:
    """params with an adapter's matrices beside its layers, on the devices where those lie.

    dtype: of all that the adapter holds; default, the embedding's. model_type: as in config.json;
    default, that of the checkpoint. Raises ValueError if it does not fit.
    """
    config, model_type = params.config, model_type or model_type_of(params)
    check(adapter, config, model_type)
    saved, deltas = _ours(adapter, tensor_mappings(config, model_type), beside(params, dtype))
    leaves = named_leaves(params)
    if missing := sorted(saved.keys() - leaves.keys()):
        raise ValueError(f"the adapter has whole {missing}, which this network keeps otherwise")

    whole = [saved.get(name, leaf) for name, leaf in leaves.items()]
    return wrap(jax.tree.unflatten(jax.tree.structure(params), whole), deltas)


def add_all(params: Qwen, adapters: Mapping[str, Adapter], dtype: Any = None) -> Qwen:
    """params with several adapters beside its layers, by number from 1 in their order.

    `lora.select_adapters` says which row of a batch follows which; `bank` has those that come and
    go. Raises ValueError if one does not fit, or has whole tensors, of which a network holds one.
    """
    found: dict[str, dict[Rows | None, dict[int, Delta]]] = {}
    for number, (name, adapter) in enumerate(adapters.items(), 1):
        try:
            parts = deltas_of(adapter, params.config, model_type_of(params))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        for layer, deltas in parts.items():
            for delta in deltas:
                found.setdefault(layer, {}).setdefault(delta.rows, {})[number] = delta
    put, count = beside(params, dtype), len(adapters)
    together = {
        layer: tuple(_together(layer + ".kernel", own, count, put) for own in parts.values())
        for layer, parts in found.items()
    }
    return wrap(params, together)


def deltas_of(adapter: Adapter, config: Config, model_type: str) -> dict[str, tuple[Delta, ...]]:
    """Each layer's deltas on the host, of an adapter beside others; raises as `add_all` does."""
    check(adapter, config, model_type)
    saved, deltas = _ours(adapter, tensor_mappings(config, model_type), lambda array, *_: array)
    if saved:
        raise ValueError(
            f"it replaces {', '.join(sorted(saved))} as a whole, and a network with several "
            "adapters has one of each; merge it into a checkpoint of its own"
        )
    return deltas


def _together(leaf: str, own: dict[int, Delta], count: int, put: "Put") -> Deltas:
    """The deltas of one projection, by the numbers of their adapters, as one."""
    deltas = list(own.values())
    a, b = np.concatenate([d.a for d in deltas]), np.concatenate([d.b for d in deltas], axis=1)
    scales, end = np.zeros((count + 1, len(a)), np.float32), 0
    for number, delta in own.items():
        begin, end = end, end + len(delta.a)
        scales[number, begin:end] = delta.scale
    return Deltas(put(a, leaf, A), put(b, leaf, B), put(scales, leaf, WHOLE), None, deltas[0].rows)


def wrap(params: Qwen, deltas: Mapping[str, tuple[Any, ...]]) -> Qwen:
    """params with what adapters add to its layers, by their names."""
    assert isinstance(params.blocks, tuple), "only blocks that are not stacked are adapted"

    def wrap(name: str, layer: Any) -> Any:
        if name not in deltas:
            return layer
        if isinstance(layer, LoraLinear):
            raise ValueError(f"{name} has an adapter already; fuse it first, or load without it")
        return LoraLinear(layer, deltas[name])

    return map_linears(wrap, params)


Put = Callable[[Any, str, Callable[..., Any]], Any]
A: Callable[..., Any] = lambda out, inp: (None, inp)  # where a matrix [R in] lies beside a kernel
B: Callable[..., Any] = lambda out, inp: (out, None)  # [out R]
WHOLE: Callable[..., Any] = lambda out, inp: (None, None)  # scales, as they are everywhere


def beside(params: Qwen, dtype: Any = None) -> Put:
    """put(array, leaf, axes): an array on the devices where a leaf of params lies."""
    dtype, mesh = np.dtype(dtype or params.embed.dtype), mesh_of(params)
    where = named_leaves(shardings(params.config, mesh)) if mesh else {}

    def put(array: Any, leaf: str, axes: Callable[..., Any]) -> Array:
        host, kind = np.asarray(array), np.float32 if axes is WHOLE else dtype
        sharding: Any = params.embed.sharding
        if mesh is not None:
            sharding = NamedSharding(mesh, dividing(mesh, axes(*where[leaf].spec), host.shape))
        cut = lambda index: np.array(host[index], kind)  # a copy: the file may be written again
        return jax.make_array_from_callback(host.shape, sharding, cut)

    return put


def _ours(
    adapter: Adapter, table: dict[str, TensorMapping], put: Put
) -> tuple[dict[str, Any], dict[str, tuple[Delta, ...]]]:
    """An adapter that fits, by our names: whole leaves, and each layer's deltas.

    put(array, leaf, axes) makes an array that lies along axes(*those of the leaf).
    """
    settings, scales = adapter.settings, adapter.settings.scales(adapter.deltas)
    saved: dict[str, Any] = {}
    deltas: dict[str, tuple[Delta, ...]] = {}
    for tensor, mapping in table.items():
        leaf, module = mapping.leaf, module_of(tensor)
        if tensor in adapter.saved and leaf not in saved:
            saved[leaf] = put(adapter.saved[tensor][mapping.order], leaf, lambda *axes: axes)
        elif mapping.layer and module in adapter.deltas:
            a, b = adapter.deltas[module]
            delta = Delta(
                a=put(a, leaf, A),
                b=put(b[mapping.order], leaf, B),
                keys=None,
                rows=mapping.rows,
                scale=scales[module],
                dropout=settings.dropout,
            )
            deltas[mapping.layer] = (*deltas.get(mapping.layer, ()), delta)
    return saved, deltas


def extract(params: Qwen, settings: LoraConfig, model_type: str | None = None) -> Adapter:
    """What `add` put into params, or training made of it. Every process of a run calls this."""
    found: dict[tuple[str, Rows | None], Delta] = {}

    def collect(name: str, layer: Any) -> Any:
        for delta in layer.deltas if isinstance(layer, LoraLinear) else ():
            found[name, delta.rows] = delta
        return layer

    map_linears(collect, params)
    leaves = named_leaves(params)
    deltas, saved = {}, {}
    for tensor, mapping in tensor_mappings(
        params.config, model_type or model_type_of(params)
    ).items():
        module = module_of(tensor)
        if settings.saves(module):
            saved[tensor] = _theirs(leaves[mapping.leaf], mapping)
        elif mapping.layer and (mapping.layer, mapping.rows) in found:
            delta = found[mapping.layer, mapping.rows]
            deltas[module] = _host(delta.a), _theirs(delta.b, mapping)
    return Adapter(settings, deltas, saved)


def _theirs(array: Array, mapping: TensorMapping) -> np.ndarray:
    ours = _host(array)
    made = np.empty_like(ours)
    made[mapping.order] = ours
    return made


def _host(array: Array) -> np.ndarray:
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def fresh(params: Qwen, settings: LoraConfig, key: Array, model_type: str | None = None) -> Adapter:
    """An adapter to train, which changes nothing yet: A uniform within 1/sqrt(in), B zero.

    So PEFT starts one. It holds no whole tensors: those of modules_to_save are the base's at first.
    Raises ValueError if the settings name what is not there.
    """
    table = tensor_mappings(params.config, model_type or model_type_of(params))
    modules = {module_of(tensor): mapping for tensor, mapping in table.items() if mapping.layer}
    _expect(settings.targets, modules, "targets")
    _expect(settings.modules_to_save, set(map(module_of, table)), "modules_to_save")
    twins = tuple(map(module_of, _twins(table)))
    if any(map(settings.saves, twins)):  # both of a tied pair are stored
        more = (twin for twin in twins if not settings.saves(twin))
        settings = dataclasses.replace(settings, modules_to_save=(*settings.modules_to_save, *more))
    deltas, ranks = {}, settings.ranks(settings.adapted(modules))
    for number, (module, mapping) in enumerate(modules.items()):
        if rank := ranks.get(module):
            out, inp = mapping.shape
            own = jax.random.fold_in(key, number)
            a = jax.random.uniform(own, (rank, inp), minval=-(inp**-0.5), maxval=inp**-0.5)
            deltas[module] = a, jnp.zeros((out, rank))
    if not deltas:
        raise ValueError(f"targets {settings.targets!r} match no linear layer")
    return Adapter(settings, deltas, {})


def _expect(names: tuple[str, ...] | str, modules: Collection[str], what: str) -> None:
    """Every name must be a module's, or its end."""
    unknown = [n for n in names if not any(ends(n, module) for module in modules)]
    if unknown and not isinstance(names, str):
        known = sorted({module.rpartition(".")[2] for module in modules})
        raise ValueError(f"{what} {unknown} are not in this network; it has {', '.join(known)}")


# --- merging ----------------------------------------------------------------------------------
def merger(
    adapter: Adapter, config: Config, model_type: str
) -> Callable[[str, np.ndarray], np.ndarray]:
    """A function (leaf's name, array) -> the array with the adapter in it, rounded once.

    It needs memory for one leaf at a time. Raises ValueError if the adapter does not fit.
    """
    check(adapter, config, model_type)
    saved, deltas = _ours(adapter, tensor_mappings(config, model_type), lambda array, *_: array)

    def merged(name: str, leaf: np.ndarray) -> np.ndarray:
        layer, _, kind = name.rpartition(".")
        if name in saved:
            with np.errstate(over="ignore"):
                made = saved[name].astype(leaf.dtype)
        elif kind == "kernel" and layer in deltas:
            adapted = LoraLinear(Linear(jnp.asarray(leaf), None), deltas[layer])
            made = np.asarray(jax.jit(LoraLinear.fused)(adapted).kernel)
        else:
            return leaf
        with np.errstate(invalid="ignore"):  # a NaN is the least and the largest
            bounds = made.min(), made.max()
        if not np.isfinite(bounds).all():
            raise ValueError(f"{name} with the adapter is not finite in {leaf.dtype.name}")
        return made

    return merged
