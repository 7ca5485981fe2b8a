"""Trees of parameters by name: "blocks.0.attn.qkv" is a layer, and has a leaf "….kernel"."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from qwen_jax.nn.model import LinearLayer

FLOATS = ("float32", "bfloat16", "float16")  # dtypes of parameters
INTEGERS = ("int4", "int8", "int32")  # of what quantised layers hold
Tree = TypeVar("Tree")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their path, in the tree's order."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def named_layers(tree: Any, kind: type) -> dict[str, Any]:
    """The layers of a kind by their path, in the tree's order."""
    is_layer = lambda x: isinstance(x, kind)
    found = jax.tree.leaves_with_path(tree, is_leaf=is_layer)
    return {_name(path): x for path, x in found if is_layer(x)}


def map_layers(change: Callable[[str, Any], Any], tree: Tree, kind: type) -> Tree:
    """tree with change(name, layer) for every layer of a kind."""
    is_layer = lambda x: isinstance(x, kind)
    visit = lambda path, x: change(_name(path), x) if is_layer(x) else x
    return jax.tree.map_with_path(visit, tree, is_leaf=is_layer)


def map_linears(change: Callable[[str, Any], Any], params: Tree) -> Tree:
    """params with change(name, layer) for every linear layer of its blocks.

    name: "blocks.0.attn.qkv"; of stacked blocks "blocks.attn.qkv".
    """
    blocks_only = lambda name, layer: change(name, layer) if name.startswith("blocks") else layer
    return map_layers(blocks_only, params, LinearLayer)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
