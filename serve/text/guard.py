"""A process that compiles strangers' grammars first, so that a hostile one harms nobody else.

    python -m serve.text.guard        # started by Guard; speaks lines of JSON

A pattern of a few characters can take minutes or gigabytes to compile, or overflow the stack,
and no setting of the library prevents all of that.
"""

import base64
import json
import os
import resource
import selectors
import subprocess
import sys
import threading
from typing import Any, cast

import llguidance
from llguidance import LLMatcher, LLParserLimits

SECONDS = 2.0  # to compile a grammar and find what may come first
_START_SECONDS = 60.0
_MEMORY = 4 * 2**30  # address space; a vocabulary of 152,000 takes a tenth

# The fuel is what a step in the middle of an answer takes at most, a second; by default, minutes.
LIMITS = LLParserLimits(
    initial_lexer_fuel=100_000,
    step_lexer_fuel=50_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)


def engine(vocabulary: dict[str, Any]) -> llguidance.LLTokenizer:
    """The library's tokenizer, of what grammar.vocabulary gives."""
    encoder = {base64.b64decode(token): rank for token, rank in vocabulary["encoder"].items()}
    made = llguidance.LLTokenizer.from_tiktoken(  # type: ignore[attr-defined]
        **{**vocabulary, "encoder": encoder, "slices": []}
    )
    return cast(llguidance.LLTokenizer, made)


def compiled(tokenizer: llguidance.LLTokenizer, grammar: str) -> LLMatcher:
    """Raises ValueError for what cannot be used."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    for _ in range(2):  # the first mask is the dearest; past its limits it fails the time after
        trial = matcher.deep_copy()
        if not trial.is_error():
            trial.compute_logit_bias()
        if trial.is_error():
            raise ValueError(trial.get_error().split("\n<backtrace>")[0][:300])
    return matcher


class Guard:
    """The process as seen from the server; one grammar at a time."""

    def __init__(self, vocabulary: dict[str, Any]):
        self._first_line = json.dumps(vocabulary)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def check(self, grammar: str) -> None:
        """Raises ValueError for a grammar that is wrong, or takes too much time or memory."""
        with self._lock:
            if self._process is None:
                self._process = self._start()
            answer = self._ask(self._process, json.dumps(grammar), SECONDS)
            if answer is None:
                self._stop()
                self._process = self._start()  # whoever comes next need not wait for it
                raise ValueError("it takes too much time or memory")
            if answer:
                raise ValueError(answer)

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "serve.text.guard"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._ask(process, self._first_line, _START_SECONDS) != "":
            process.kill()
            raise OSError("the process that checks grammars cannot be started")
        return process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @staticmethod
    def _ask(process: "subprocess.Popen[str]", line: str, seconds: float) -> str | None:
        """Its answer; None if it took too long or died."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        answer = process.stdout.readline()
        return json.loads(answer) if answer else None


def main() -> None:
    os.nice(10)  # strangers' grammars come after the answers under way
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    tokenizer = engine(json.loads(sys.stdin.readline()))
    print('""', flush=True)
    for line in sys.stdin:
        try:
            compiled(tokenizer, json.loads(line))
            print('""', flush=True)
        except Exception as error:
            print(json.dumps(str(error) or "it is wrong"), flush=True)


if __name__ == "__main__":
    main()
