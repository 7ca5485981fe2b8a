"""What a benchmark asks a server: random prompts, ShareGPT's conversations, or lines of a file."""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ORDINARY_IDS = 256  # the ids that every Qwen's vocabulary has: one for each byte
SHORTEST, LONGEST_PROMPT, LONGEST = 4, 1024, 2048  # tokens of a ShareGPT turn, as vLLM's benchmark


@dataclass(frozen=True)
class Job:
    """One request: the prompt as a text, ids or messages, and how many tokens to answer."""

    prompt: str | list[int] | list[dict[str, Any]]
    max_tokens: int

    @property
    def is_chat(self) -> bool:
        return isinstance(self.prompt, list) and isinstance(self.prompt[0], dict)


def random_jobs(
    count: int, seed: int, input_length: int, output_length: int, spread: float
) -> list[Job]:
    """Prompts of random ids; lengths are uniform between (1 - spread) and (1 + spread) times."""
    choose = random.Random(seed)

    def length(middle: int) -> int:
        return max(1, choose.randint(round(middle * (1 - spread)), round(middle * (1 + spread))))

    return [
        Job(choose.choices(range(ORDINARY_IDS), k=length(input_length)), length(output_length))
        for _ in range(count)
    ]


def sharegpt_jobs(
    file: Path, count: int, seed: int, output_length: int | None, measure: Callable[[str], int]
) -> list[Job]:
    """First questions of ShareGPT's conversations, each with the length of its first reply.

    measure: how many tokens a text has. Turns that vLLM's benchmark leaves out are left out:
    shorter than 4 tokens, a prompt over 1024, both together over 2048.
    """
    conversations = _parsed(file, file.read_text("utf-8"))
    turns = [
        [turn["value"] for turn in one["conversations"][:2]]
        for one in conversations
        if len(one.get("conversations", ())) >= 2
    ]

    def jobs(drawn: Iterable[list[str]]) -> Iterator[Job]:
        for question, reply in drawn:
            asked = measure(question)
            wanted = measure(reply) if output_length is None else output_length
            short = min(asked, wanted) < SHORTEST
            if not short and asked <= LONGEST_PROMPT and asked + wanted <= LONGEST:
                yield Job([{"role": "user", "content": question}], wanted)

    return _drawn(file, turns, jobs, count, seed)


def jsonl_jobs(file: Path, count: int, seed: int, output_length: int | None) -> list[Job]:
    """Lines {"prompt": text} or {"messages": [...]}, with their "max_tokens" unless it is given."""
    lines = file.read_text("utf-8").split("\n")
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]

    def jobs(drawn: Iterable[tuple[int, str]]) -> Iterator[Job]:
        for number, line in drawn:
            row = _parsed(f"{file}, line {number}", line)
            prompt = row.get("messages") or row.get("prompt")
            wanted = row.get("max_tokens") if output_length is None else output_length
            if not prompt or not isinstance(wanted, int):
                raise ValueError(
                    f"{file}, line {number}: wanted a prompt or messages, and max_tokens unless "
                    "--output-length is given"
                )
            yield Job(prompt, wanted)

    return _drawn(file, rows, jobs, count, seed)


def _parsed(name: Path | str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None


def _drawn(
    file: Path,
    rows: Sequence[Any],
    jobs: Callable[[Iterable[Any]], Iterator[Job]],
    count: int,
    seed: int,
) -> list[Job]:
    """`count` jobs from shuffled rows, of which each is used once before any is used again."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    found: list[Job] = []
    for job in jobs(shuffled):
        found.append(job)
        if len(found) == count:
            return found
    if not found:
        raise ValueError(f"{file} has no usable request among {len(rows)}")
    return [found[index % len(found)] for index in range(count)]
