"""What a user may ask of the choice of tokens; `logits` does the arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

MAX_BIASES = 300  # ids in logit_bias, OpenAI's limit
MAX_STOPS = 16  # stop sequences of a request, the checkpoint's own included
MAX_STOP_LENGTH = 8  # ids in one stop sequence
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The default samples from the model's own distribution.

    Applied in transformers' order: repetition penalty, presence and frequency penalty, logit
    bias, min_tokens, temperature, top_k, top_p, min_p. Values that make no sense raise ValueError.
    """

    temperature: float = 1.0  # 0 takes the most likely token
    top_k: int = 0  # keep the k most likely tokens; 0: all
    top_p: float = 1.0  # keep the fewest tokens that hold this much probability
    min_p: float = 0.0  # keep tokens at least this fraction as likely as the best
    repetition_penalty: float = 1.0  # weakens ids seen in the prompt or the answer
    presence_penalty: float = 0.0  # subtracted from ids in the answer
    frequency_penalty: float = 0.0  # subtracted once per occurrence in the answer
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0  # no stop before so many new tokens
    stop: tuple[str, ...] = ()  # texts that end the answer and are cut from it
    stop_ids: tuple[tuple[int, ...], ...] = ()  # sequences of ids that end it, and stay
    ignore_eos: bool = False  # do not stop at the ids the checkpoint itself stops at
    logprobs: int | None = None  # log probabilities of this many best ids beside the chosen one

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)!r}, expected a {'whole ' if whole else ''}number "
            f"from {least} to {most}"
            for name, whole, least, most in _RANGES
            if not _is_number(getattr(self, name), whole, least, most)
        ]
        if self.logprobs is not None and not _is_number(self.logprobs, True, 0, MAX_LOGPROBS):
            problems.append(f"logprobs is {self.logprobs!r}, expected None or 0 to {MAX_LOGPROBS}")
        if not isinstance(self.ignore_eos, bool):
            problems.append(f"ignore_eos is {self.ignore_eos!r}, expected True or False")
        biases = self.logit_bias if isinstance(self.logit_bias, Mapping) else {}
        if biases is not self.logit_bias:
            problems.append(f"logit_bias is {self.logit_bias!r}, expected a mapping of ids")
        if len(biases) > MAX_BIASES:
            problems.append(f"logit_bias has {len(biases)} ids, at most {MAX_BIASES} fit")
        for token, bias in biases.items():
            if not _is_number(token, True, 0, 2**31 - 1) or not _is_number(bias, False, -1e4, 1e4):
                problems.append(f"logit_bias has {token!r}: {bias!r}, expected an id and a number")
        if not _is_list(self.stop) or not all(isinstance(s, str) and s for s in self.stop):
            problems.append(f"stop is {self.stop!r}, expected a tuple of non-empty strings")
        sequences = self.stop_ids if _is_list(self.stop_ids) else ()
        if sequences is not self.stop_ids:
            problems.append(f"stop_ids is {self.stop_ids!r}, expected a tuple of sequences of ids")
        if len(sequences) > MAX_STOPS:
            problems.append(f"stop_ids has {len(sequences)} sequences, at most {MAX_STOPS} fit")
        for ids in sequences:
            good = _is_list(ids) and all(_is_number(i, True, 0, 2**31 - 1) for i in ids)
            if not good or not 0 < len(ids) <= MAX_STOP_LENGTH:
                problems.append(
                    f"stop_ids has {ids!r}, expected a sequence of 1 to {MAX_STOP_LENGTH} ids"
                )
        if problems:
            raise ValueError("Sampling: " + "; ".join(problems))


def stop_sequences(
    sampling: Sampling, eos_ids: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """The sequences of ids that end an answer. eos_ids: where the checkpoint itself stops."""
    wanted = (*sampling.stop_ids, *(() if sampling.ignore_eos else eos_ids))
    return tuple(dict.fromkeys(map(tuple, wanted)))


def finish_reason(
    prompt: Sequence[int], answer: Sequence[int], budget: int, stops: Sequence[Sequence[int]]
) -> str:
    """Why a device ended an answer: "length" if the budget did and no stop sequence, or "stop"."""
    if len(answer) < budget:
        return "stop"
    text = [*prompt[-MAX_STOP_LENGTH:], *answer[-MAX_STOP_LENGTH:]]
    return "stop" if any(list(ids) == text[-len(ids) :] for ids in stops) else "length"


_RANGES: tuple[tuple[str, bool, float, float], ...] = (
    ("temperature", False, 0, 100),
    ("top_k", True, 0, 2**31 - 1),
    ("top_p", False, 1e-9, 1),
    ("min_p", False, 0, 1),
    ("repetition_penalty", False, 1e-3, 1e3),
    ("presence_penalty", False, -100, 100),
    ("frequency_penalty", False, -100, 100),
    ("min_tokens", True, 0, 2**31 - 1),
)


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _is_number(value: Any, whole: bool, least: float, most: float) -> bool:
    kinds = int | Integral if whole else float | Real  # a huge int is compared, never converted
    return isinstance(value, kinds) and not isinstance(value, bool) and bool(least <= value <= most)
