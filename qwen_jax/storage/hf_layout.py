"""Where Hugging Face's tensors are in our network, however its layers are fused."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_jax.config import Config
from qwen_jax.nn.lora import Rows
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.quant import abstract_leaves
from qwen_jax.storage import hf_config
from qwen_jax.storage.hf_names import HEAD, TensorView, tensor_views


@dataclass(frozen=True)
class TensorMapping:
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


def tensor_mappings(config: Config, model_type: str) -> dict[str, TensorMapping]:
    """For every tensor of a Hugging Face checkpoint, in the order of the network.

    A head that repeats the embedding is there too: PEFT trains and stores it beside it.
    """
    sizes = {name: leaf.shape[0] for name, leaf in abstract_leaves(config).items()}

    def mapping(view: TensorView) -> TensorMapping:
        rows = view.rows(sizes[view.leaf])
        order, count, start = rows.argsort(), len(rows), int(rows.min())
        runs = config.kv_heads  # of a fused layer's rows
        cut = None if count == sizes[view.leaf] else Rows(runs, start, start + count // runs)
        same = (order == np.arange(count)).all()
        return TensorMapping(view.leaf, view.shape, slice(None) if same else order, cut)

    table = {view.tensor: mapping(view) for view in tensor_views(config, model_type)}
    return table if HEAD in table else table | {HEAD: next(iter(table.values()))}


def model_type_of(params: Qwen) -> str:
    """As in config.json: of the checkpoint that was loaded, or what its features amount to."""
    if params.assets is not None:
        return str(params.assets.model_type)
    return str(hf_config.to_hf(params.config)["model_type"])
