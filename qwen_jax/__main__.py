"""The smallest command line: python -m qwen_jax FOLDER [PROMPT]."""

import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from qwen_jax import memory
from qwen_jax.checkpoint import load
from qwen_jax.decoding.completion import Completion, stream_completions
from qwen_jax.generate import stream_chat, text_tokenizer

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
) -> None:
    """Stream a model's answer to a prompt.

    Args:
        folder: What `python -m convert` wrote, or "demo".
        prompt: The question; by default, what comes on standard input.
        adapter: A folder in PEFT's format, made for this model.
        system: The system prompt, where the model takes one.
        complete: Continue the prompt as plain text, as base models always do.
        max_new_tokens: The longest answer; by default, the checkpoint's.
        temperature: 0 takes the likeliest token; by default, the checkpoint's.
        seed: The same seed gives the same answer.
        dtype: Of the parameters; by default, as stored.
        cache_dtype: Of keys and values; int8 halves their memory.
    """
    if prompt is None:
        print("prompt, end with Ctrl-D:" if sys.stdin.isatty() else "", end="", file=sys.stderr)
        prompt = sys.stdin.read().rstrip("\n")
    if not prompt:
        raise ValueError("the prompt is empty; give one as an argument or on standard input")
    params = load(folder, dtype=dtype, cache_dtype=cache_dtype, adapter=adapter)
    sampling = params.assets.defaults.sampling
    if temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=temperature)
    how = {"sampling": sampling, "max_new_tokens": max_new_tokens, "seed": seed}
    if complete or params.assets.defaults.chat_format == "raw":
        if system is not None:
            raise ValueError("--system is for chat; a completed text has none")
        ids = text_tokenizer(params).encode(prompt, specials=True)
        show(answer for (answer,) in stream_completions(params, [ids], watch=True, **how))
    else:
        show(stream_chat(params, prompt, system=system, **how))
    print(f"[{memory.of(params)}]", file=sys.stderr)


def show(answers: Iterator[Completion]) -> None:
    """Print an answer as it grows, then how fast it came."""
    began, first, shown = time.monotonic(), None, 0
    for answer in answers:
        first = first or time.monotonic()
        print(answer.text[shown:], end="", flush=True)
        shown = len(answer.text)
    print()
    first, end = (first or began) - began, time.monotonic() - began
    count = len(answer.tokens)
    rate = (count - 1) / max(end - first, 1e-9)
    print(
        f"[{count} tokens, finished by {answer.finish_reason}: the first after {first:.2f} s, "
        f"then {rate:.1f} tokens/s]",
        file=sys.stderr,
    )


def run(command: Callable[[], object]) -> None:
    """A program's whole life: compiled code is kept for the next one, faults are one line."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "qwen_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    sys.unraisablehook = _interrupt_again
    try:
        command()
    except BrokenPipeError:  # whoever read the answer has enough; Python would flush into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:  # the last: out of memory
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


def _interrupt_again(lost: Any) -> None:
    """Python drops a Ctrl-C that meets a callback of the garbage collector, and jax has one."""
    if lost.exc_type is KeyboardInterrupt:
        again = lambda: os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(0.05, again).start()  # by then the callback is over
    else:
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    run(lambda: tyro.cli(main, prog="python -m qwen_jax"))
