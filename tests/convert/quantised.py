"""Random quantised checkpoints, packed integer by integer as the formats say."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.reference import Tensors, random_checkpoint

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # four bits after four bits, from the lowest


def gptq_words(integers: np.ndarray, bits: int) -> np.ndarray:
    """[a b] -> int32 [a / integers of a word, b]: a word holds a column's next integers."""
    each = 32 // bits
    words = np.zeros((len(integers) // each, integers.shape[1]), np.uint32)
    for row, values in enumerate(integers):
        words[row // each] |= values.astype(np.uint32) << np.uint32(bits * (row % each))
    return words.view(np.int32)


def awq_words(integers: np.ndarray) -> np.ndarray:
    words = np.zeros((len(integers), integers.shape[1] // 8), np.uint32)
    for word in range(words.shape[1]):
        for place, column in enumerate(AWQ_COLUMNS):
            values = integers[:, 8 * word + column].astype(np.uint32)
            words[:, word] |= values << np.uint32(4 * place)
    return words.view(np.int32)


def random_module(
    random: np.random.Generator,
    out: int,
    inputs: int,
    quantization: dict[str, Any],
    order: np.ndarray | None,
) -> tuple[Tensors, np.ndarray]:
    """The tensors of a packed layer, and its weight, float32 [out in]."""
    bits, method = quantization["bits"], quantization["quant_method"]
    size = inputs if quantization["group_size"] == -1 else quantization["group_size"]
    top = 2**bits
    codes = random.integers(0, top, (inputs, out))
    zeros = random.integers(0, top, (inputs // size, out))
    if quantization.get("sym"):
        zeros[:] = top // 2
    scales = random.uniform(0.2, 1, zeros.shape).astype(np.float16) / np.float16(4 * top)
    group = np.arange(inputs) // size
    if order is not None:
        group = group[order]
    weight = scales[group].astype(np.float32) * (codes - zeros[group])
    if method == "awq":
        made = {"qweight": awq_words(codes), "qzeros": awq_words(zeros), "scales": scales}
        return made, weight.T.astype(np.float32)
    less = 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1
    stored = (zeros - less) % top
    made = {
        "qweight": gptq_words(codes, bits),
        "qzeros": gptq_words(stored.T, bits).T.copy(),
        "scales": scales,
        "g_idx": group.astype(np.int32),
    }
    return made, weight.T.astype(np.float32)


def random_quantised(
    config: dict[str, Any], quantization: dict[str, Any], seed: int = 0
) -> tuple[Tensors, Tensors]:
    """A checkpoint's tensors, and the same with the weights as floats."""
    random = np.random.default_rng(seed)
    plain = random_checkpoint(config, seed)
    plain = {name: np.asarray(a, np.float16).astype(np.float32) for name, a in plain.items()}
    packed = {name: a.astype(np.float16) for name, a in plain.items()}
    orders: dict[int, np.ndarray] = {}  # projections of one input share their order
    is_linear: Callable[[str], bool] = lambda name: ".h." in name or ".layers." in name
    for name, kernel in list(plain.items()):
        if kernel.ndim == 2 and is_linear(name):
            out, inputs = kernel.shape
            order = None
            if quantization.get("desc_act"):
                order = orders.setdefault(inputs, random.permutation(inputs))
            made, plain[name] = random_module(random, out, inputs, quantization, order)
            module = name.removesuffix(".weight")
            del packed[name]
            packed |= {f"{module}.{tensor}": a for tensor, a in made.items()}
    return packed, plain
