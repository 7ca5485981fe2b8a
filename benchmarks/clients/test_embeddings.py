"""Clients that ask for vectors, of a server of the bundled model that embeds."""

from collections.abc import Iterator
from typing import Any

import litellm
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from langchain_openai import OpenAIEmbeddings

import qwen_jax
from benchmarks.clients.conftest import KEY
from benchmarks.support.server import Server, started

TEXTS = ["The quick brown fox", "你好"]


@pytest.fixture(scope="module")
def embedder() -> Iterator[Server]:
    with started("--model", "demo", "--task", "embed", "--slots", "4", key=KEY) as server:
        yield server
        metrics = server.settled()
        assert metrics["qwen_compilations"] == metrics["qwen_engine_failures_total"] == 0


@pytest.fixture(scope="module")
def wanted() -> Any:
    return qwen_jax.embed(qwen_jax.load("demo"), TEXTS)


def near(got: Any, wanted: Any) -> bool:
    """As near as two ways of cutting texts are in the model's bfloat16."""
    return bool(np.abs(np.asarray(got) - wanted).max() < 0.02)


def test_openai(embedder: Server, wanted: Any) -> None:
    how: Any = {"base_url": f"{embedder.url}/v1", "api_key": KEY, "max_retries": 0}
    form: Any
    with openai.OpenAI(**how) as client:
        for form in ({}, {"encoding_format": "float"}):  # by itself it asks for base64
            made = client.embeddings.create(model="demo", input=TEXTS, **form)
            assert near([one.embedding for one in made.data], wanted)
        cut = client.embeddings.create(model="demo", input=TEXTS[0], dimensions=8)
        assert np.linalg.norm(cut.data[0].embedding) == pytest.approx(1, abs=1e-3)
        with pytest.raises(openai.BadRequestError, match="makes vectors of texts"):
            client.completions.create(model="demo", prompt="a")


def test_langchain(embedder: Server, wanted: Any) -> None:
    how: Any = {"base_url": f"{embedder.url}/v1", "api_key": KEY, "model": "demo"}
    client = OpenAIEmbeddings(check_embedding_ctx_length=False, **how)
    assert near(client.embed_documents(TEXTS), wanted)
    assert near(client.embed_query(TEXTS[0]), wanted[0])


def test_litellm(embedder: Server, wanted: Any) -> None:
    how: Any = {"api_base": f"{embedder.url}/v1", "api_key": KEY, "model": "openai/demo"}
    made: Any = litellm.embedding(input=TEXTS, **how)
    assert near([one["embedding"] for one in made.data], wanted)


def test_hugging_face(embedder: Server, wanted: Any) -> None:
    client = InferenceClient(embedder.url, token=KEY)
    assert near(client.feature_extraction(TEXTS[0]), wanted[:1])
    assert client.feature_extraction(TEXTS[0], dimensions=8).shape == (1, 8)
