"""Decoding and prefill, of random weights: seconds, and the bytes and sums that bound them."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.kept import Case
from benchmarks.accelerator.sizes import Size
from benchmarks.accelerator.weights import bytes_read, expect_room, network, seconds
from qwen_jax import memory
from qwen_jax.config import Config
from qwen_jax.decoding import decode, prompts
from qwen_jax.decoding.flat_params import flatten
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.pieces import Piece
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.decoding.state import State
from qwen_jax.nn import quant

FILLS = {"half filled": 0.5, "filled": 1.0}


def decoding(size: Size, model: str, precision: str, batch: int) -> dict[str, Case]:
    """For each length and cache, of which one part or all is filled."""
    return {
        f"{length} tokens, {cache} cache, {fill}": functools.partial(
            _decode, size, model, precision, batch, length, cache, fill
        )
        for length, cache, fill in itertools.product(size.lengths, size.caches, FILLS)
    }


def _decode(
    size: Size, model: str, precision: str, batch: int, length: int, cache: str, fill: str
) -> dict[str, Any]:
    config = size.models[model]
    expect_room(memory.cache(config, cache) * length * batch)
    params = network(config, precision)
    expect_room(memory.cache(config, cache) * length * batch)
    weights, end = flatten(params), int(length * FILLS[fill])
    state = decode.start(weights, batch, length, cache)

    def run() -> Any:
        nonlocal state
        state = _at(state, end - size.steps, size.steps)
        state, output = decode.step(weights, state, size.steps)
        made.append(output.tokens)
        return output.tokens

    made: list[jax.Array] = []
    taken = seconds(run, size.repeats)
    tokens = batch * (end - (size.steps + 1) // 2)  # in the cache, on average
    read = bytes_read(params) + memory.cache(config, cache) * tokens
    return {
        "tokens_a_second": round(batch * size.steps / min(taken), 2),
        "seconds": taken,
        "steps": size.steps,
        "bytes_a_step": read,
        "flops_a_step": 2 * batch * multiplied(config, head=True),
        "attention": state.cache.backend.name,
        "good": all(bool((tokens >= 0).all()) for tokens in made),  # no slot ended
        "peak_bytes": memory.peak(params),
    }


def _at(state: State, position: int, steps: int) -> State:
    """Every slot with a text up to here, and more to come."""
    rows = state.rows
    fill = lambda x, value: jnp.full_like(x, value)
    rows = dataclasses.replace(
        rows,
        positions=fill(rows.positions, position),
        prompt_lengths=fill(rows.prompt_lengths, max(1, position)),
        remaining=fill(rows.remaining, steps + 1),
        active=fill(rows.active, True),
    )
    return dataclasses.replace(state, rows=rows)


def multiplied(config: Config, head: bool) -> int:
    """Weights that a token of a prompt is multiplied with, or one whose successor is wanted."""
    leaves = quant.abstract_leaves(config)
    matrices = (math.prod(leaf.shape) for leaf in leaves.values() if leaf.ndim == 2)
    tables = config.vocab * config.width * (1 if config.tied else 2)
    return sum(matrices) - tables + config.vocab * config.width * head


def prefill(size: Size, model: str) -> dict[str, Case]:
    """A prompt alone, by chunks, into an empty cache."""
    return {
        f"{length} tokens, {precision}": functools.partial(_prefill, size, model, precision, length)
        for precision, length in itertools.product(size.precisions, size.lengths)
    }


def _prefill(size: Size, model: str, precision: str, length: int) -> dict[str, Any]:
    config = size.models[model]
    params = network(config, precision)
    expect_room(memory.cache(config, "bfloat16") * (length + 64))
    weights, settings = flatten(params), SamplingArrays.of(Sampling(temperature=0), (), 0)
    ids = np.random.default_rng(0).integers(0, config.vocab, length).tolist()
    state = decode.start(weights, 1, length + 64, "bfloat16")

    def run() -> Any:
        nonlocal state
        for start in range(0, length, prompts.CHUNK):
            part = ids[start : start + prompts.CHUNK]
            last = start + len(part) == length
            piece = Piece(0, part, start, length, settings, 1, last)
            state, output = prompts.prefill(weights, state, [piece])
        return output.tokens

    taken = seconds(run, size.repeats)
    scores = 2 * config.layers * config.heads * config.head_dim * length**2  # the causal half
    return {
        "tokens_a_second": round(length / min(taken), 1),
        "seconds": taken,
        "flops": 2 * length * multiplied(config, head=False) + scores,
        "bytes_read": bytes_read(params) * math.ceil(length / prompts.CHUNK),
        "peak_bytes": memory.peak(params),
    }
