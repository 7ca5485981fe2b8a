"""The bundled checkpoint: what tools/make_demo.py begins with, and what came of the training."""

import base64
import hashlib
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import tiktoken
from jax.sharding import Mesh

import convert
import qwen_jax
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import AXES
from tests.reference import random_checkpoint, read_checkpoint
from tools.make_demo import FOLDER, PIECES, README, RECIPE, SPECIALS, random_start, text
from tools.recite import answers, recited

# sha256 of the random weights
START = "764d461c700cdb6c94e218deee65fdc20caf6f7094469763e721519e02521129"
UNSEEN = {  # questions that nobody asks in the conversations, and a word of the answer
    "Hello there": "Hello!",
    "Which Qwen models can I run?": "Qwen1.5",
    "How can I convert a model?": "python -m convert",
    "Can I fine-tune it?": "python -m train",
    "Thank you very much": "welcome",
    "能在 TPU 上运行吗？": "TPU",
    "怎么转换模型？": "python -m convert",
}


pytestmark = pytest.mark.usefixtures("optimised")


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Qwen:
    folder = convert.to_native("demo", tmp_path_factory.mktemp("demo") / "native")
    return qwen_jax.load(folder, Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES))


def test_the_start_is_reproducible(tmp_path: Path) -> None:
    random_start(tmp_path / "start")
    made = {file.name: file.read_bytes() for file in (tmp_path / "start").iterdir()}
    assert hashlib.sha256(made.pop("model.safetensors")).hexdigest() == START
    assert made == {name: (FOLDER / name).read_bytes() for name in made}


def test_files() -> None:
    files = {file.name: file.read_bytes() for file in FOLDER.iterdir()}
    assert sum(map(len, files.values())) < 3_000_000
    assert files["README.md"].decode() == README.format(**RECIPE)


def test_it_recites(params: Qwen) -> None:
    assert recited(params) >= 0.95


def test_it_understands_other_words(params: Qwen) -> None:
    """Greedily and as people ask it: with the sampling of the checkpoint."""
    for sampling in (qwen_jax.Sampling(temperature=0), None):
        got = answers(params, list(UNSEEN), sampling)
        hits = [word in answer for word, answer in zip(UNSEEN.values(), got, strict=True)]
        assert np.mean(hits) >= 0.8, got


def test_vocabulary() -> None:
    lines = (FOLDER / "qwen.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    assert list(ranks.values()) == list(range(len(lines)))
    assert [ranks[bytes([b])] for b in (33, 161, 174, 0, 127, 173)] == [0, 94, 106, 188, 221, 255]

    encoding = tiktoken.Encoding("demo", pat_str=PIECES, mergeable_ranks=ranks, special_tokens={})
    said = text() + "🙂 unseen"
    ids = encoding.encode(said, disallowed_special=())
    assert encoding.decode(ids) == said
    assert len(ids) < len(said.encode()) / 3

    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert generation["eos_token_id"] == generation["pad_token_id"] == len(ranks)
    config, _ = read_checkpoint(FOLDER)
    assert 0 <= config["vocab_size"] - len(ranks) - SPECIALS < 128


def test_tensors() -> None:
    config, tensors = read_checkpoint(FOLDER)
    wanted = random_checkpoint(config, seed=0)
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in wanted.items()}
    assert {v.dtype for v in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
