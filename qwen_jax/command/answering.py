"""One prompt answered on a terminal or in a pipe, and how fast that was."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from qwen_jax import distributed, memory
from qwen_jax.checkpoint import examine, load, outline
from qwen_jax.command.settings import SAMPLING, GenerateConfig
from qwen_jax.conversation import chat_prompt, stream_chat
from qwen_jax.decoding import executables, generation_config
from qwen_jax.decoding.ahead import prepare
from qwen_jax.decoding.completion import (
    Completion,
    defaults_of,
    stream_completions,
    text_tokenizer,
)
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.program import BEGAN, progress
from qwen_jax.program.timings import Timings
from qwen_jax.storage import native


def answer(settings: GenerateConfig) -> None:
    """Stream the answer to stdout; what is wrong is said before an array is read."""
    laps = Timings(BEGAN)
    laps.lap("imports")
    distributed.join(settings.coordinator, settings.processes, settings.process)
    prompt = settings.prompt
    assert prompt is not None
    examined = examine(settings.folder)
    config, sketch = examined.config, outline(examined.config, examined.assets)
    asked: dict[str, Any] = {
        "sampling": sampling(settings, defaults_of(sketch).sampling),
        "max_new_tokens": settings.max_new_tokens,
        "stop": settings.stop,
        "seed": settings.seed,
        "cache_dtype": settings.cache_dtype,
        "draft_tokens": settings.draft_tokens,
        "attention": settings.attention,
    }
    ids, raw = _ids(settings, sketch, prompt)
    generation_config.check_prompt(config, len(ids))
    sizes = (settings.mesh_data, settings.mesh_fsdp, settings.mesh_tensor)
    split = jax.device_count() > 1 or sizes != (1, 1, None)
    mesh = make_mesh(*sizes) if split else None
    programs = settings.max_new_tokens, settings.cache_dtype, settings.draft_tokens
    how_to: dict[str, Any] = {"attention": settings.attention}
    begin = lambda shapes: prepare(shapes, ids, *programs, **how_to)
    how: dict[str, Any] = {"dtype": settings.dtype, "adapter": settings.adapter}
    laps.lap("files, tokenizer, prompt")
    with progress.working(f"loading {settings.folder}", native.size(examined.manifest.leaves), "B"):
        params = load(examined, mesh, before_reading=begin, **how)
    laps.lap("weights")
    growing: Iterator[Completion]
    if raw:
        growing = (answer for (answer,) in stream_completions(params, [ids], **asked))
    else:
        growing = stream_chat(params, prompt, system=settings.system, **asked)
    show(laps.around(growing, "first token", "more tokens"), len(ids))
    _say(f"[{memory.of(params, settings.cache_dtype, settings.attention)}]")
    if settings.timings:
        _say(laps.table(executables.spent()))


def sampling(settings: GenerateConfig, default: Sampling) -> Sampling:
    """The checkpoint's with what was given; ValueError where that would have no effect."""
    given = settings.given()
    changes = {name: given[name] for name in SAMPLING.split() if name in given}
    made = dataclasses.replace(default, **changes)
    settings.refuse_idle(made.temperature)
    return made


def show(answers: Iterator[Completion], read: int) -> None:
    """Print an answer as it grows, then how fast it came; of several processes the first does.

    read: tokens of the prompt. The rate is that of the second look at the device on: the first
    waits for a program to be compiled.
    """
    began, shown, looks = time.monotonic(), 0, list[tuple[float, int]]()
    answers = iter(answers)
    for what, of in (("compiling 1 of 2, reading the prompt", read), ("compiling 2 of 2", None)):
        with progress.working(what, of, "tokens"):
            first = next(answers, None)
        if first is None:
            break
        answer = first
        looks.append((time.monotonic(), len(answer.tokens)))
        shown = _print(answer, shown)
    for answer in answers:
        looks.append((time.monotonic(), len(answer.tokens)))
        shown = _print(answer, shown)
    if jax.process_index() == 0:
        print()
    words = [f"{len(answer.tokens)} tokens, finished by {answer.finish_reason}"]
    words += [f"the first after {looks[0][0] - began:.2f} s"]
    if len(looks) > 2 and looks[-1][1] > looks[1][1]:
        (start, before), (end, after) = looks[1], looks[-1]
        words += [f"then {(after - before) / max(end - start, 1e-9):.1f} tokens/s"]
    if answer.drafted:
        words += [f"{answer.accepted} of {answer.drafted} drafted tokens accepted"]
    _say(f"[{'; '.join(words)}]")


def _print(answer: Completion, shown: int) -> int:
    if jax.process_index() == 0:
        print(answer.text[shown:], end="", flush=True)
    return len(answer.text)


def _ids(settings: GenerateConfig, sketch: Qwen, prompt: str) -> tuple[list[int], bool]:
    """The prompt's tokens, and whether they are plain text and no question of a chat."""
    raw = settings.complete or defaults_of(sketch).chat_format == "raw"
    if raw and settings.system is not None:
        raise ValueError("--system is for chat; a completed text has none")
    if raw:
        return text_tokenizer(sketch).encode_prompt(prompt), raw
    return chat_prompt(sketch, prompt, system=settings.system)[0], raw


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr)
