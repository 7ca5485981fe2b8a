"""GPTQ and AWQ checkpoints: every weight exact, every bit back."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import convert
from qwen_jax.checkpoint import load
from qwen_jax.decoding import decode
from qwen_jax.nn import quant
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.tree import named_layers, named_leaves
from qwen_jax.storage.hf_names import tensor_views
from tests.conftest import Golden
from tests.convert.quantised import random_module, random_quantised
from tests.convert.small import assert_same_files
from tests.reference import read_checkpoint, reference_logits

Hf = dict[str, Any]
GOLDEN = ("gptq4", "gptq8", "gptq4_actorder", "awq4")
GPTQ: Hf = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": False, "desc_act": False}
AWQ: Hf = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True}
AWQ |= {"version": "gemm"}
V1: Hf = {
    "model_type": "qwen",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "intermediate_size": 96,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "seq_length": 64,
    "use_dynamic_ntk": False,
    "use_logn_attn": False,
}
QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
QWEN3 = QWEN2 | {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True}
IDS = list(range(5, 25))


def kernels(params: Qwen, model_type: str) -> dict[str, np.ndarray]:
    """Our float32 weights under Hugging Face's names."""
    plain = named_leaves(params)
    quantised = named_layers(params, quant.QuantLinear)
    plain |= {f"{name}.kernel": np.asarray(layer.kernel) for name, layer in quantised.items()}
    return {
        p.tensor: p.of(np.asarray(plain[p.leaf])) for p in tensor_views(params.config, model_type)
    }


def logits_error(params: Qwen, ids: list[list[int]] | np.ndarray, wanted: np.ndarray) -> float:
    got = np.asarray(decode.score(params, np.asarray(ids)))[..., : wanted.shape[-1]]
    return np.abs(got - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(
    golden: Golden, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = golden(f"quant/{name}")
    folder = convert.to_native(source, tmp_path / "native", verify=True)
    assert "identical to the source, bit for bit" in capsys.readouterr().out
    params = load(folder, dtype="float32")
    with safe_open(source / "golden.safetensors", "numpy") as file:
        hashes, ids = file.metadata(), file.get_tensor("input_ids")
        wanted = file.get_tensor("logits")
    found = kernels(params, "qwen")
    assert len(hashes) == 10
    for tensor, hash in hashes.items():
        assert hashlib.sha256(found[tensor].tobytes()).hexdigest() == hash
    assert logits_error(params, ids, wanted) < 2e-6
    assert_same_files(convert.to_hf(folder, tmp_path / "back"), source)


def write(
    folder: Path, config: Hf, quantization: Hf | None, tensors: dict[str, np.ndarray]
) -> Path:
    folder.mkdir()
    raw = config | ({"quantization_config": quantization} if quantization else {})
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


CASES = {
    "gptq": (V1, GPTQ),
    "symmetric": (V1, GPTQ | {"sym": True, "group_size": 8}),
    "version 2": (QWEN2, GPTQ | {"checkpoint_format": "gptq_v2"}),
    "per channel": (QWEN3, GPTQ | {"group_size": -1, "sym": True}),
    "int8": (QWEN2, GPTQ | {"bits": 8}),
    "int8 version 2": (V1, GPTQ | {"bits": 8, "checkpoint_format": "gptq_v2"}),
    "act-order": (QWEN3, GPTQ | {"desc_act": True}),
    "act-order int8": (V1, GPTQ | {"bits": 8, "desc_act": True, "group_size": 8}),
    "awq": (QWEN2, AWQ),
    "awq per channel": (V1, AWQ | {"group_size": -1}),
}


@pytest.mark.parametrize("name", CASES)
def test_random(name: str, tmp_path: Path) -> None:
    config, quantization = CASES[name]
    packed, plain = random_quantised(config, quantization, seed=len(name))
    source = write(tmp_path / "hf", config, quantization, packed)
    folder = convert.to_native(source, tmp_path / "native", verify=True)
    params = load(folder, dtype="float32")
    for tensor, array in kernels(params, config["model_type"]).items():
        np.testing.assert_array_equal(array, plain[tensor])
    wanted = reference_logits(config, plain, IDS)
    assert logits_error(params, [IDS], wanted[None]) < 2e-6
    assert_same_files(convert.to_hf(folder, tmp_path / "back"), source)


def test_bytes_stay_packed(tmp_path: Path) -> None:
    """Half a byte a weight on the disk, where NumPy would have one."""
    wide = V1 | {"hidden_size": 512, "kv_channels": 128, "intermediate_size": 4096, "vocab_size": 8}
    packed, _ = random_quantised(wide, GPTQ | {"group_size": 128})
    folder = convert.to_native(
        write(tmp_path / "hf", wide, GPTQ | {"group_size": 128}, packed), tmp_path / "native"
    )
    size = sum(f.stat().st_size for f in (folder / "weights").rglob("*") if f.is_file())
    assert size < 1.05 * (tmp_path / "hf" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("quantize_config.json", {k: v for k, v in GPTQ.items() if k != "quant_method"}),
        (
            "quant_config.json",
            {"w_bit": 4, "q_group_size": 16, "zero_point": True, "version": "GEMM"},
        ),
    ],
)
def test_old_files_say_it_too(file: str, content: dict[str, Any], tmp_path: Path) -> None:
    quantization = GPTQ if file.startswith("quantize") else AWQ
    packed, plain = random_quantised(V1, quantization)
    source = write(tmp_path / "hf", V1, None, packed)
    (source / file).write_text(json.dumps(content))
    params = load(convert.to_native(source, tmp_path / "native"))
    name = "transformer.h.1.mlp.c_proj.weight"
    np.testing.assert_array_equal(kernels(params, "qwen")[name], plain[name])
    assert_same_files(convert.to_hf(tmp_path / "native", tmp_path / "back"), source)
    both = quantization | {"group_size": 32}
    (source / "config.json").write_text(json.dumps(V1 | {"quantization_config": both}))
    with pytest.raises(ValueError, match="disagree"):
        convert.to_native(source, tmp_path / "other")


def test_other_packing(tmp_path: Path) -> None:
    """GPTQ without act-order fits AWQ's packing, and comes back as it was."""
    quantization = GPTQ | {"checkpoint_format": "gptq_v2", "lm_head": False}
    packed, plain = random_quantised(QWEN2, quantization)
    source = write(tmp_path / "hf", QWEN2, quantization, packed)
    folder = convert.to_native(source, tmp_path / "native")
    awq = convert.to_hf(folder, tmp_path / "awq", packing="awq")
    assert json.loads((awq / "config.json").read_text())["quantization_config"] == AWQ
    again = convert.to_native(awq, tmp_path / "again")
    for name, array in kernels(load(again), "qwen2").items():
        np.testing.assert_array_equal(array.astype(np.float32), plain[name])
    back = convert.to_hf(again, tmp_path / "back", packing="gptq")
    assert json.loads((back / "config.json").read_text())["quantization_config"] == quantization
    tensors = load_file(back / "model.safetensors")
    assert tensors.keys() == packed.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, packed[name])


# --- faults -----------------------------------------------------------------------------------
def refuses(folder: Path, *matches: str) -> None:
    with pytest.raises(ValueError) as error:
        convert.to_native(folder, folder / "native")
    for match in matches:
        assert match in str(error.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"quant_method": "bitsandbytes"}, "'gptq' and 'awq' can be read"),
        ({"bits": 3}, "bits is 3"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": "16"}, "group_size is '16'"),
        ({"group_size": 24}, "do not fill words"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"dynamic": {"+:head": {"bits": 8}}}, "dynamic[+:head] is"),
        ({"sharpness": 2}, "unknown keys ['sharpness']"),
        ({"quant_method": "awq", "version": "gemv", "zero_point": True}, "version is 'gemv'"),
        ({"quant_method": "awq", "version": "gemm", "zero_point": False}, "zero_point is False"),
        ({"quant_method": "awq", "version": "gemm", "bits": 8}, "bits is 8"),
        ({"bits": 8}, "mlp.w1.qweight has shape [4, 48], the config asks for [8, 48]"),
    ],
)
def test_config(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    packed, _ = random_quantised(V1, GPTQ)
    refuses(write(tmp_path / "hf", V1, GPTQ | changes, packed), match)


def test_tensors(tmp_path: Path) -> None:
    packed, plain = random_quantised(V1, GPTQ)
    source = write(tmp_path / "a", V1, None, packed)
    refuses(source, "c_attn.qweight is packed, but neither config.json nor quantize_config")
    refuses(write(tmp_path / "b", V1, GPTQ, plain), "there is no qweight")
    module = "transformer.h.0.mlp.w1"
    broken = packed | {f"{module}.scales": packed[f"{module}.scales"].astype(np.int32)}
    refuses(write(tmp_path / "c", V1, GPTQ, broken), f"{module}.scales has dtype int32")
    broken = packed | {f"{module}.g_idx": np.zeros(32, np.int32)}
    refuses(write(tmp_path / "d", V1, GPTQ, broken), f"{module}: g_idx", "2 equal groups")
    broken = {name: tensor for name, tensor in packed.items() if name != f"{module}.qzeros"}
    refuses(write(tmp_path / "e", V1, GPTQ, broken), f"{module}.qzeros [2, 6] is missing")
    broken = packed | {f"{module}.bias": np.full(48, 0.5, np.float16)}
    refuses(write(tmp_path / "f", V1, GPTQ, broken), f"{module}.bias is not zero")


def test_projections_of_one_product_share_their_order(tmp_path: Path) -> None:
    quantization = GPTQ | {"desc_act": True}
    packed, _ = random_quantised(QWEN2, quantization)
    random = np.random.default_rng(1)
    made, _ = random_module(random, 16, 32, quantization, random.permutation(32))
    packed |= {f"model.layers.0.self_attn.k_proj.{name}": a for name, a in made.items()}
    refuses(write(tmp_path / "hf", QWEN2, quantization, packed), "k_proj.g_idx differs")


def test_zeros_of_one_projection_alone(tmp_path: Path) -> None:
    """The others' are stored with it."""
    packed, plain = random_quantised(QWEN2, GPTQ | {"sym": True})
    made, weight = random_module(np.random.default_rng(1), 32, 32, GPTQ, None)
    module = "model.layers.0.self_attn.q_proj"
    packed |= {f"{module}.{name}": a for name, a in made.items()}
    plain |= {f"{module}.weight": weight}
    source = write(tmp_path / "hf", QWEN2, GPTQ, packed)
    params: Any = load(convert.to_native(source, tmp_path / "native", verify=True))
    found = kernels(params, "qwen2")
    for name in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{name}.weight"
        np.testing.assert_array_equal(found[name], plain[name])
    assert params.blocks[1].attn.qkv.zeros is None
    assert_same_files(convert.to_hf(tmp_path / "native", tmp_path / "back"), source)


def test_verify_finds_a_changed_code(golden: Golden, tmp_path: Path) -> None:
    folder = convert.to_native(golden("quant/gptq4"), tmp_path / "native")
    config, tensors = read_checkpoint(golden("quant/gptq4"))
    tensors = {k: v.copy() for k, v in tensors.items()}
    tensors["transformer.h.1.mlp.w2.qweight"][3, 5] ^= 1
    other = write(tmp_path / "hf", config, None, tensors)
    for name in ("generation_config.json", "quantize_config.json", "config.json"):
        (other / name).write_bytes((golden("quant/gptq4") / name).read_bytes())
    with pytest.raises(ValueError, match=r"blocks.1.mlp.gate.codes differs from .*w2:codes"):
        convert.to_native(other, folder, verify=True)
