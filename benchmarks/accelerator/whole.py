"""Whole programs: a checkpoint saved and loaded, a server of it under load, a step of training."""

import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qwen_jax
from benchmarks.accelerator.kept import Case, SkippedError
from benchmarks.accelerator.sizes import Size
from benchmarks.accelerator.speed import multiplied
from benchmarks.accelerator.weights import bytes_of, network
from benchmarks.serving import measure_one, write_vocabulary
from benchmarks.support.server import started
from qwen_jax import memory
from train.methods import prepare
from train.settings import TrainConfig
from train.step import Batch, Recipe, Trainer

CHECKPOINT = "checkpoint"  # a folder beside the results, which the server serves
_TOKENS = 2048  # of a row that is trained


def loading(size: Size, folder: Path) -> dict[str, Case]:
    """Of random weights, which were just written: the files may still be in memory."""
    name, config = next(iter(size.models.items()))
    checkpoint = folder / CHECKPOINT

    def save() -> dict[str, Any]:
        if checkpoint.exists():
            raise SkippedError(f"{checkpoint} is there already")
        params = network(config, "bfloat16")
        began = time.perf_counter()
        try:
            qwen_jax.save(params, checkpoint)
        except OSError as error:
            raise SkippedError(str(error)) from error
        taken = time.perf_counter() - began
        write_vocabulary(checkpoint, config.vocab)
        network.cache_clear()
        return _speed(taken, bytes_of(params))

    def load() -> dict[str, Any]:
        if not checkpoint.exists():
            raise SkippedError(f"there is no {checkpoint}, which `save {name}` writes")
        network.cache_clear()
        began = time.perf_counter()
        params = jax.block_until_ready(qwen_jax.load(checkpoint))
        return _speed(time.perf_counter() - began, bytes_of(params))

    return {f"save {name}": save, f"load {name}": load}


def _speed(taken: float, size: int) -> dict[str, Any]:
    rate = round(size / taken / 1e9, 2)
    return {"seconds": round(taken, 2), "bytes": size, "gigabytes_a_second": rate}


def serving(size: Size, folder: Path) -> dict[str, Case]:
    """Clients at a time, each with prompts of 128 tokens; this process leaves the device alone."""
    checkpoint, most = folder / CHECKPOINT, max(size.concurrency)
    options = ("--slots", str(most), "--max-length", str(256 + size.answer))

    def serve() -> dict[str, Any]:
        if not checkpoint.exists():
            raise SkippedError(f"there is no {checkpoint}; run --piece load first")
        with started("--model", str(checkpoint), *options) as server:
            found = {
                str(count): measure_one(server.url, count, size.answer, seed=count)
                for count in size.concurrency
            }
        return {"options": " ".join(options), "answer": size.answer, "clients": found}

    return {"bfloat16": serve}


def training(size: Size) -> dict[str, Case]:
    """A step of LoRA, as the original trains."""
    name = next(iter(size.models))
    length = min(_TOKENS, max(size.lengths))
    return {f"{name}, {size.rows} rows of {length}": functools.partial(_train, size, length)}


def _train(size: Size, length: int) -> dict[str, Any]:
    config = next(iter(size.models.values()))
    params = network(config, "bfloat16")
    network.cache_clear()  # training uses them up
    recipe = Recipe(size.repeats + 1, 1e-4, schedule="constant", warmup=0)
    prepared = prepare(params, TrainConfig("random", (), "", "lora"))
    trainer = Trainer(prepared.params, prepared.trained, recipe, jnp.bfloat16)
    state, shape = trainer.start(), (1, size.rows, length)
    tokens = np.random.default_rng(0).integers(0, config.vocab, shape).astype(np.int32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    arrays: Any = tokens, np.roll(tokens, -1, axis=-1), places, np.ones_like(tokens)
    batch, taken = Batch(*arrays), []
    for _ in range(size.repeats + 1):
        began = time.perf_counter()
        state, metrics = trainer.step(state, batch)
        loss = float(metrics.loss)
        taken.append(round(time.perf_counter() - began, 4))
    flops = 2 * 3 * tokens.size * multiplied(config, head=True)  # forwards twice, and back
    return {
        "seconds": taken[1:],
        "tokens_a_second": round(tokens.size / min(taken[1:]), 1),
        "flops": flops,
        "loss": round(loss, 4),
        "good": bool(np.isfinite(loss)),
        "peak_bytes": memory.peak(prepared.params),
    }
