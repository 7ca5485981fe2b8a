import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import convert
from qwen_jax import load
from qwen_jax.decoding import decode
from qwen_jax.evaluate import lengths
from qwen_jax.evaluate.lengths import draw, needles, perplexities, switched
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh
from tests.conftest import Golden

LENGTHS = [8, 32, 70]  # trained on 32 tokens


@pytest.fixture(scope="module")
def load_golden(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def load_golden(name: str) -> Qwen:
        folder = tmp_path_factory.mktemp("native") / "model"
        convert.to_native(golden(name), folder)
        return load(folder, make_mesh(devices=jax.devices()[:1]), dtype="float32")

    return load_golden


def reference(params: Qwen, documents: list[list[int]], length: int) -> float:
    losses = []
    for ids in documents:
        scores = decode.score(params, np.asarray([ids[: length - 1]], np.int32))[0]
        found = np.asarray(jax.nn.log_softmax(scores, axis=-1))
        losses.append(-found[np.arange(length - 1), ids[1:length]])
    return float(np.exp(np.mean(losses)))


def test_perplexity_with_ntk_and_logn_each_on_and_off(load_golden: Any) -> None:
    documents = np.random.default_rng(0).integers(0, 256, (2, 80)).tolist()
    both = load_golden("v1/longctx")
    for ntk, logn, name in ((True, False, "v1/ntk_only"), (False, True, "v1/logn_only")):
        one = load_golden(name)
        found = perplexities(switched(both, ntk, logn), documents, LENGTHS)
        assert found == pytest.approx({n: reference(one, documents, n) for n in LENGTHS}, rel=1e-4)
    plain = perplexities(switched(both, False, False), documents, LENGTHS)
    every = perplexities(switched(both, True, True), documents, LENGTHS)
    assert every == perplexities(both, documents, LENGTHS)
    assert [every[n] == plain[n] for n in LENGTHS] == [True, True, False]


def test_what_has_no_length(load_golden: Any) -> None:
    params = load_golden("v1/base")
    with pytest.raises(ValueError, match="neither dynamic NTK nor log-n"):
        switched(params, True, True)
    with pytest.raises(ValueError, match="a length of 9, wanted 2 to 8"):
        perplexities(params, [[1] * 8, [1] * 10], [4, 9])


HAYSTACK = "The grass is green. The sky is blue. The sun is yellow. Here we go. " * 40


def test_needles_stand_where_they_should(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    params = load("demo", make_mesh(devices=jax.devices()[:1]), dtype="float32")
    assert params.assets is not None
    tokenizer, asked = params.assets.tokenizer, []

    def read(params: Any, prompts: Any, slots: int) -> Any:
        """One that finds what stands in the first half of the text."""
        for index, one in reversed(list(enumerate(prompts))):
            text = tokenizer.decode(one.ids)
            asked.append((len(one.ids), text))
            found = re.search(r"The secret number is (\d{7})\. ", text[: len(text) // 2])
            answer = f"It is {int(found[1]):,}." if found else "12"
            yield index, dataclasses.make_dataclass("Answer", ["text"])(answer)

    monkeypatch.setattr(lengths, "answers", read)
    grid = needles(params, HAYSTACK, [200, 400], [0, 25, 75, 100])
    assert grid == {n: {0: True, 25: True, 75: False, 100: False} for n in (200, 400)}
    for (size, text), wanted in zip(asked, 4 * [400] + 4 * [200], strict=True):
        assert abs(size - wanted) < 40
        assert re.search(r"(\. |user\n) ?The secret number is", text)
    del grid[400][25]  # where it did not look
    draw(grid, "demo", tmp_path / "needles.png")
    assert (tmp_path / "needles.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="is no place for"):
        needles(params, "Short.", [200], [0])


def test_a_needle_is_asked_for(load_golden: Any) -> None:
    params = load("demo", make_mesh(devices=jax.devices()[:1]), dtype="float32")
    assert needles(params, HAYSTACK, [200], [50.0], slots=2).keys() == {200}
