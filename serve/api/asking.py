"""From a request's fields to requests of the engine."""

import dataclasses
import secrets
from dataclasses import dataclass, field
from typing import Any

from qwen_jax.completion import MAX_NEW_TOKENS
from qwen_jax.sampler import Settings
from qwen_jax.sampling import Sampling
from serve.answer import Answer, Token
from serve.api.errors import ApiError
from serve.api.fields import Wishes
from serve.prompting import Prompt
from serve.schedule import Request
from serve.service import Model

_SAMPLING = (
    "temperature top_p min_p repetition_penalty presence_penalty frequency_penalty min_tokens"
).split()


@dataclass
class Choice:
    """One of the answers that a client asked for."""

    prompt: Prompt
    request: Request
    answer: Answer
    finish: str = ""
    scores: list[Token] = field(default_factory=list)  # of the prompt's tokens but the first


def sampling_of(model: Model, wishes: Wishes, logprobs: int | None) -> Sampling:
    """The checkpoint's own way of choosing tokens, but for what the client says."""
    given: dict[str, Any] = {
        name: getattr(wishes, name) for name in _SAMPLING if getattr(wishes, name) is not None
    }
    if wishes.top_k is not None:
        given["top_k"] = max(0, wishes.top_k)
    if wishes.logit_bias:
        given["logit_bias"] = _biases(model, wishes.logit_bias)
    given["stop_ids"] = tuple((id,) for id in wishes.stop_token_ids or ())
    try:
        return dataclasses.replace(
            model.defaults.sampling, ignore_eos=wishes.ignore_eos, logprobs=logprobs, **given
        )
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def _biases(model: Model, given: dict[str, float]) -> dict[int, float]:
    biases = {}
    for name, bias in given.items():
        if not name.isascii() or not name.isdigit() or int(name[:12]) >= model.config.vocab:
            raise ApiError(
                400,
                f"logit_bias has {name[:40]!r}, wanted ids from 0 to {model.config.vocab - 1}",
                "logit_bias",
            )
        biases[int(name)] = bias
    return biases


def choices_of(
    model: Model,
    tenant: str,
    prompts: list[Prompt],
    wishes: Wishes,
    max_tokens: int | None,
    logprobs: int | None,
    judged: bool = False,
    most: int = 1,
) -> list[Choice]:
    """n answers to every prompt. max_tokens: None takes the checkpoint's, as far as it fits."""
    count = wishes.n or 1
    if count * len(prompts) > most:
        raise ApiError(400, f"{count} answers to {len(prompts)} prompts, at most {most} fit", "n")
    sampling = sampling_of(model, wishes, logprobs)
    seed = secrets.randbits(63) if wishes.seed is None else wishes.seed
    choices = []
    for prompt in prompts:
        budget = _budget(model, len(prompt.ids), max_tokens)
        if prompt.constraint is not None and sampling.min_tokens:
            raise ApiError(400, "min_tokens cannot go with a grammar", "min_tokens")
        try:
            settings = [
                Settings.of(sampling, prompt.ends, (seed + place) % 2**64) for place in range(count)
            ]
        except ValueError as error:
            raise ApiError(400, str(error), "stop_token_ids") from None
        choices += [
            _choice(model, tenant, prompt, one, sampling, wishes, budget, judged)
            for one in settings
        ]
    return choices


def _choice(
    model: Model,
    tenant: str,
    prompt: Prompt,
    settings: Settings,
    sampling: Sampling,
    wishes: Wishes,
    budget: int,
    judged: bool,
) -> Choice:
    ends = (*sampling.stop_ids, *(() if wishes.ignore_eos else prompt.ends))
    request = Request(
        tokens=prompt.ids,
        settings=settings,
        max_new_tokens=budget,
        emit=lambda news: None,
        ends=ends,
        tenant=tenant,
        adapter=model.adapter,
        lineage=f"{tenant}/{model.adapter}/{model.lineage(len(prompt.ids))}",
        constraint=prompt.constraint.copy() if prompt.constraint else None,
        logprobs=sampling.logprobs,
        judged=judged,
    )
    stop = (*prompt.stop, *(wishes.stop or ()))
    return Choice(prompt, request, Answer(model.tokenizer, prompt.parser(), stop, ends))


def _budget(model: Model, length: int, wanted: int | None) -> int:
    room = model.length - length
    if room < (wanted if wanted is not None else 1):
        raise ApiError(
            400,
            f"the prompt has {length} tokens, {wanted or 1} new ones are asked for, and at most "
            f"{model.length} fit; shorten the prompt or ask for fewer",
            "max_tokens" if length < model.length else "messages",
            "context_length_exceeded",
        )
    usual = model.defaults.max_new_tokens or MAX_NEW_TOKENS
    return min(usual, room) if wanted is None else wanted
