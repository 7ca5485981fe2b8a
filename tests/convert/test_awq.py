"""AWQ: the network stays what it was, outlier channels lose less, and the checkpoint is plain."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import convert
import qwen_jax
from convert import QuantizeOptions, awq
from convert import block as seen_by
from convert.quantize import REPORT
from qwen_jax.config import Config
from qwen_jax.nn.model import Block, Linear, init
from qwen_jax.nn.quant import dequantize, quantize
from tests.qwen_jax.networks import QWEN2, QWEN3, V1

HOW = 4, 16, True


def prepared(hf: dict[str, Any]) -> tuple[Config, Block, Any, Callable[[int], Any]]:
    """A block whose norms have outlier channels, what it gets, and its stages' moments."""
    config = Config.from_hf(hf)
    (block, *_) = init(config, jax.random.key(0)).blocks
    random = np.random.default_rng(0)
    for norm in (block.attn_norm, block.mlp_norm):
        norm.scale = jnp.asarray(np.exp(random.normal(0, 1.5, config.width)), jnp.float32)
    if block.attn.qkv.bias is not None:
        block.attn.qkv.bias = jnp.asarray(random.normal(size=block.attn.qkv.bias.shape), "float32")
    x = jnp.asarray(random.normal(size=(4, 24, config.width)), jnp.float32)
    lengths = jnp.array([24, 24, 20, 9])
    moments = lambda stage: seen_by.moments(block, x, lengths, stage, config)
    return config, block, (x, lengths), moments


@pytest.mark.parametrize("hf", [V1, QWEN2, QWEN3], ids=["v1", "qwen2", "qwen3"])
def test_folding(hf: dict[str, Any]) -> None:
    """As floats it is the same network; rounded, it loses less, where rounding loses as told."""
    config, block, given, moments = prepared(hf)
    wanted = seen_by.run(block, *given, config)

    def rounded() -> Any:
        copy = jax.tree.map(jnp.copy, block)
        for name in (name for stage in seen_by.STAGES for name in stage):
            seen_by.put(copy, name, dequantize(quantize(seen_by.get(copy, name), *HOW)))
        return jnp.linalg.norm(seen_by.run(copy, *given, config) - wanted)

    before, kernel, seen = rounded(), block.attn.qkv.kernel, moments(0)
    plain = awq.fold(block, config, jnp.bfloat16, moments, *HOW)
    share = seen_by.lost(kernel, quantize(block.attn.qkv, *HOW).kernel, seen)
    lost = seen_by.lost(kernel, quantize(Linear(kernel, None), *HOW).kernel, seen)
    assert plain["attn.qkv"] == pytest.approx(float(lost), rel=1e-4)
    assert share != lost
    norm = block.attn_norm.scale
    np.testing.assert_array_equal(norm, norm.astype(jnp.bfloat16).astype(jnp.float32))
    far = jnp.abs(seen_by.run(block, *given, config) - wanted).max() / jnp.abs(wanted).max()
    assert far < (3e-3 if block.attn.qkv.bias is not None else 1e-5)  # a bias is bf16 too
    assert rounded() < 0.8 * before


def test_a_checkpoint(tmp_path: Path) -> None:
    """Loads as any other, and is AWQ's when it is written back."""
    words = "low rank codes of a wide layer lose little when their inputs are known".split()
    random = np.random.default_rng(0)
    texts = tmp_path / "texts.txt"
    texts.write_text(" ".join(random.choice(words, 600)))
    settings = QuantizeOptions("awq", 32, False, False)
    made = convert.to_native("demo", tmp_path / "made", quantize=settings, calibration=texts)
    report = json.loads((made / REPORT).read_text())
    mean = lambda how: np.mean([layer[how] for layer in report["layers"].values()])
    assert 0 < mean("awq") < mean("nearest")
    back = convert.to_hf(made, tmp_path / "back", packing="awq")
    again = convert.to_native(back, tmp_path / "again")
    score = lambda folder: qwen_jax.logits(qwen_jax.load(folder, dtype="float32"), [[1, 2, 3]])[0]
    np.testing.assert_array_equal(score(made), score(again))
    with pytest.raises(ValueError, match="awq needs texts of the model's kind"):
        convert.to_native("demo", tmp_path / "x", quantize=settings)
