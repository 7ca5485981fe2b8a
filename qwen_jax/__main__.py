"""Generate from the command line: python -m qwen_jax FOLDER [PROMPT]."""

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import jax
import tyro

from qwen_jax import distributed, memory
from qwen_jax.checkpoint import load
from qwen_jax.cli import run
from qwen_jax.conversation import stream_chat
from qwen_jax.decoding.completion import (
    Completion,
    defaults_of,
    stream_completions,
    text_tokenizer,
)
from qwen_jax.nn.sharding import make_mesh

Number = Literal["float32", "bfloat16", "float16"]


def main(
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    prompt: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT]")] = None,
    adapter: str | None = None,
    system: str | None = None,
    complete: bool = False,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    dtype: Number | None = None,
    cache_dtype: Literal[Number, "int8"] | None = None,
    mesh_data: int = 1,
    mesh_fsdp: int = 1,
    mesh_tensor: int | None = None,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Stream a model's answer to a prompt.

    Args:
        folder: Folder that `python -m convert` wrote, or "demo".
        prompt: Question to answer; by default, standard input.
        adapter: Folder of an adapter in PEFT's format, made for this model.
        system: System prompt, where the model takes one.
        complete: Continuation of the prompt as plain text, as base models always do.
        max_new_tokens: Most tokens of the answer; by default, the checkpoint's own limit.
        temperature: Temperature of sampling, 0 for the likeliest token; by default, the
            checkpoint's.
        seed: Seed of the random numbers; the same seed gives the same answer.
        dtype: Type of the parameters; by default, as stored.
        cache_dtype: Type of cached keys and values; int8 halves their memory.
        mesh_data: Devices that hold copies of the model.
        mesh_fsdp: Devices that split the weights' width.
        mesh_tensor: Devices that share each matrix product; by default, all that are left.
        coordinator: HOST:PORT of process 0 in a run of several, or "auto" to ask the machines; by
            default, what the environment, Slurm or the TPU says.
        processes: Number of processes in the run.
        process: Number of this process, counted from 0.
    """
    distributed.join(coordinator, processes, process)
    if prompt is None:
        print("prompt, end with Ctrl-D:" if sys.stdin.isatty() else "", end="", file=sys.stderr)
        prompt = sys.stdin.read().rstrip("\n")
    if not prompt:
        raise ValueError("the prompt is empty; give one as an argument or on standard input")
    split = jax.device_count() > 1 or (mesh_data, mesh_fsdp, mesh_tensor) != (1, 1, None)
    mesh = make_mesh(mesh_data, mesh_fsdp, mesh_tensor) if split else None
    params = load(folder, mesh, dtype=dtype, adapter=adapter)
    defaults = defaults_of(params)
    sampling = defaults.sampling
    if temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=temperature)
    asked: dict[str, Any] = {
        "sampling": sampling,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "cache_dtype": cache_dtype,
    }
    if complete or defaults.chat_format == "raw":
        if system is not None:
            raise ValueError("--system is for chat; a completed text has none")
        ids = text_tokenizer(params).encode_prompt(prompt)
        show(answer for (answer,) in stream_completions(params, [ids], **asked))
    else:
        show(stream_chat(params, prompt, system=system, **asked))
    _say(f"[{memory.of(params, cache_dtype)}]")


def show(answers: Iterator[Completion]) -> None:
    """Print an answer as it grows, then how fast it came; of several processes the first does."""
    began, first, shown = time.monotonic(), None, 0
    for answer in answers:
        first = first or time.monotonic()
        if jax.process_index() == 0:
            print(answer.text[shown:], end="", flush=True)
        shown = len(answer.text)
    if jax.process_index() == 0:
        print()
    first, end = (first or began) - began, time.monotonic() - began
    count = len(answer.tokens)
    rate = (count - 1) / max(end - first, 1e-9)
    _say(
        f"[{count} tokens, finished by {answer.finish_reason}: the first after {first:.2f} s, "
        f"then {rate:.1f} tokens/s]"
    )


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr)


def command(arguments: Sequence[str] | None = None, prog: str = "python -m qwen_jax") -> None:
    tyro.cli(main, prog=prog, args=arguments)


if __name__ == "__main__":
    run(command)
