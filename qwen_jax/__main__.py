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
from qwen_jax.conversation import chat_prompt
from qwen_jax.decoding.ahead import prepare
from qwen_jax.decoding.completion import Completion, answers, defaults_of, text_tokenizer
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.timings import Timings

Number = Literal["float32", "bfloat16", "float16"]
# the prompt's ids; the sequences of ids that end its answer, None: the checkpoint's; how to sample
Request = tuple[list[int], tuple[tuple[int, ...], ...] | None, Sampling]


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
    timings: bool = False,
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
        timings: A table of where the time went, at the end.
    """
    laps = Timings()
    laps.lap("imports")
    distributed.join(coordinator, processes, process)
    if prompt is None:
        print("prompt, end with Ctrl-D:" if sys.stdin.isatty() else "", end="", file=sys.stderr)
        prompt = sys.stdin.read().rstrip("\n")
    if not prompt:
        raise ValueError("the prompt is empty; give one as an argument or on standard input")
    split = jax.device_count() > 1 or (mesh_data, mesh_fsdp, mesh_tensor) != (1, 1, None)
    mesh = make_mesh(mesh_data, mesh_fsdp, mesh_tensor) if split else None
    asked: dict[str, Any] = {"max_new_tokens": max_new_tokens, "cache_dtype": cache_dtype}
    requests: list[Request] = []

    def begin(shapes: Qwen) -> None:
        """Programs are made, or read, while the weights are."""
        laps.lap("files and tokenizer")
        requests.append(_request(shapes, prompt, system, complete, temperature))
        prepare(shapes, requests[0][0], **asked)
        laps.lap("prompt")

    params = load(folder, mesh, dtype=dtype, adapter=adapter, before_reading=begin)
    laps.lap("weights")
    ids, ends, sampling = (
        requests[0] if requests else _request(params, prompt, system, complete, temperature)
    )
    growing = answers(
        params, [ids], sampling, stop=(), seed=seed, eos_ids=ends, watch=True, **asked
    )
    show((answer for (answer,) in growing), laps)
    _say(f"[{memory.of(params, cache_dtype)}]")
    if timings:
        _say(laps.table())


def _request(
    params: Qwen, prompt: str, system: str | None, complete: bool, temperature: float | None
) -> Request:
    """All that is asked, before there is an array: see Request."""
    sampling = defaults_of(params).sampling
    if temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=temperature)
    if not complete and defaults_of(params).chat_format != "raw":
        return *chat_prompt(params, prompt, system=system), sampling
    if system is not None:
        raise ValueError("--system is for chat; a completed text has none")
    return text_tokenizer(params).encode_prompt(prompt), None, sampling


def show(growing: Iterator[Completion], laps: Timings | None = None) -> None:
    """Print an answer as it grows, then how fast it came; of several processes the first does."""
    began, first, shown = time.monotonic(), None, 0
    for answer in growing:
        if first is None:
            first = time.monotonic()
            if laps is not None:
                laps.lap("first token")
        if jax.process_index() == 0:
            print(answer.text[shown:], end="", flush=True)
        shown = len(answer.text)
    if jax.process_index() == 0:
        print()
    if laps is not None:
        laps.lap("more tokens")
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
