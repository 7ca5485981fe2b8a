from dataclasses import replace
from typing import Any

import jax
import pytest

from qwen_jax import Sampling, load
from qwen_jax.decoding import completion, prompts
from qwen_jax.decoding.completion import complete
from qwen_jax.decoding.pieces import rows_of
from qwen_jax.evaluate.answering import Asked, answers
from qwen_jax.nn.sharding import make_mesh
from tests.qwen_jax.networks import cache_sizes


def test_free_slots_are_read_together_and_no_answer_feels_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = load("demo", make_mesh(devices=jax.devices()[:1]), dtype="float32")
    params = jax.device_put(loaded, jax.devices()[0])  # bound to it, as what is loaded without mesh
    ids = [[7 * n + at for at in range(1, 4 + 3 * n)] for n in range(9)]
    most = [2, 3, 4, 5, 6, 7, 8, 9, 1]
    greedy = Sampling(temperature=0.0)
    asked = [Asked(one, greedy, (), count) for one, count in zip(ids, most, strict=True)]
    whole = complete(params, ids, replace(greedy, ignore_eos=True), max_new_tokens=9)
    wanted = [answer.tokens[:count] for answer, count in zip(whole, most, strict=True)]
    reads: list[int] = []  # rows
    together: list[int] = []
    prefill = prompts.prefill

    def noted(weights: Any, state: Any, pieces: Any, **how: Any) -> Any:
        reads.append(sum(rows_of(len(piece.tokens), how["tile"]) for piece in pieces))
        together.append(len(pieces))
        return prefill(weights, state, pieces, **how)

    monkeypatch.setattr(completion, "prefill", noted)
    before = cache_sizes(prompts._prefill)
    found = dict(answers(params, asked, slots=4))
    assert [found[number].tokens for number in range(9)] == wanted
    assert together == [4, 4, 1]
    after = cache_sizes(prompts._prefill)
    made = [now - then for now, then in zip(after, before, strict=True)]
    assert max(made) <= len(set(reads))  # nothing is compiled twice
