"""The float64 reference agrees with the original implementations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.conftest import Golden
from tests.reference import (
    Tensors,
    greedy,
    random_checkpoint,
    read_checkpoint,
    reference_logits,
    write_checkpoint,
)

TOLERANCE = 2e-6  # of the largest logit: float32 rounding in the original
LENGTHS = (16, 32, 33, 48, 64, 65, 120, 200)  # seq_length is 32
PLAIN = ("v1/base", "v1/ntk_only", "v1/logn_only")
MODERN = ("modern/qwen2_gqa", "modern/qwen25_yarn", "modern/qwen3")

Case = Callable[[str], tuple[dict[str, Any], Tensors, Tensors]]  # the fixture


@pytest.fixture
def case(golden: Golden) -> Case:
    def load(name: str) -> tuple[dict[str, Any], Tensors, Tensors]:
        return *read_checkpoint(golden(name)), load_file(golden(name) / "golden.safetensors")

    return load


def difference(
    config: dict[str, Any],
    tensors: Tensors,
    ids: np.ndarray,
    wanted: np.ndarray,
    **options: Any,
) -> float:
    """Largest distance from the stored logits: all of the vocabulary, or its first 64 columns."""
    logits = reference_logits(config, tensors, ids.tolist(), **options)
    return np.abs(logits[-len(wanted) :, : wanted.shape[-1]] - wanted).max() / np.abs(wanted).max()


def unpadded(outputs: Tensors) -> list[np.ndarray]:
    mask = outputs["batch_attention_mask"].astype(bool)
    return [row[keep] for row, keep in zip(outputs["batch_input_ids"], mask, strict=True)]


@pytest.mark.parametrize("name", PLAIN + MODERN)
def test_logits(case: Case, name: str) -> None:
    config, tensors, outputs = case(name)
    for ids, wanted in zip(outputs["input_ids"], outputs["logits"], strict=True):
        assert difference(config, tensors, ids, wanted) < TOLERANCE


@pytest.mark.parametrize("length", LENGTHS)
def test_logits_beyond_the_training_length(case: Case, length: int) -> None:
    config, tensors, outputs = case("v1/longctx")
    ids, wanted = outputs[f"input_ids_{length}"][0], outputs[f"logits_{length}"][0]
    assert difference(config, tensors, ids, wanted) < TOLERANCE


def test_logits_of_bfloat16_weights(case: Case) -> None:
    config, tensors, outputs = case("v1/bf16")
    for ids, wanted in zip(outputs["input_ids"], outputs["logits_f32"], strict=True):
        assert difference(config, tensors, ids, wanted) < TOLERANCE


@pytest.mark.parametrize("name", ["v1/base", *MODERN])
def test_batch_rows_are_as_if_alone(case: Case, name: str) -> None:
    config, tensors, outputs = case(name)
    for ids, wanted in zip(unpadded(outputs), outputs["batch_greedy"], strict=True):
        new = len(wanted) - outputs["batch_input_ids"].shape[1]
        assert greedy(config, tensors, ids.tolist(), new)[-new:] == wanted[-new:].tolist()


def test_last_logits_of_left_padded_rows(case: Case) -> None:
    config, tensors, outputs = case("v1/base")
    for ids, wanted in zip(unpadded(outputs), outputs["batch_logits"], strict=True):
        assert difference(config, tensors, ids, wanted) < TOLERANCE


@pytest.mark.parametrize("name", ["v1/base", *MODERN])
def test_greedy(case: Case, name: str) -> None:
    config, tensors, outputs = case(name)
    ids, wanted = outputs["input_ids"][0].tolist(), outputs["greedy"][0].tolist()
    assert greedy(config, tensors, ids, len(wanted) - len(ids)) == wanted


@pytest.mark.parametrize("length", ["cross", *LENGTHS])
def test_greedy_beyond_the_training_length(case: Case, length: int | str) -> None:
    """The NTK base is the prompt's to the end ("cross" crosses seq_length while it decodes)."""
    config, tensors, outputs = case("v1/longctx")
    ids, wanted = (
        (outputs["cross_input_ids"], outputs["cross_greedy"])
        if length == "cross"
        else (outputs[f"input_ids_{length}"], outputs[f"greedy_{length}"])
    )
    new = wanted.shape[1] - ids.shape[1]
    assert greedy(config, tensors, ids[0].tolist(), new) == wanted[0].tolist()


@pytest.mark.parametrize("name", ["v1/base", *MODERN])
def test_random_checkpoints_have_the_tensors_of_real_ones(
    case: Case, name: str, tmp_path: Path
) -> None:
    config, tensors, _ = case(name)
    random = random_checkpoint(config, seed=0)
    assert {k: v.shape for k, v in random.items()} == {k: v.shape for k, v in tensors.items()}

    write_checkpoint(tmp_path, config, random)
    again, tensors = read_checkpoint(tmp_path)
    assert again == config
    ids = list(range(8))
    same, other = (random_checkpoint(config, seed) for seed in (0, 1))
    logits = reference_logits(config, tensors, ids)
    assert np.array_equal(logits, reference_logits(config, same, ids))
    assert np.abs(logits - reference_logits(config, other, ids)).max() > 0.5


def test_the_first_dialect_is_the_same_network(case: Case) -> None:
    config, tensors, outputs = case("v1/base")
    old = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    old |= {"ffn_hidden_size": "intermediate_size", "n_positions": "max_position_embeddings"}
    first = {k: v for k, v in config.items() if k not in old.values()}
    first |= {k: config[v] for k, v in old.items()}
    assert difference(first, tensors, outputs["input_ids"][0], outputs["logits"][0]) < TOLERANCE
