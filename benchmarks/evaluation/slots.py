"""A whole evaluation's tokens a second: slots that refill, against one question at a time.

    python -m benchmarks.evaluation.slots             # make slots

The real model answers HumanEval's first problems greedily, as `qwen_jax.evaluate` asks them, after
one unmeasured round of each way that compiles. Answers must be the same. Writes
benchmarks/results/slots.json.
"""

import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import tyro

from benchmarks.evaluation import real
from benchmarks.support import record
from qwen_jax.evaluate.answering import Asked, answers
from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.tasks.data import Data


def prompts(params: Any, count: int, tokens: int) -> list[Asked]:
    """Of unequal lengths, as are the answers: the third of four ends after half the tokens."""
    from qwen_jax import Sampling

    asked = [one.prompt for one in islice(TASKS["humaneval"].read(Data(Path("data"))), count)]
    encode = params.assets.tokenizer.encode_prompt
    most = lambda number: tokens // 2 if number % 4 == 2 else tokens
    return [
        Asked(encode(text), Sampling(temperature=0.0), (), most(number))
        for number, text in enumerate(asked)
    ]


def timed(params: Any, asked: list[Asked], slots: int) -> tuple[float, list[str]]:
    """Seconds, and the answers in the order of the questions."""
    began = time.perf_counter()
    found = dict(answers(params, asked, slots))
    seconds = time.perf_counter() - began
    return seconds, [found[index].text for index in range(len(asked))]


def main(count: int = 24, tokens: int = 32, slots: int = 16, dtype: str = "float32") -> None:
    """Measure.

    Args:
        count: Questions.
        tokens: Of an answer, at most.
        slots: Questions at once.
        dtype: Of the parameters.
    """
    from qwen_jax import load

    params = load(real.made(), dtype=dtype)
    asked = prompts(params, count, tokens)
    written = sum(one.max_new_tokens for one in asked)
    for number in (slots, 1):
        timed(params, asked[:2], number)
    load_before = record.load_average()
    found = {number: timed(params, asked, number) for number in (slots, 1)}
    result = {
        "command": "make slots",
        "model": f"Qwen2.5-Coder-0.5B-Instruct, from a Q4_K_M GGUF; {dtype}",
        "machine": record.machine(),
        "load_average_before": load_before,
        "versions": record.versions("jax", "jaxlib", "flax"),
        "questions": count,
        "prompt_tokens": sum(len(one.ids) for one in asked),
        "answer_tokens": written,
        "tokens_per_second": {
            f"{number} at once": round(written / seconds, 2)
            for number, (seconds, _) in found.items()
        },
        "times_as_fast": round(found[1][0] / found[slots][0], 2),
        "same_answers": sum(a == b for a, b in zip(found[slots][1], found[1][1], strict=True)),
    }
    record.write("slots", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
