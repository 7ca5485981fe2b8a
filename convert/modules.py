"""The quantised layers of a Hugging Face checkpoint, and the parts they give of ours."""

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.packed import Packing, Read, read_packing
from convert.source import QUANTISED
from qwen_jax.config import Config
from qwen_jax.files import strict_json
from qwen_jax.files.problems import Problems
from qwen_jax.files.strict_json import is_off
from qwen_jax.nn.quant import FIELDS, Format, abstract_leaves
from qwen_jax.storage.hf_names import TensorView

INTEGERS = (".qweight", ".qzeros", ".g_idx")


class Module:
    """A quantised layer of a checkpoint: `part` says which rows of which of ours its weight is."""

    def __init__(self, part: TensorView, packing: Packing):
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

    def parts(self, format: Format) -> Iterator[TensorView]:
        """What fills the leaves of ours; the tensors are named "MODULE:codes"."""
        out, inputs = self.part.shape
        shapes = {"codes": (out, inputs), "scales": (out, format.groups)}
        shapes |= {"zeros": (out, format.groups)} if format.zeros else {}
        for field, shape in shapes.items():
            leaf = f"{self.layer}.{field}"
            yield TensorView(f"{self.name}:{field}", shape, leaf, self.part.views)
        if format.order:
            whole = lambda leaf, tensor: (leaf, tensor)
            yield TensorView(f"{self.name}:order", (inputs,), f"{self.layer}.order", whole)

    def pack(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Its tensors, but for a bias, from the leaves of ours."""
        fields = {name: leaves.get(f"{self.layer}.{name}") for name in FIELDS}
        for name in ("codes", "scales", "zeros"):
            if (leaf := fields[name]) is not None:
                fields[name] = self.part.of(leaf)
        made = self.packing.pack(fields)
        return {f"{self.name}.{tensor}": array for tensor, array in made.items()}


def find_modules(
    packing: Packing | None, weights: Iterable[TensorView], tensors: Container[str]
) -> list[Module]:
    """Those of a checkpoint's linear layers that are packed."""
    named = ((part.tensor.removesuffix(".weight"), part) for part in weights)
    packed = {name: part for name, part in named if f"{name}.qweight" in tensors}
    if packing is None and packed:
        raise ValueError(
            f"{next(iter(packed))}.qweight is packed, but neither config.json nor "
            f"{' nor '.join(QUANTISED)} says how; download the one that the model came with"
        )
    if packing is None:
        return []
    if not packed:
        raise ValueError("config.json says the weights are packed, but there is no qweight")
    return [Module(part, packing) for part in packed.values()]


def find_formats(
    modules: Iterable[Module], read: Callable[[str], np.ndarray], problems: Problems
) -> dict[str, Format]:
    """Of each of our layers, from the small tensors of the modules that make it up."""
    formats: dict[str, Format] = {}
    orders: dict[str, np.ndarray | None] = {}
    for module in modules:
        own = lambda tensor, name=module.name: read(f"{name}.{tensor}")
        try:
            format, order = module.format(own), module.packing.order(own)
        except ValueError as error:
            problems.add(f"{module.name}: {error}")
            continue
        before, first = formats.get(module.layer, format), orders.setdefault(module.layer, order)
        formats[module.layer] = dataclasses.replace(format, zeros=before.zeros or format.zeros)
        if (first is None) != (order is None) or (first is not None and (first != order).any()):
            problems.add(
                f"{module.name}.g_idx differs from that of the projections beside it, which are "
                "one product here; take a checkpoint without act-order (desc_act)"
            )
    return formats


def find_packing(folder: Path, config: Mapping[str, Any]) -> Packing | None:
    """What the files of a checkpoint say of its packing; None: it is not packed."""
    found = []
    if not is_off(content := config.get("quantization_config")) and content != {}:
        found.append(read_packing("quantization_config in config.json", content, None))
    for file, method in QUANTISED.items():
        if (folder / file).is_file():
            found.append(read_packing(file, strict_json.read(folder / file), method))
    if any(packing != found[0] for packing in found):
        raise ValueError(f"quantization_config and {' or '.join(QUANTISED)} disagree: {found}")
    return found[0] if found else None


def choose_packing(
    config: Config, formats: Mapping[str, Format], found: Packing | None, method: str | None
) -> Packing | None:
    """How to write a network's quantised layers: as they came where that is still true of them.

    method: "gptq", "awq", or None. Raises ValueError where that cannot hold these layers.
    """
    if not formats:
        if method is not None:
            raise ValueError(f"no layer is quantised, so none can be packed as {method}")
        return None
    leaves = abstract_leaves(config, formats)
    inputs = {layer: leaves[f"{layer}.codes"].shape[1] for layer in formats}
    fits = lambda packing: all(
        (format.bits, format.groups) == (packing.bits, packing.groups(inputs[layer]))
        for layer, format in formats.items()
    )
    if found is not None and found.method == (method or found.method) and fits(found):
        return found
    method = method or "gptq"
    layer, format = next(iter(formats.items()))
    size = None if format.groups == 1 else inputs[layer] // format.groups
    zeros, order = (any(getattr(f, name) for f in formats.values()) for name in ("zeros", "order"))
    made = Packing(method, format.bits, size, less_one=method == "gptq" and not zeros)
    if not fits(made):
        raise ValueError(
            f"layers differ in bits or in the size of groups; {method} has one for all"
        )
    if method == "awq" and (format.bits != 4 or order):
        raise ValueError("AWQ holds 4 bits and no act-order; use --packing gptq")
    return made


def to_config(
    config: dict[str, Any], packing: Packing | None, formats: Mapping[str, Format]
) -> dict[str, Any]:
    """config.json with what others need to know of a packing."""
    made = {key: value for key, value in config.items() if key != "quantization_config"}
    if packing is None:
        return made
    size = packing.size or -1
    common = {"quant_method": packing.method, "bits": packing.bits, "group_size": size}
    if packing.method == "awq":
        return made | {"quantization_config": common | {"zero_point": True, "version": "gemm"}}
    gptq = common | {
        "sym": packing.less_one,
        "desc_act": any(format.order for format in formats.values()),
        "checkpoint_format": "gptq" if packing.less_one else "gptq_v2",
        "lm_head": "head" in formats,
    }
    return made | {"quantization_config": gptq}
