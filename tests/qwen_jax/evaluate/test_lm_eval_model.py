"""The class that lm-eval runs, by lm-eval's own requests; skipped where there is no lm-eval."""

from typing import Any

import jax
import numpy as np
import pytest

import qwen_jax
from qwen_jax import Sampling
from qwen_jax.decoding import decode
from qwen_jax.decoding.generation_config import Defaults
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh

pytest.importorskip("lm_eval")
WINDOW = 16


@pytest.fixture(scope="module")
def params() -> Qwen:
    return qwen_jax.load("demo", make_mesh(devices=jax.devices()[:1]), dtype="float32")


@pytest.fixture(scope="module")
def model() -> Any:
    from qwen_jax.evaluate.lm_eval_model import QwenLM

    return QwenLM("demo", batch_size="4", dtype="float32", max_length=WINDOW)


def asked(kind: Any, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def log_likelihood(params: Qwen, context: list[int], ids: list[int]) -> float:
    scores = decode.score(params, np.asarray([[*context, *ids]], np.int32))[0]
    places = len(context) - 1 + np.arange(len(ids))
    return float(np.asarray(jax.nn.log_softmax(scores, axis=-1))[places, np.asarray(ids)].sum())


def test_it_is_registered() -> None:
    from lm_eval.api.registry import get_model

    from qwen_jax.evaluate.lm_eval_model import QwenLM

    assert get_model("qwen_jax") is QwenLM


def test_choices(model: Any, params: Qwen) -> None:
    encode = model.tok_encode
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    pairs = [("Who are you?", " I am"), ("", "Hello"), (long * 2, "fifteen")]
    found = model.loglikelihood(asked("loglikelihood", *pairs))
    whole = encode(pairs[2][0] + pairs[2][1])
    count = len(whole) - len(encode(pairs[2][0].rstrip()))  # a blank belongs to what comes
    wanted = [
        log_likelihood(params, encode("Who are you?"), encode(" I am")),
        log_likelihood(params, [model.prefix_token_id], encode("Hello")),
        log_likelihood(params, whole[-WINDOW - 1 : -count], whole[-count:]),
    ]
    np.testing.assert_allclose([total for total, _ in found], wanted, atol=1e-4)


def test_a_long_text_in_windows(model: Any, params: Qwen) -> None:
    text = "The quick brown fox jumps over the lazy dog, and it is not the first time. " * 2
    ids = model.tok_encode(text)
    first, rest = ids[:WINDOW], ids[WINDOW:]
    wanted = log_likelihood(params, [model.prefix_token_id], first)
    while rest:
        now, rest = rest[:WINDOW], rest[WINDOW:]
        before = ids[: len(ids) - len(rest) - len(now)]
        wanted += log_likelihood(params, before[-(WINDOW + 1 - len(now)) :], now)
    (found,) = model.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)))
    assert len(ids) > 2 * WINDOW
    assert found == pytest.approx(wanted, abs=1e-3)


def test_what_it_writes(model: Any, params: Qwen) -> None:
    prompt = "Hello"
    whole = qwen_jax.generate(params, prompt, Sampling(temperature=0.0), max_new_tokens=10)
    stop = whole[3:5]
    how = {"until": [stop], "max_gen_toks": 10, "do_sample": False, "temperature": 0}
    alias = {"until": [], "max_new_tokens": 10, "num_beams": 1}
    found = model.generate_until(asked("generate_until", (prompt, how), (prompt, alias)))
    assert found == [whole[: whole.index(stop)], whole]


def test_the_checkpoint_says_what_a_task_does_not(
    model: Any, params: Qwen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repetition penalty, as transformers' `generate` takes it beneath lm-eval's `hf`."""
    own = Sampling(temperature=0.0, repetition_penalty=5.0)
    monkeypatch.setattr("qwen_jax.evaluate.lm_eval_model.defaults_of", lambda _: Defaults(own))
    how = {"until": [], "max_gen_toks": 10}
    wanted = qwen_jax.generate(params, "Hello", own, max_new_tokens=10)
    plain = qwen_jax.generate(params, "Hello", Sampling(temperature=0.0), max_new_tokens=10)
    assert model.generate_until(asked("generate_until", ("Hello", how))) == [wanted] != [plain]


def test_what_it_cannot_do_is_named(model: Any) -> None:
    for how, message in (
        ({"typical_p": 0.3}, r"asks for \['typical_p'\]"),
        ({"num_beams": 4}, "several beams"),
        ({"max_gen_toks": WINDOW}, "no prompt fits"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate_until(asked("generate_until", ("Hello", how)))


def test_a_chat_as_text(model: Any) -> None:
    text = model.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
