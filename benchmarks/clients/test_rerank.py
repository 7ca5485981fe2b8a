"""Clients that rank documents, of a tiny random network with Qwen's own vocabulary."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import jax
import litellm
import pytest

import convert
import qwen_jax
from benchmarks.clients.conftest import KEY
from benchmarks.support.server import Server, started
from qwen_jax.nn.model import init

ASK: Any = {"query": "What is the capital of China?", "documents": ["Beijing is.", "Gravity is."]}
CONFIG: Any = {
    "model_type": "qwen",
    "vocab_size": 151936,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "intermediate_size": 64,
    "seq_length": 1024,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "use_dynamic_ntk": False,
    "use_logn_attn": False,
}


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The vocabulary is that of the dashscope package; yes and no are tokens of it."""
    spec = importlib.util.find_spec("dashscope")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = tmp_path_factory.mktemp("ranker")
    params = init(qwen_jax.Config.from_hf(CONFIG), jax.random.key(0))
    qwen_jax.save(params, folder / "bare")
    source = convert.to_hf(folder / "bare", folder / "hf")
    shutil.copy(Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken", source)
    made = convert.to_native(source, folder / "ranker")
    with started("--model", str(made), "--task", "rerank", "--slots", "4", key=KEY) as server:
        yield server
        metrics = server.settled()
        assert metrics["qwen_compilations"] == metrics["qwen_engine_failures_total"] == 0


def test_cohere(ranker: Server) -> None:
    best = cohere.ClientV2(KEY, base_url=ranker.url).rerank(model="ranker", top_n=1, **ASK)
    both = cohere.Client(KEY, base_url=ranker.url).rerank(return_documents=True, **ASK)
    (first,) = best.results
    assert sorted(one.index for one in both.results) == [0, 1]
    assert (both.results[0].index, both.results[0].relevance_score) == (
        first.index,
        first.relevance_score,
    )
    told: Any = both.results[0].document
    assert told.text == ASK["documents"][first.index]


def test_litellm(ranker: Server) -> None:
    made: Any = litellm.rerank(
        model="cohere/ranker", api_base=ranker.url, api_key=KEY, return_documents=True, **ASK
    )
    assert len(made.results) == 2
