"""Options that several programs have, refused before JAX is imported where they cannot be right."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_jax.program import rendezvous

MAX_DRAFT_TOKENS = 15  # kernels take 16 tokens a row
MAX_SEED = 2**63 - 1  # as in OpenAI's API
MOST_NEW_TOKENS = 2**30  # that 32 bits can count, with a prompt
RANGES: dict[str, tuple[float, float]] = {
    "draft_tokens": (0, MAX_DRAFT_TOKENS),
    "seed": (0, MAX_SEED),
    "prompt_tokens": (1, 2**24),
    "context": (1, 2**24),
    "batch": (1, 2**24),
    "max_new_tokens": (1, MOST_NEW_TOKENS),
    "limit": (1, 2**31 - 1),
    # of `bench`
    **dict.fromkeys(("requests", "concurrency"), (1, 10**6)),
    **dict.fromkeys(("input_length", "output_length"), (1, 2**24)),
    **dict.fromkeys(("rate", "timeout"), (1e-3, math.inf)),
    "spread": (0, 0.99),
    "temperature": (0, 100),
    "warmup": (0, 10**6),
    # of a mesh
    **dict.fromkeys(("mesh_data", "mesh_fsdp", "mesh_tensor"), (1, 65536)),
}
CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")
FILES = ("calibration", "extra_vocab_file", "file")
_URL = re.compile(r"https?://[^\s/]+(/\S*)?", re.IGNORECASE)
_RUN = ("coordinator", "processes", "process")


def expect(**options: Any) -> None:
    """Raise ValueError with every one of a program's options that is out of its range."""
    if found := list(problems(**options)):
        raise ValueError("; ".join(found))


def problems(**options: Any) -> Iterator[str]:
    """What `expect` raises; None is an option that is not given."""
    for name, value in options.items():
        if value is None or name in _RUN:
            continue
        if name in RANGES:
            yield from outside(f"--{name.replace('_', '-')}", value, *RANGES[name])
        elif name == "adapter":
            yield from _no_adapter(Path(value))
        elif name == "url" and not _URL.fullmatch(value):
            yield f"--url is {value!r}, wanted an address as http://localhost:8000"
        elif name in FILES and not Path(value).is_file():
            yield f"--{name.replace('_', '-')}: there is no file {value}; give one that is there"
    yield from rendezvous.option_problems(*(options.get(name) for name in _RUN))


def outside(name: str, value: float, least: float, most: float) -> Iterator[str]:
    """A line if a number is not in a range, NaN included."""
    if not least <= value <= most:
        yield f"{name} is {value}, wanted {least} {'or more' if most == math.inf else f'to {most}'}"


def _no_adapter(folder: Path) -> Iterator[str]:
    if not (folder / "adapter_config.json").is_file():
        lacks = f"{folder} has no adapter_config.json" if folder.is_dir() else f"no folder {folder}"
        yield f"--adapter: {lacks}; give the folder of an adapter in PEFT's format"
