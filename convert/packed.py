"""The integers of GPTQ and AWQ checkpoints, packed in int32 words, and ours.

A module "transformer.h.0.attn.c_attn" has tensors qweight, qzeros, scales and, in GPTQ, g_idx:
the group of every input. Its weight is scales * (code - zero) with unsigned codes; ours are
signed, rows of outputs, in the order of their groups (qwen_jax.nn.quant).
Formats: AutoGPTQ's QuantLinear, of which a second version stores zeros as they are, the first
less one; AutoAWQ's WQLinear_GEMM.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_jax.files.strict_json import (
    ANYTHING,
    OBJECT,
    SIZE,
    TEXT,
    Kind,
    StrictObject,
    choice,
    shown,
    tabled,
)

Read = Callable[[str], np.ndarray]
_AWQ_LANES = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each four bits of a word
_HARMLESS = frozenset(
    # how it was quantised, and with which kernels others run it
    "damp_percent damp_auto_increment static_groups true_sequential sym desc_act meta quantizer "
    "model_name_or_path model_file_base_name dataset tokenizer batch_size pad_token_id mse "
    "block_name_to_quantize module_name_preceding_first_block modules_in_block_to_quantize "
    "cache_block_outputs model_seqlen max_input_length use_cuda_fp16 use_exllama disable_exllama "
    "exllama_config backend lm_head modules_to_not_convert do_fuse fuse_max_seq_len "
    "modules_to_fuse act_group_aware pack_impl offload_to_disk offload_to_disk_path device "
    # AutoRound's
    "autoround_version iters lr minmax_lr nsamples seqlen amp provider low_gpu_mem_usage "
    "scale_dtype enable_minmax_tuning enable_norm_bias_tuning enable_quanted_input "
    "gradient_accumulate_steps not_use_best_mse quant_lm_head to_quant_block_names train_bs "
    "act_data_type act_group_size act_sym act_dynamic super_bits super_group_size".split()
)
# AutoRound's packings and what they amount to: a method, and whether zeros are stored less one
_AUTO_ROUND = {
    "auto_round": ("gptq", "gptq_v2"),
    "auto_round:gptqmodel": ("gptq", "gptq_v2"),
    "auto_round:auto_gptq": ("gptq", "gptq"),
    "auto_round:auto_awq": ("awq", "awq"),
}
_GPTQ = choice("gptq", "gptq_v2")
_AWQ = Kind("gemm", lambda value: isinstance(value, str) and value.lower() == "gemm", "gemm")
_GROUP = Kind(
    "a whole number above 0, or -1", lambda n: SIZE.holds(n) or (type(n) is int and n == -1), 1
)


@dataclass(frozen=True)
class Packing:
    """How a checkpoint packs its quantised weights."""

    method: str  # "gptq" or "awq"
    bits: int
    size: int | None  # inputs of a group; None: all of them
    less_one: bool  # zeros are stored less one

    @property
    def lanes(self) -> tuple[int, ...]:
        return _AWQ_LANES if self.method == "awq" else tuple(range(32 // self.bits))

    def groups(self, inputs: int) -> int:
        return 1 if self.size is None else inputs // self.size

    def tensors(self, out: int, inputs: int) -> Mapping[str, tuple[int, ...]]:
        """The tensors of a module and their shapes; ValueError if it cannot be packed."""
        words, size = len(self.lanes), self.size or inputs
        if inputs % size or (inputs if self.method == "gptq" else out) % words or out % words:
            raise ValueError(
                f"{out} outputs of {inputs} inputs do not fill words of {words} integers and "
                f"groups of {size}"
            )
        count = inputs // size
        shapes: dict[str, tuple[int, ...]] = {
            "qzeros": (count, out // words),
            "scales": (count, out),
        }
        if self.method == "awq":
            return {"qweight": (inputs, out // words)} | shapes
        return {"qweight": (inputs // words, out)} | shapes | {"g_idx": (inputs,)}

    # --- to ours ------------------------------------------------------------------------------
    def field(self, name: str, read: Read) -> np.ndarray:
        """One of qwen_jax.nn.quant.FIELDS of the module whose tensors `read` reads."""
        made = getattr(self, name)(read)
        assert made is not None
        return made

    def codes(self, read: Read) -> np.ndarray:
        """int8 [out in]"""
        words, order = read("qweight"), self.order(read)
        made = self._spread(words) if self.method == "awq" else self._spread(words.T)
        made -= np.uint8(1 << (self.bits - 1))
        made = made.view(np.int8)
        made = made.T if self.method == "awq" else made
        return np.ascontiguousarray(made if order is None else made[:, order])

    def scales(self, read: Read) -> np.ndarray:
        return np.ascontiguousarray(read("scales").T)

    def zeros(self, read: Read) -> np.ndarray:
        """int8 [out groups]"""
        made = self._spread(read("qzeros")) + np.uint8(self.less_one)
        made &= np.uint8((1 << self.bits) - 1)
        return np.ascontiguousarray((made - np.uint8(1 << (self.bits - 1))).view(np.int8).T)

    def order(self, read: Read) -> np.ndarray | None:
        """int32 [in], the inputs in the order of their groups; None: as they are."""
        try:
            group = read("g_idx")
        except KeyError:  # AWQ has none
            return None
        count = self.groups(len(group))
        if group.min() < 0 or (np.bincount(group, minlength=count) != len(group) // count).any():
            raise ValueError(f"g_idx does not put {len(group)} inputs into {count} equal groups")
        order = np.argsort(group, kind="stable").astype(np.int32)
        return None if (order == np.arange(len(group))).all() else order

    # --- to theirs ----------------------------------------------------------------------------
    def pack(self, fields: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
        """A module's tensors from our codes (int4 or int8), scales, zeros and order."""
        codes, scales, zeros, order = (fields[n] for n in ("codes", "scales", "zeros", "order"))
        assert codes is not None
        assert scales is not None
        half = np.uint8(1 << (self.bits - 1))
        natural = np.empty(codes.shape, np.uint8)
        columns = np.arange(codes.shape[1]) if order is None else order
        natural[:, columns] = codes.view(np.uint8) ^ half  # the sign bit: -8 is stored as 0
        zeros = np.zeros(scales.shape, np.int8) if zeros is None else zeros
        stored = zeros.view(np.uint8) + half - np.uint8(self.less_one)
        made = {
            "qweight": self._gather(natural.T) if self.method == "awq" else self._gather(natural).T,
            "qzeros": self._gather(stored.T & np.uint8((1 << self.bits) - 1)),
            "scales": scales.T,
        }
        if self.method == "gptq":
            inputs = codes.shape[1]
            group = np.empty(inputs, np.int32)
            group[np.arange(inputs) if order is None else order] = np.arange(inputs) // (
                self.size or inputs
            )
            made["g_idx"] = group
        return made

    def _spread(self, words: np.ndarray) -> np.ndarray:
        """int32 [a b] -> the integers of its words, uint8 [a, b * integers of a word]."""
        made = np.empty((*words.shape, len(self.lanes)), np.uint8)
        mask = np.uint32((1 << self.bits) - 1)
        for index, column in enumerate(self.lanes):
            made[..., column] = words.view(np.uint32) >> np.uint32(index * self.bits) & mask
        return made.reshape(len(words), -1)

    def _gather(self, integers: np.ndarray) -> np.ndarray:
        lanes = integers.reshape(len(integers), -1, len(self.lanes))
        made = np.zeros(lanes.shape[:2], np.uint32)
        for index, column in enumerate(self.lanes):
            made |= lanes[..., column].astype(np.uint32) << np.uint32(index * self.bits)
        return made.view(np.int32)


def read_packing(file: str, content: Any, method: str | None) -> Packing:
    """quantization_config, or AutoGPTQ's and AutoAWQ's own file. Raises ValueError."""
    reader = StrictObject(file, content)
    method = reader.take(ANYTHING, "quant_method", default=method)
    version = None
    if method == "auto-round":
        version = reader.take(TEXT, "packing_format", default="auto_round")
        method, version = _AUTO_ROUND.get(version, (method, version))
    if method not in ("gptq", "awq"):
        reader.stop()
        got = shown(method) + (f" in the packing_format {version!r}" if version else "")
        raise ValueError(
            f"{file} has quant_method {got}; 'gptq' and 'awq' can be read: take one of those, "
            "or the model that is not quantised"
        )
    bits = reader.take(SIZE, "bits", "w_bit")
    allowed = (4, 8) if method == "gptq" else (4,)
    if bits not in allowed:
        reader.wrong("bits", bits, f"{' or '.join(map(str, allowed))} for {method} weights")
        bits = allowed[0]
    size = reader.take(_GROUP, "group_size", "q_group_size")
    if method == "gptq":
        given = reader.take(_GPTQ, "checkpoint_format", "format", default="gptq")
        version = version or given
        reader.require("is_marlin_format", False)
        reader.require("pack_dtype", "int32")
        _expect_unquantised(reader, "dynamic", lambda name, own: name.startswith("-:") or not own)
    else:
        reader.take(_AWQ, "version", "format", default="gemm")
        reader.require("zero_point", True)
    _expect_unquantised(reader, "extra_config", lambda _, own: own.get("bits") in (16, 32))
    reader.require("data_type", "int")
    reader.require("act_bits", 16, 32)
    reader.require("packing_format", None)
    reader.finish(_HARMLESS)
    return Packing(method, bits, None if size == -1 else size, version == "gptq")


def _expect_unquantised(
    reader: StrictObject, name: str, is_whole: Callable[[str, dict[str, Any]], bool]
) -> None:
    """Of modules with settings of their own, those left as they were: their tensors say so."""
    for module, own in reader.take(tabled(OBJECT), name, default={}).items():
        if not is_whole(module, own):
            reader.wrong(f"{name}[{module}]", own, "the same bits and groups for all layers")
