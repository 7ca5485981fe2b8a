import jax
import numpy as np
import pytest

from qwen_jax import load
from qwen_jax.decoding import decode
from qwen_jax.evaluate import scoring
from qwen_jax.evaluate.scoring import Text, choices, likelihoods
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh


@pytest.fixture(scope="module")
def params() -> Qwen:
    return load("demo", make_mesh(devices=jax.devices()[:1]), dtype="float32")


@pytest.fixture(scope="module")
def texts(params: Qwen) -> list[Text]:
    """Some with a long beginning in common, one past the length from which NTK changes keys."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return [int(id) for id in rng.integers(0, params.config.vocab, count)]

    shared = draw(90)
    made = [Text(shared + draw(int(rng.integers(1, 60))), draw(3), 90) for _ in range(5)]
    made += [Text(draw(7), draw(5)), Text(shared + draw(500), draw(9), 90)]
    return made


def reference(params: Qwen, text: Text) -> np.ndarray:
    """Log probabilities of a continuation's tokens from the logits of the whole text."""
    scores = decode.score(params, np.asarray([text.ids], np.int32))[0]
    places = len(text.context) - 1 + np.arange(len(text.continuation))
    return np.asarray(jax.nn.log_softmax(scores, axis=-1))[places, np.asarray(text.continuation)]


def test_likelihoods_are_those_of_whole_texts(params: Qwen, texts: list[Text]) -> None:
    for text, found in zip(texts, likelihoods(params, texts), strict=True):
        np.testing.assert_allclose(found.logprobs, reference(params, text), atol=2e-5)
        assert not found.greedy


def test_the_likeliest_tokens_are_greedy(params: Qwen) -> None:
    prompt = params.assets.tokenizer.encode("Hello") if params.assets else []
    state_free = decode.score(params, np.asarray([prompt], np.int32))
    best = int(state_free[0, -1].argmax())
    assert likelihoods(params, [Text(prompt, [best])])[0].greedy


def test_no_result_depends_on_the_others(params: Qwen, texts: list[Text]) -> None:
    together = likelihoods(params, texts)
    backwards = likelihoods(params, texts[::-1])[::-1]
    for text, one, other in zip(texts, together, backwards, strict=True):
        (alone,) = likelihoods(params, [text])
        assert one.logprobs.tolist() == other.logprobs.tolist() == alone.logprobs.tolist()


def test_many_places_meet_the_head_in_pieces(
    params: Qwen, texts: list[Text], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = likelihoods(params, texts[5:6])[0]
    monkeypatch.setattr(scoring, "PIECE", 16)
    jax.clear_caches()
    cut = likelihoods(params, texts[5:6])[0]
    np.testing.assert_allclose(cut.logprobs, whole.logprobs, atol=1e-6)


def test_choices(params: Qwen, texts: list[Text]) -> None:
    contexts = [text.context for text in texts[:2]]
    found = choices(params, contexts, [5, 9, 5], [90, 90])
    for context, row in zip(contexts, found, strict=True):
        wanted = [reference(params, Text(context, [id]))[0] for id in (5, 9, 5)]
        np.testing.assert_allclose(row, wanted, atol=2e-5)


def test_what_cannot_be_scored(params: Qwen) -> None:
    with pytest.raises(ValueError, match="at least one id"):
        likelihoods(params, [Text([], [1])])
    with pytest.raises(ValueError, match="power of two"):
        choices(params, [[1]], [1], batch=3)
