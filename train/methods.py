"""What is trained: everything, low-rank adapters, or adapters over quantised weights.

A method replaces linear layers and names the leaves that learn; the step is the same for all.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from qwen_jax import checkpoint
from qwen_jax.adapters import attach, peft
from qwen_jax.adapters.peft import Adapter
from qwen_jax.adapters.peft_config import LoraConfig
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.quant import QuantLinear, arrange, quantize
from qwen_jax.nn.tree import map_linears, named_leaves
from qwen_jax.storage.hf_layout import model_type_of, tensor_mappings
from qwen_jax.storage.origin import Origin
from train.nn.network import stack, unstack
from train.settings import TrainConfig

EMBEDDINGS = ("wte", "lm_head")  # what the original trains whole beside the adapters of a v1 base


@dataclass(frozen=True)
class Prepared:
    """A network ready to train, with stacked blocks, and the names of the leaves that learn."""

    params: Qwen
    trained: frozenset[str]
    adapter: LoraConfig | None  # of the adapter that is made; None: everything is trained


def prepare(params: Qwen, settings: TrainConfig) -> Prepared:
    """params: as `load` gives them; their arrays are used up.

    Raises ValueError if the settings name layers that are not there, or an adapter does not fit.
    """
    if settings.method == "full":
        params = stack(params)
        return Prepared(params, frozenset(named_leaves(params)), None)
    adapter = _adapter(params, settings)
    if settings.method == "qlora":
        params = _quantized(params, settings.bits, settings.group_size)
    params = stack(attach.add(params, adapter, jnp.float32))
    whole = _whole(params, adapter.settings)
    trained = {name for name in named_leaves(params) if ".deltas." in name or name in whole}
    return Prepared(params, frozenset(trained), adapter.settings)


def export(params: Qwen, adapter: LoraConfig | None, out: Path) -> Path:
    """Write what was trained into `out`: "adapter", as PEFT does, or "model", a native checkpoint.

    params: the trained network with stacked blocks. Every process of a run calls this. Returns the
    folder, which must not exist before.
    """
    params = unstack(params)
    if adapter is None:
        checkpoint.save(params, out / "model")
        return out / "model"
    peft.write(attach.extract(params, adapter), out / "adapter")
    return out / "adapter"


def _adapter(params: Qwen, settings: TrainConfig) -> Adapter:
    """The one to start from, or a fresh one."""
    if settings.adapter is not None:
        given = peft.read(settings.adapter)
        if given.settings.base:
            return given
        named = dataclasses.replace(given.settings, **asdict(_origin(params, settings)))
        return dataclasses.replace(given, settings=named)
    usual = attach.V1_TARGETS if model_type_of(params) == "qwen" else attach.LATER_TARGETS
    wanted = LoraConfig(
        rank=settings.rank,
        alpha=settings.alpha,
        targets=settings.targets or usual,
        dropout=settings.dropout,
        rslora=settings.rslora,
        modules_to_save=tuple(_modules_to_save(params, settings)),
    )
    wanted = dataclasses.replace(wanted, **asdict(_origin(params, settings)))
    return attach.fresh(params, wanted, jax.random.key(settings.seed))


def _origin(params: Qwen, settings: TrainConfig) -> Origin:
    """Where PEFT finds the base; a network that came from no such place goes by its folder."""
    folder = None if params.assets is None else params.assets.folder
    found = None if folder is None else Origin.read(folder)
    return found or Origin(settings.model if folder is None else str(folder.resolve()))


def _modules_to_save(params: Qwen, settings: TrainConfig) -> Iterator[str]:
    if settings.modules_to_save == ("auto",):
        base = params.assets is not None and params.assets.defaults.chat_format == "raw"
        if model_type_of(params) == "qwen" and base and settings.method == "lora":
            yield from EMBEDDINGS
    elif settings.modules_to_save != ("none",):
        yield from settings.modules_to_save


def _whole(params: Qwen, adapter: LoraConfig) -> set[str]:
    """The leaves of a stacked network that an adapter holds in full."""
    table = tensor_mappings(params.config, model_type_of(params))
    leaves = {p.leaf for tensor, p in table.items() if adapter.saves(peft.module_of(tensor))}
    return {re.sub(r"^blocks\.\d+", "blocks", leaf) for leaf in leaves}


def _quantized(params: Qwen, bits: int, group: int) -> Qwen:
    """Every linear layer of the blocks in integers, layer after layer; full ones are freed.

    A layer that its checkpoint holds so stays as it is.
    """
    platform = next(iter(params.embed.devices())).platform
    convert = jax.jit(lambda layer: arrange(quantize(layer, bits, group, False), platform))

    def change(_: str, layer: Any) -> Any:
        if isinstance(layer, QuantLinear):
            return layer
        made = jax.block_until_ready(convert(layer))
        layer.kernel.delete()
        return made

    return map_linears(change, params)
