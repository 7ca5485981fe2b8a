"""A model class for EleutherAI's lm-eval: in this process, batched, on a mesh.

    python -m qwen_jax.evaluate.lm_eval_model run --model qwen_jax \
        --model_args pretrained=qwen-7b-chat --tasks arc_easy

is `lm_eval` with the model "qwen_jax" known to it; in Python, import this file and call
`lm_eval.simple_evaluate(model="qwen_jax", model_args={"pretrained": "qwen-7b-chat"}, ...)`.
"""

from collections.abc import Sequence
from typing import Any

import jax
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from qwen_jax.checkpoint import load
from qwen_jax.decoding.completion import defaults_of, text_tokenizer
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.evaluate.answering import Asked, answers
from qwen_jax.evaluate.scoring import Text, likelihoods
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.text import chatml

_MOST_NEW = 256  # tokens, where a task does not say, as lm-eval's own


@register_model("qwen_jax")
class QwenLM(TemplateLM):  # type: ignore[misc]  # it says no types
    """pretrained: a native folder, or "demo". max_length: tokens, default the checkpoint's window.

    mesh_data, mesh_fsdp, mesh_tensor: as for the commands, over all devices.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 16,
        dtype: str | None = None,
        adapter: str | None = None,
        max_length: int | None = None,
        mesh_data: int = 1,
        mesh_fsdp: int = 1,
        mesh_tensor: int | None = None,
        device: Any = None,
        max_batch_size: Any = None,
    ):
        super().__init__()
        split = jax.device_count() > 1
        mesh = make_mesh(mesh_data, mesh_fsdp, mesh_tensor) if split else None
        self._params = load(pretrained, mesh, dtype=dtype, adapter=adapter)
        self._tokens = text_tokenizer(self._params)
        self._name = pretrained
        self._batch = 16 if batch_size == "auto" else int(batch_size)
        self.max_length = max_length or self._params.config.max_length

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        return self._tokens.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: lm-eval's own models take the same."""
        names = (self._tokens.names.get(name, "") for name in ("bos_token", "eos_token"))
        known = (self._tokens.specials[name] for name in names if name in self._tokens.specials)
        return next(known, self.eot_token_id)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Control tokens count: a chat's markup comes as text."""
        return self._tokens.encode(string, specials=True)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[Any]:
        found = likelihoods(self._params, [self._text(*pair) for _, *pair in requests], self._batch)
        made = [(one.total, one.greedy) for one in found]
        for (names, *_), result in zip(requests, made, strict=True):
            if names is not None:
                self.cache_hook.add_partial("loglikelihood", names, result)
        return made

    def _text(self, context: list[int], continuation: list[int]) -> Text:
        """The last tokens that fit the window, as lm-eval's own models keep them."""
        kept = max(1, self.max_length + 1 - len(continuation))
        return Text(context[-kept:], continuation[-self.max_length :])

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        texts, counts = [], []
        for (string,) in (request.args for request in requests):
            windows = utils.get_rolling_token_windows(
                self.tok_encode(string), self.prefix_token_id, self.max_length, context_len=1
            )
            cut = [utils.make_disjoint_window(window) for window in windows]
            texts += [Text(context, continuation) for context, continuation in cut]
            counts.append(len(cut))
        totals = iter(one.total for one in likelihoods(self._params, texts, self._batch))
        return [sum(next(totals) for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        asked = [self._ask(*request.args) for request in requests]
        texts = [""] * len(asked)
        for index, answer in answers(self._params, asked, self._batch):
            texts[index] = answer.text
            self.cache_hook.add_partial("generate_until", requests[index].args, answer.text)
        return texts

    def _ask(self, context: str, how: dict[str, Any]) -> Asked:
        how = dict(normalize_gen_kwargs(how, _MOST_NEW))
        until, most = how.pop("until"), how.pop("max_gen_toks")
        usual = defaults_of(self._params)
        own = usual.sampling  # where a task says nothing, as in lm-eval's `hf`
        sampled, temperature = how.pop("do_sample"), how.pop("temperature", own.temperature)
        top_p, top_k = float(how.pop("top_p", own.top_p)), int(how.pop("top_k", own.top_k))
        penalty = float(how.pop("repetition_penalty", own.repetition_penalty))
        if how.pop("num_beams", 1) != 1:
            raise ValueError("a task asks for several beams; qwen_jax follows one")
        if how:
            raise ValueError(f"a task asks for {sorted(how)}, which qwen_jax does not have")
        if (room := self.max_length - most) < 1:
            raise ValueError(
                f"a task asks for {most} new tokens, and max_length is {self.max_length}; "
                "no prompt fits before them"
            )
        sampling = Sampling(
            temperature=float(temperature) if sampled else 0.0,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=penalty,
            stop=tuple(text for text in until if text),
        )
        ids = self.tok_encode(context)[-room:]
        ends = dict.fromkeys((*usual.eos_ids, (self.eot_token_id,)))
        return Asked(ids, sampling, tuple(ends), most)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Of the checkpoint; an original Qwen's is ChatML."""
        asked: dict[str, Any] = {}
        if not add_generation_prompt:
            asked["add_generation_prompt"] = False
        ids = chatml.render(self._tokens, chat_history, **asked)
        return self._tokens.decode(ids)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """For lm-eval's record; "" where ChatML is built in code."""
        return (self._tokens.chat_template or "") if chat_template else None


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
