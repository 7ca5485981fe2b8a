"""Where Hugging Face's tensors are in our network, however its layers are fused."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_jax import hf_config, native
from qwen_jax.config import Config
from qwen_jax.lora import Rows
from qwen_jax.model import Qwen
from qwen_jax.names import HEAD, Part, parts


@dataclass(frozen=True)
class Place:
    """Where one of Hugging Face's tensors is in our network."""

    leaf: str  # "blocks.0.attn.qkv.kernel"
    shape: tuple[int, ...]
    order: Any  # ours = theirs[order]: indices, or a slice of everything
    rows: Rows | None  # the leaf's rows that it fills; None: all

    @property
    def layer(self) -> str | None:
        """The linear layer of a block whose kernel this is."""
        layer, _, kind = self.leaf.rpartition(".")
        return layer if kind == "kernel" and layer.startswith("blocks.") else None


def places(config: Config, model_type: str) -> dict[str, Place]:
    """For every tensor of a Hugging Face checkpoint, in the order of the network.

    A head that repeats the embedding is there too: PEFT trains and stores it beside it.
    """
    sizes = {name: leaf.shape[0] for name, leaf in native.abstract_leaves(config).items()}

    def place(part: Part) -> Place:
        rows = part.rows(sizes[part.leaf])
        order, count, start = rows.argsort(), len(rows), int(rows.min())
        runs = config.kv_heads  # of a fused layer's rows
        cut = None if count == sizes[part.leaf] else Rows(runs, start, start + count // runs)
        same = (order == np.arange(count)).all()
        return Place(part.leaf, part.shape, slice(None) if same else order, cut)

    table = {part.tensor: place(part) for part in parts(config, model_type)}
    return table if HEAD in table else table | {HEAD: next(iter(table.values()))}


def model_type_of(params: Qwen) -> str:
    """As in config.json: of the checkpoint that was loaded, or what its features amount to."""
    if params.assets is not None:
        return str(params.assets.model_type)
    return str(hf_config.to_hf(params.config)["model_type"])
