"""How the published checkpoints say that their weights are packed."""

from typing import Any

import pytest

from convert.modules import find_packing
from convert.packed import Packing
from tests.convert.test_published import NOWHERE, QWEN2, ROUND

GPTQ: dict[str, Any] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "desc_act": False,
}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
OPTIMUM: dict[str, Any] = {
    "batch_size": 1,
    "block_name_to_quantize": None,
    "cache_block_outputs": True,
}
OPTIMUM |= {"damp_percent": 0.01, "dataset": None, "exllama_config": {"version": 1}}
OPTIMUM |= {"model_seqlen": None, "tokenizer": None, "true_sequential": True, "use_exllama": True}
AS_GPTQ, AS_AWQ = Packing("gptq", 4, 128, True), Packing("awq", 4, 128, False)
PACKED: dict[str, tuple[dict[str, Any], Packing]] = {
    "Qwen2.5-7B-Instruct-GPTQ-Int4": (GPTQ | OPTIMUM, AS_GPTQ),
    "Qwen2.5-7B-Instruct-GPTQ-Int8": (GPTQ | OPTIMUM | {"bits": 8}, Packing("gptq", 8, 128, True)),
    "TheBloke's GPTQ": (
        GPTQ | {"model_name_or_path": None, "model_file_base_name": "model", "damp_percent": 0.1},
        AS_GPTQ,
    ),
    "GPTQModel": (
        GPTQ
        | {"checkpoint_format": "gptq", "lm_head": False, "pack_dtype": "int32", "dynamic": None}
        | {"meta": {"quantizer": ["gptqmodel:5.8.0"], "damp_percent": 0.05, "pack_impl": "cpu"}},
        AS_GPTQ,
    ),
    "GPTQModel, some layers whole": (GPTQ | {"dynamic": {r"-:.*down_proj": {}}}, AS_GPTQ),
    "GPTQ by transformers 5": (
        GPTQ | {"format": "gptq", "checkpoint_format": "gptq", "act_group_aware": True}
        | {"backend": "auto", "meta": None, "max_input_length": None, "pad_token_id": None},
        AS_GPTQ,
    ),
    "GPTQ's second format": (GPTQ | {"format": "gptq_v2"}, Packing("gptq", 4, 128, False)),
    "Qwen2.5-7B-Instruct-AWQ": (AWQ | {"version": "gemm", "modules_to_not_convert": None}, AS_AWQ),
    "AWQ by transformers 5": (
        AWQ | {"format": "gemm", "version": "gemm", "sym": True, "desc_act": False}, AS_AWQ
    ),
    "AutoRound's export to GPTQ": (
        GPTQ | ROUND | {"provider": "auto-round", "damp_percent": 0.01, "true_sequential": False},
        AS_GPTQ,
    ),
    "AutoRound in GPTQ's packing": (
        ROUND | {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}, AS_GPTQ
    ),
    "AutoRound in its own": (
        ROUND
        | {"quant_method": "auto-round", "packing_format": "auto_round"}
        | {"extra_config": {"lm_head": {"bits": 16, "data_type": "float"}}},
        Packing("gptq", 4, 128, False),
    ),
    "AutoRound in AWQ's packing": (
        ROUND | {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}, AS_AWQ
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_packed(name: str) -> None:
    content, wanted = PACKED[name]
    assert find_packing(NOWHERE, QWEN2 | {"quantization_config": content}) == wanted
