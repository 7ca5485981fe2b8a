"""The quantised layers of a Hugging Face checkpoint, and the parts they give of ours."""

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.packed import Packing, Read, read_packing
from convert.source import QUANTISED
from qwen_jax.names import Part
from qwen_jax.native import read_json
from qwen_jax.quant import Format

INTEGERS = (".qweight", ".qzeros", ".g_idx")


class Module:
    """A quantised layer of a checkpoint: `part` says which rows of which of ours its weight is."""

    def __init__(self, part: Part, packing: Packing):
        self.part, self.packing = part, packing
        self.name = part.tensor.removesuffix(".weight")
        self.layer = part.leaf.removesuffix(".kernel")

    def tensors(self, present: Container[str]) -> dict[str, tuple[int, ...]]:
        """What a checkpoint must hold of it; two tensors are there or not."""
        out, inputs = self.part.shape
        shapes = {**self.packing.tensors(out, inputs), "bias": (out,)}
        named = {f"{self.name}.{tensor}": shape for tensor, shape in shapes.items()}
        optional = {f"{self.name}.bias", f"{self.name}.g_idx"}
        return {n: shape for n, shape in named.items() if n in present or n not in optional}

    def format(self, read: Read) -> Format:
        """Raises ValueError where it holds what no layer of ours does."""
        zeros, order = self.packing.zeros(read).any(), self.packing.order(read)
        groups = self.packing.groups(self.part.shape[1])
        return Format(self.packing.bits, groups, bool(zeros), order is not None)

    def parts(self, format: Format) -> Iterator[Part]:
        """What fills the leaves of ours; the tensors are named "MODULE:codes"."""
        out, inputs = self.part.shape
        shapes = {"codes": (out, inputs), "scales": (out, format.groups)}
        shapes |= {"zeros": (out, format.groups)} if format.zeros else {}
        for field, shape in shapes.items():
            leaf = f"{self.layer}.{field}"
            yield Part(f"{self.name}:{field}", shape, leaf, self.part.views)
        if format.order:
            whole = lambda leaf, tensor: (leaf, tensor)
            yield Part(f"{self.name}:order", (inputs,), f"{self.layer}.order", whole)


def find_modules(
    packing: Packing | None, weights: Iterable[Part], tensors: Container[str]
) -> list[Module]:
    """Those of a checkpoint's linear layers that are packed."""
    packed = [
        part for part in weights if f"{part.tensor.removesuffix('.weight')}.qweight" in tensors
    ]
    if packing is None and packed:
        raise ValueError(
            f"{packed[0].tensor} is packed, but neither config.json nor {' nor '.join(QUANTISED)} "
            "says how; download the one that the model came with"
        )
    if packing is None:
        return []
    if not packed:
        raise ValueError("config.json says the weights are packed, but there is no qweight")
    return [Module(part, packing) for part in packed]


def find_formats(
    modules: Iterable[Module], read: Callable[[str], np.ndarray], problems: list[str]
) -> dict[str, Format]:
    """Of each of our layers, from the small tensors of the modules that make it up."""
    formats: dict[str, Format] = {}
    orders: dict[str, np.ndarray | None] = {}
    for module in modules:
        own = lambda tensor, name=module.name: read(f"{name}.{tensor}")
        try:
            format, order = module.format(own), module.packing.order(own)
        except ValueError as error:
            problems.append(f"{module.name}: {error}")
            continue
        before, first = formats.get(module.layer, format), orders.setdefault(module.layer, order)
        formats[module.layer] = dataclasses.replace(format, zeros=before.zeros or format.zeros)
        if (first is None) != (order is None) or (first is not None and (first != order).any()):
            problems.append(
                f"{module.name}.g_idx differs from that of the projections beside it, which are "
                "one product here; take a checkpoint without act-order (desc_act)"
            )
    return formats


def find_packing(folder: Path, config: Mapping[str, Any]) -> Packing | None:
    """What the files of a checkpoint say of its packing; None: it is not packed."""
    found = []
    if content := config.get("quantization_config"):
        found.append(read_packing("quantization_config", content, None))
    for file, method in QUANTISED.items():
        if (folder / file).is_file():
            found.append(read_packing(file, read_json(folder / file), method))
    if any(packing != found[0] for packing in found):
        raise ValueError(f"quantization_config and {' or '.join(QUANTISED)} disagree: {found}")
    return found[0] if found else None
