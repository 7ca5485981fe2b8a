"""A whole evaluation's tokens a second: slots that refill, against one question at a time.

    python -m benchmarks.evaluation.slots             # make slots; five minutes of two cores

The real model answers HumanEval's first problems greedily, as `qwen_jax.evaluate` asks them; the
answers are cut at unequal lengths and must be the same both ways. What a run spends on compiling,
which a longer one spends only once, is told apart. Writes benchmarks/results/slots.json.
"""

import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import tyro

from benchmarks.evaluation import real
from benchmarks.support import record
from qwen_jax.evaluate.answering import Asked, answers
from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.tasks.data import Data


def prompts(params: Any, count: int, tokens: int) -> list[Asked]:
    """Of unequal lengths, as are the answers: of half as many tokens to all of them."""
    from qwen_jax import Sampling

    asked = [one.prompt for one in islice(TASKS["humaneval"].read(Data(Path("data"))), count)]
    encode = params.assets.tokenizer.encode_prompt
    most = lambda number: tokens - tokens // 8 * (number * 3 % 5)
    return [
        Asked(encode(text), Sampling(temperature=0.0), (), most(number))
        for number, text in enumerate(asked)
    ]


class Compiling:
    """Seconds spent on making programs so far."""

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **details: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration_secs


def timed(
    params: Any, asked: list[Asked], slots: int, compiling: Compiling
) -> tuple[float, float, list[str]]:
    """Seconds, those of them that made programs, and the answers in the order of the questions."""
    began, before = time.perf_counter(), compiling.seconds
    found = dict(answers(params, asked, slots))
    seconds = time.perf_counter() - began
    made = compiling.seconds - before
    return seconds, made, [found[index].text for index in range(len(asked))]


def main(count: int = 32, tokens: int = 128, slots: int = 16, dtype: str = "float32") -> None:
    """Measure.

    Args:
        count: Questions.
        tokens: Of an answer, at most.
        slots: Questions at once.
        dtype: Of the parameters.
    """
    from qwen_jax import load

    params, compiling = load(real.made(), dtype=dtype), Compiling()
    asked = prompts(params, count, tokens)
    written = sum(one.max_new_tokens for one in asked)
    load_before = record.load_average()
    found = {number: timed(params, asked, number, compiling) for number in (slots, 1)}
    rows = {
        f"{number} at once": {
            "seconds": round(seconds, 1),
            "of_them_compiling": round(made, 1),
            "tokens_per_second": round(written / (seconds - made), 2),
        }
        for number, (seconds, made, _) in found.items()
    }
    (many, compiled, first), (single, compiled_single, second) = found.values()
    result = {
        "command": "make slots",
        "model": f"Qwen2.5-Coder-0.5B-Instruct, from a Q4_K_M GGUF; {dtype}",
        "machine": record.machine(),
        "load_average_before": load_before,
        "versions": record.versions("jax", "jaxlib", "flax"),
        "questions": count,
        "prompt_tokens": sum(len(one.ids) for one in asked),
        "answer_tokens": written,
        "runs": rows,
        "times_as_fast": round((single - compiled_single) / (many - compiled), 2),
        "times_as_fast_with_compiling": round(single / many, 2),
        "same_answers": sum(a == b for a, b in zip(first, second, strict=True)),
    }
    record.write("slots", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
