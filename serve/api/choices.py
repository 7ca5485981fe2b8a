"""From a request's fields to requests of the engine."""

import dataclasses
import secrets
from dataclasses import dataclass, field
from typing import Any

from qwen_jax.decoding.completion import MAX_NEW_TOKENS
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.sampling import Sampling, stop_sequences
from qwen_jax.text.tokenizer import Tokenizer
from serve.api.prompting import Prompt
from serve.api.window import too_long
from serve.engine.request import Request
from serve.http.errors import ApiError, shown
from serve.schemas.requests import SamplingFields
from serve.service import Model
from serve.text.answer import Answer, Token

_SAMPLING = (
    "temperature min_p repetition_penalty presence_penalty frequency_penalty min_tokens"
).split()
_LEAST_TOP_P = 1e-9  # the likeliest token alone


@dataclass
class Choice:
    """One of the answers that a client asked for."""

    prompt: Prompt
    request: Request
    answer: Answer
    finish: str = ""
    scores: list[Token] = field(default_factory=list)  # of the prompt's tokens but the first


def sampling_of(model: Model, fields: SamplingFields, logprobs: int | None) -> Sampling:
    """The checkpoint's own way of choosing tokens, but for what the client says."""
    given: dict[str, Any] = {
        name: getattr(fields, name) for name in _SAMPLING if getattr(fields, name) is not None
    }
    if fields.top_p is not None:
        given["top_p"] = max(fields.top_p, _LEAST_TOP_P)
    if fields.top_k is not None:
        given["top_k"] = max(0, fields.top_k)
    if fields.logit_bias:
        given["logit_bias"] = _biases(model, fields.logit_bias)
    stops = fields.stop_token_ids or ()
    if stops and max(stops) >= model.config.vocab:
        raise _no_id(model, "stop_token_ids", str(max(stops)))
    named = (_control(model.tokenizer, text) for text in fields.stop or ())
    given["stop_ids"] = (*((id,) for id in stops), *(ids for ids in named if ids))
    try:
        return dataclasses.replace(
            model.defaults.sampling, ignore_eos=fields.ignore_eos, logprobs=logprobs, **given
        )
    except ValueError as error:
        raise ApiError(400, str(error)) from None


def _control(tokenizer: Tokenizer, stop: str) -> tuple[int, ...]:
    """The ids of a stop string with control tokens in it, which are no part of any text."""
    names = {name for name, id in tokenizer.specials.items() if id in tokenizer.hidden}
    if not any(name in stop for name in names):
        return ()
    return tuple(tokenizer.encode(stop, specials=names))


def _biases(model: Model, given: dict[str, float]) -> dict[int, float]:
    for name in given:
        written = name.isascii() and name.isdigit() and len(name) <= 10 and str(int(name)) == name
        if not written or int(name) >= model.config.vocab:
            raise _no_id(model, "logit_bias", shown(name))
    return {int(name): bias for name, bias in given.items()}


def _no_id(model: Model, field: str, got: str) -> ApiError:
    most = model.config.vocab - 1
    return ApiError(400, f"{field} has {got}, wanted ids from 0 to {most}", field)


def choices_of(
    model: Model,
    tenant: str,
    prompts: list[Prompt],
    fields: SamplingFields,
    max_tokens: int | None,
    logprobs: int | None,
    judged: bool = False,
    most: int = 1,
) -> list[Choice]:
    """n answers to every prompt. max_tokens: None takes the checkpoint's, as far as it fits."""
    count = fields.n or 1
    if count * len(prompts) > most:
        raise ApiError(400, f"{count} answers to {len(prompts)} prompts, at most {most} fit", "n")
    sampling = sampling_of(model, fields, logprobs)
    seed = secrets.randbits(63) if fields.seed is None else fields.seed
    choices = []
    for prompt in prompts:
        budget = _budget(model, len(prompt.ids), max_tokens)
        if prompt.rules is not None and sampling.min_tokens:
            raise ApiError(400, "min_tokens cannot go with a grammar", "min_tokens")
        try:
            settings = [
                SamplingArrays.of(sampling, prompt.ends, (seed + index) % 2**64)
                for index in range(count)
            ]
        except ValueError as error:
            raise ApiError(400, str(error), "stop_token_ids") from None
        choices += [
            _choice(model, tenant, prompt, one, sampling, fields, budget, judged)
            for one in settings
        ]
    return choices


def _choice(
    model: Model,
    tenant: str,
    prompt: Prompt,
    settings: SamplingArrays,
    sampling: Sampling,
    fields: SamplingFields,
    budget: int,
    judged: bool,
) -> Choice:
    ends = stop_sequences(sampling, prompt.ends)
    request = Request(
        tokens=prompt.ids,
        settings=settings,
        max_new_tokens=budget,
        emit=lambda update: None,
        ends=ends,
        tenant=tenant,
        adapter=model.adapter.number,
        prefix_scope=model.scope(tenant, len(prompt.ids)),
        logprobs=sampling.logprobs,
        judged=judged,
        priority=fields.priority,
    )
    stop = (*prompt.stop, *(fields.stop or ()))
    hidden = model.tokenizer.hidden
    silent = {id for id, *more in ends if not more and ((id,) in prompt.ends or id in hidden)}
    answer = Answer(
        model.tokenizer,
        prompt.parser(),
        stop,
        silent,
        sampling.min_tokens,
        told=stop[len(prompt.stop) :] if fields.include_stop_str_in_output else (),
        skip_specials=fields.skip_special_tokens,
    )
    return Choice(prompt, request, answer)


def _budget(model: Model, length: int, wanted: int | None) -> int:
    room = model.length - length
    if room < (wanted if wanted is not None else 1):
        param = "max_tokens" if length < model.length else "messages"
        raise too_long(model, f"{length} tokens", wanted or 1, param)
    if wanted is not None:
        return wanted
    try:
        return min(model.defaults.new_tokens(length, MAX_NEW_TOKENS), room)
    except ValueError as error:
        raise ApiError(400, str(error), "messages", "context_length_exceeded") from None
