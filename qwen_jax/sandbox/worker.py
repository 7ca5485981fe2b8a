"""The process that computes for `process`: a line of JSON in, [task, arguments], and one out.

    python -m qwen_jax.sandbox.worker SECONDS

The system ends it, in whatever call, when an answer has taken its seconds of computing; waiting
for a busy machine does not count.
"""

import functools
import json
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jinja2
import jinja2.meta

from qwen_jax.sandbox.template_environment import environment

BYTES_A_SECOND = 2 << 20  # so much longer may it take for what is long
MEMORY = 1 << 30  # address space
LONGEST = 64 << 20  # characters of an answer


def render(source: str, variables: Mapping[str, Any]) -> tuple[str, list[str]]:
    """A chat template's text, and the names of the variables that it reads."""
    template, reads = _compile(source)
    return template.render(variables), reads


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> tuple[jinja2.Template, list[str]]:
    sandbox = environment()
    reads = jinja2.meta.find_undeclared_variables(sandbox.parse(source))
    return sandbox.from_string(source), sorted(reads)


def first_matches(
    expressions: Sequence[str], names: Sequence[str], how: Literal["match", "fullmatch"]
) -> list[int | None]:
    """For each name the number of the first regular expression that matches it."""
    finders = []
    for expression in expressions:
        try:
            finders.append(getattr(re.compile(expression), how))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{expression!r:.99} is no regular expression: {error}") from None
    return [next((n for n, find in enumerate(finders) if find(name)), None) for name in names]


TASKS: dict[str, Callable[..., Any]] = {"render": render, "first_matches": first_matches}


def answer(line: str) -> str:
    try:
        task, arguments = json.loads(line)
        done = json.dumps({"done": TASKS[task](*arguments)})
        if len(done) > LONGEST:
            return json.dumps({"failed": f"it makes more than {LONGEST >> 20} million characters"})
        return done
    except MemoryError:
        return json.dumps({"failed": f"it takes more than {MEMORY >> 20} MiB of memory"})
    except Exception as error:
        return json.dumps({"failed": str(error)[:500] or type(error).__name__})


def main() -> None:
    seconds = float(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds + len(line) / BYTES_A_SECOND)
        found = answer(line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(found, flush=True)


if __name__ == "__main__":
    main()
