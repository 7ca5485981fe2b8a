"""How long an answer may be, and how the makers would sample it: generation_config.json."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from qwen_jax.config import Config
from qwen_jax.decoding.sampling import MAX_STOP_LENGTH, Sampling
from qwen_jax.files.strict_json import (
    ANYTHING,
    COUNT,
    FLAG,
    POSITIVE,
    SIZE,
    Kind,
    StrictObject,
    choice,
    either,
    listed,
)
from qwen_jax.program.limits import MOST_NEW_TOKENS

_TRANSFORMERS_TOP_K = 50  # what transformers samples with when the file does not say
_HARMLESS = frozenset(
    "transformers_version _from_model_config output_attentions output_hidden_states use_cache "
    "return_dict_in_generate output_scores output_logits pad_token_id bos_token_id "
    # of beams, of which there is one, and of assisted generation, which gives the same tokens
    "early_stopping length_penalty num_assistant_tokens num_assistant_tokens_schedule "
    "assistant_confidence_threshold assistant_early_exit assistant_lookbehind target_lookbehind "
    "max_matching_ngram_size prompt_lookup_num_tokens "
    # in the files of 2023, read by nothing even then
    "max_context_size max_generate_size decay_factor decay_bound decay_start "
    "decay_threshold".split()
)
_NEUTRAL = {  # the values that change nothing of what others may change
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "typical_p": (1.0,),
    "min_length": (0,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "encoder_repetition_penalty": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "guidance_scale": (1.0,),
    "cache_implementation": ("dynamic", "static"),
}
_ID_OR_NONE = Kind[Any]("a token id", lambda value: value is None or COUNT.holds(value), None)
_SEQUENCE = Kind[Any](
    f"a sequence of 1 to {MAX_STOP_LENGTH} ids",
    lambda ids: listed(COUNT).holds(ids) and 0 < len(ids) <= MAX_STOP_LENGTH,
    [0],
)


@dataclass(frozen=True)
class Defaults:
    """What `generate` and `chat` do where the caller does not say."""

    sampling: Sampling = field(default_factory=Sampling)
    eos_ids: tuple[tuple[int, ...], ...] = ()  # sequences of ids that end every answer
    max_new_tokens: int | None = None
    chat_format: str | None = None  # v1: "chatml" or "raw"; None: the chat template decides
    max_window_size: int | None = None  # tokens of history a v1 chat keeps
    max_length: int | None = None  # of prompt and answer together, where max_new_tokens is None
    cache_dtype: str | None = None  # of keys and values; None: as they are computed

    @staticmethod
    def from_hf(content: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> "Defaults":
        """Read a generation_config.json: each key is honoured, harmless, or named in an error.

        config: the content of config.json beside it, which says how an answer ends where this file
        does not, and whether v1's keys and values are kept as int8.
        """
        reader = StrictObject("generation_config.json", content)
        greedy = not reader.take(FLAG, "do_sample", default=False)
        top_k = reader.left.pop("top_k", _TRANSFORMERS_TOP_K) or 0
        # transformers ignores what only sampling reads
        warm = ANYTHING if greedy else POSITIVE
        values = {
            "temperature": reader.take(warm, "temperature", default=1.0),
            "top_k": top_k,
            "top_p": reader.take(warm, "top_p", default=1.0),
            "min_p": reader.left.pop("min_p", None) or 0.0,
            "repetition_penalty": reader.take(POSITIVE, "repetition_penalty", default=1.0),
            "min_tokens": reader.take(COUNT, "min_new_tokens", default=0),
        }
        if greedy:
            values |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        beside = StrictObject("config.json", config or {})
        ends = _ends(reader) or _ends(beside)
        quantised = beside.take(FLAG, "use_cache_quantization", default=False)
        beside.stop()
        made = Defaults(
            sampling=_sampling(reader, values),
            eos_ids=_sampling(reader, {"stop_ids": ends}).stop_ids,
            max_new_tokens=reader.take(SIZE, "max_new_tokens", default=None),
            chat_format=reader.take(choice("raw", "chatml"), "chat_format", default=None),
            max_window_size=reader.take(SIZE, "max_window_size", default=None),
            max_length=reader.take(SIZE, "max_length", default=None),
            cache_dtype="int8" if quantised else None,
        )
        for name, allowed in _NEUTRAL.items():
            reader.require(name, *allowed)
        reader.finish(_HARMLESS)
        return made

    def new_tokens(self, prompt: int, otherwise: int) -> int:
        """The most new tokens behind a prompt of that many; otherwise: where no file says."""
        if self.max_new_tokens is not None or self.max_length is None:
            return self.max_new_tokens or otherwise
        if prompt >= self.max_length:
            raise ValueError(
                f"the prompt has {prompt} tokens, and generation_config.json ends prompt and "
                f"answer at max_length {self.max_length}; shorten it, or give max_new_tokens"
            )
        return min(otherwise, self.max_length - prompt)


def _sampling(reader: StrictObject, values: dict[str, Any]) -> Sampling:
    try:
        return Sampling(**values)
    except (ValueError, TypeError) as error:
        reader.problems.append(str(error))
        return Sampling()


def _ends(reader: StrictObject) -> tuple[tuple[int, ...], ...]:
    """Sequences of ids that end an answer, each once."""
    eos: Any = reader.take(either(_ID_OR_NONE, listed(_ID_OR_NONE)), "eos_token_id", default=[])
    ends = [[id] for id in (eos if isinstance(eos, list) else [eos]) if id is not None]
    ends += reader.take(listed(_SEQUENCE), "stop_words_ids", default=[])
    return tuple(dict.fromkeys(map(tuple, ends)))


def budget(config: Config, longest: int, max_new_tokens: int) -> int:
    """The new tokens, if a prompt of `longest` may have so many; a warning past the window."""
    whole = isinstance(max_new_tokens, Integral) and not isinstance(max_new_tokens, bool)
    if not whole or not 0 < max_new_tokens <= MOST_NEW_TOKENS:
        raise ValueError(f"got max_new_tokens {max_new_tokens!r}, wanted 1 to {MOST_NEW_TOKENS}")
    check_prompt(config, longest)
    if longest + max_new_tokens > config.max_length:
        warnings.warn(
            f"prompt and answer may take {longest + max_new_tokens} tokens, this checkpoint is "
            f"made for {config.max_length}; the text may lose its thread past that",
            stacklevel=3,
        )
    return max_new_tokens


def check_prompt(config: Config, length: int) -> None:
    """Raise ValueError for a prompt of so many tokens that no answer to it could be right.

    Dynamic NTK stretches as far as a prompt is long; YaRN and plain positions end.
    """
    most = config.max_length
    if config.yarn is not None:
        most = max(most, round(config.yarn.factor * config.yarn.original_length))
    if length > most and config.ntk_length is None:
        raise ValueError(
            f"the prompt has {length} tokens, this checkpoint reads {most} at most; shorten it, or "
            "take a checkpoint with a longer window"
        )
