"""generation_config.json: how the makers of a checkpoint would generate from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_jax.decoding.sampling import Sampling
from qwen_jax.files.strict_json import StrictObject

_TRANSFORMERS_TOP_K = 50  # what transformers samples with when the file does not say
_HARMLESS = frozenset(
    "transformers_version _from_model_config output_attentions output_hidden_states use_cache "
    "return_dict_in_generate output_scores pad_token_id bos_token_id "
    # in the files of 2023, read by nothing even then
    "max_context_size max_generate_size decay_factor decay_bound decay_start "
    "decay_threshold".split()
)


@dataclass(frozen=True)
class Defaults:
    """What `generate` and `chat` do where the caller does not say."""

    sampling: Sampling = field(default_factory=Sampling)
    eos_ids: tuple[tuple[int, ...], ...] = ()  # sequences of ids that end every answer
    max_new_tokens: int | None = None
    chat_format: str | None = None  # v1: "chatml" or "raw"; None: the chat template decides
    max_window_size: int | None = None  # tokens of history a v1 chat keeps

    @staticmethod
    def from_hf(content: Mapping[str, Any]) -> "Defaults":
        """Read a generation_config.json: each key is honoured, harmless, or named in an error."""
        reader = StrictObject("generation_config.json", content)
        greedy = not reader.flag("do_sample", default=False)
        top_k = reader.left.pop("top_k", _TRANSFORMERS_TOP_K) or 0
        values = {
            "temperature": reader.number("temperature", default=1.0),
            "top_k": top_k,
            "top_p": reader.number("top_p", default=1.0),
            "min_p": reader.left.pop("min_p", None) or 0.0,
            "repetition_penalty": reader.number("repetition_penalty", default=1.0),
            "min_tokens": reader.left.pop("min_new_tokens", None) or 0,
        }
        if greedy:  # transformers ignores what only sampling reads
            values |= {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        eos = reader.take("eos_token_id", default=None)
        ends = [[id] for id in (eos if isinstance(eos, list) else [eos]) if id is not None]
        words = reader.take("stop_words_ids", default=None) or []
        ends += words if isinstance(words, list) else [words]
        made = Defaults(
            sampling=_sampling(reader, values),
            eos_ids=_sequences(reader, ends),
            max_new_tokens=_size_or_none(reader, "max_new_tokens"),
            chat_format=reader.take("chat_format", default=None),
            max_window_size=_size_or_none(reader, "max_window_size"),
        )
        if made.chat_format not in (None, "raw", "chatml"):
            reader.problems.append(f"chat_format is {made.chat_format!r}, expected raw or chatml")
        reader.require("num_beams", 1, None)
        reader.require("num_return_sequences", 1, None)
        reader.require("no_repeat_ngram_size", 0, None)
        reader.require("typical_p", 1.0, None)
        reader.finish(_HARMLESS)
        return made


def _sampling(reader: StrictObject, values: dict[str, Any]) -> Sampling:
    try:
        return Sampling(**values)
    except (ValueError, TypeError) as error:
        reader.problems.append(str(error))
        return Sampling()


def _sequences(reader: StrictObject, ends: list[Any]) -> tuple[tuple[int, ...], ...]:
    """Sequences of ids that end an answer, each once."""
    stop_ids = [tuple(ids) if isinstance(ids, list) else ids for ids in ends]
    return tuple(dict.fromkeys(_sampling(reader, {"stop_ids": stop_ids}).stop_ids))


def _size_or_none(reader: StrictObject, name: str) -> int | None:
    return reader.size(name) if reader.left.get(name) is not None else reader.left.pop(name, None)
