"""Vectors of texts and documents in order, as OpenAI's, Cohere's and other clients ask for them."""

import base64
import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qwen_jax
from qwen_jax.embeddings import end_of, whole_ids
from qwen_jax.nn.model import Qwen
from qwen_jax.storage.pooling_config import Pooling
from qwen_jax.text import relevance
from qwen_jax.text.tokenizer import Tokenizer
from tests.assets import assets_of, read_vocabulary, tokenizer_of
from tests.serve.conftest import Running, running

EMBED = "/v1/embeddings"
TEXTS = ["The quick brown fox", "你好", "", "jumps " * 20, "The quick brown dog"]
QUERY = "Query: "


@pytest.fixture(scope="module")
def embedder(babbler: Qwen) -> Qwen:
    assets = dataclasses.replace(assets_of(babbler), pooling=Pooling(True, {"query": QUERY}))
    return dataclasses.replace(babbler, assets=assets)


@pytest.fixture(scope="module")
def server(embedder: Qwen) -> Iterator[Running]:
    with running(embedder, draft_tokens=4) as made:  # as `tiny`, whose programs it runs
        yield made
        made.settle()


@pytest.fixture(scope="module")
def reranker(babbler: Qwen, small_folder: Path) -> Qwen:
    """In its vocabulary yes and no are tokens."""
    words = read_vocabulary(small_folder)
    ranks = dict(words.ranks)
    for token in (b"no", b"es", b"yes"):
        if token not in ranks:
            ranks[token] = ranks.pop(max(ranks.keys() - {b"es", b"no"}, key=ranks.__getitem__))
    tokenizer = Tokenizer(dataclasses.replace(words, ranks=ranks))
    assets = dataclasses.replace(assets_of(babbler), tokenizer=tokenizer)
    return dataclasses.replace(babbler, assets=assets)


@pytest.fixture(scope="module")
def judge(reranker: Qwen) -> Iterator[Running]:
    with running(reranker, task="rerank", max_length=384) as made:
        yield made


def post(server: Running, path: str, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def vectors(answer: Any) -> np.ndarray:
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


def test_they_are_those_of_the_library(server: Running, embedder: Qwen) -> None:
    answer = post(server, EMBED, model="tiny", input=TEXTS)
    assert {one["object"] for one in answer["data"]} == {"embedding"}
    np.testing.assert_allclose(vectors(answer), qwen_jax.embed(embedder, TEXTS), atol=1e-5)
    counts = [len(whole_ids(tokenizer_of(embedder), text)) for text in TEXTS]
    assert answer["usage"] == {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    ids = [whole_ids(tokenizer_of(embedder), text) for text in TEXTS]
    np.testing.assert_array_equal(vectors(post(server, EMBED, input=ids)), vectors(answer))
    one = vectors(post(server, EMBED, input=ids[0]))
    np.testing.assert_array_equal(one[0], vectors(answer)[0])
    cut = vectors(post(server, EMBED, input=TEXTS[0], dimensions=10))
    wanted = qwen_jax.embed(embedder, TEXTS[:1], dimensions=10)
    np.testing.assert_allclose(cut, wanted, atol=1e-5)


def test_openai_s_client(server: Running) -> None:
    """It asks for base64 by itself, and for many texts at once."""
    many = [f"{text} {number}" for number in range(40) for text in TEXTS]  # more than wait at once
    made = server.client().embeddings.create(model="tiny", input=many)
    assert len(made.data) == 200
    plain = vectors(post(server, EMBED, input=many[:3]))
    np.testing.assert_array_equal(np.array([one.embedding for one in made.data[:3]]), plain)
    packed = post(server, EMBED, input=many[0], encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), plain[0])


def test_many_clients_at_once(server: Running) -> None:
    ask = lambda text: vectors(post(server, EMBED, input=text))[0]
    compiled = server.metric("qwen_compilations")
    alone = [ask(text) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, TEXTS * 4))
    np.testing.assert_array_equal(together, alone * 4)
    assert server.metric("qwen_compilations") == compiled


@pytest.mark.parametrize(
    ("how", "param", "wanted"),
    [
        ({"input": []}, "input", ""),
        ({"input": [1, "a"]}, "input", ""),
        ({"input": [[]]}, "input", ""),
        ({"input": ["a"] * 2049}, "input", ""),
        ({"input": [416]}, "input", "this model has ids up to 415"),
        ({"input": "fox " * 200}, "input", "at most 128 fit"),
        ({"input": [5] * 128}, "input", "at most 128 fit"),
        ({"input": "a", "dimensions": 417}, "dimensions", "this checkpoint has 1 to 416"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", ""),
        ({"input": "a", "instruction": "x"}, "instruction", "this field is not supported"),
    ],
)
def test_what_cannot_be_embedded(server: Running, how: Any, param: str, wanted: str) -> None:
    error = post(server, EMBED, 400, **how)["error"]
    assert error["param"].startswith(param)
    assert wanted in error["message"]


def test_a_long_text_is_cut_where_that_is_asked_for(server: Running, embedder: Qwen) -> None:
    tokenizer = tokenizer_of(embedder)
    long = "fox " * 200
    got = vectors(post(server, EMBED, input=long, truncate_prompt_tokens=9))
    kept = [*tokenizer.encode(long)[:8], *end_of(tokenizer)]
    np.testing.assert_array_equal(got, vectors(post(server, EMBED, input=[kept])))
    post(server, EMBED, input=long, truncate_prompt_tokens=-1)


def test_hugging_face_s_client(server: Running) -> None:
    """Its feature_extraction posts to the address that it was given."""
    wanted = vectors(post(server, EMBED, input=TEXTS[:2]))
    for path in ("/", "/embed"):
        np.testing.assert_array_equal(post(server, path, inputs=TEXTS[:2]), wanted)
    (one,) = post(server, "/", inputs=TEXTS[0], normalize=False)
    assert np.linalg.norm(one) > 1.5
    (named,) = post(server, "/embed", inputs=TEXTS[0], prompt_name="query")
    np.testing.assert_array_equal(named, vectors(post(server, EMBED, input=QUERY + TEXTS[0]))[0])
    refused = post(server, "/embed", 400, inputs="a", prompt_name="other")
    assert refused["error"] == "there is no prompt 'other', this model has 'query'"
    post(server, "/embed", 400, inputs="fox " * 200)
    post(server, "/embed", inputs="fox " * 200, truncate=True)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/rerank"])
def test_it_does_nothing_else(server: Running, tiny: Running, path: str) -> None:
    body: Any = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {}
    body |= {"prompt": "a"} if path == "/v1/completions" else {}
    body |= {"query": "a", "documents": ["b"]} if path == "/v1/rerank" else {}
    error = post(server, path, 400, model="tiny", **body)["error"]
    assert error["message"].startswith("model 'tiny' makes vectors of texts, at /v1/embeddings")
    error = post(tiny, EMBED, 400, input="a")["error"]
    assert error["message"].startswith("model 'tiny' answers, at /v1/chat/completions")


# --- documents in order -------------------------------------------------------------------------
DOCUMENTS = ["fox", "the dog", "3.14159", ""]


def scores(params: Qwen, query: str, instruction: str = relevance.INSTRUCTION) -> list[float]:
    """As Qwen3-Reranker's card computes them."""
    tokenizer, found = tokenizer_of(params), []
    for document in DOCUMENTS:
        text = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        ids = [
            *tokenizer.encode(
                "<|im_start|>system\nJudge whether the Document meets the requirements based on "
                'the Query and the Instruct provided. Note that the answer can only be "yes" or '
                '"no".<|im_end|>\n<|im_start|>user\n',
                specials=True,
            ),
            *tokenizer.encode(text),
            *tokenizer.encode(
                "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", specials=True
            ),
        ]
        both = jnp.array(relevance.answers(tokenizer))
        found.append(float(jax.nn.softmax(qwen_jax.logits(params, [ids])[0, -1, both])[1]))
    return found


def test_documents_are_ranked_as_the_card_says(judge: Running, reranker: Qwen) -> None:
    wanted, other = scores(reranker, "A fox?"), scores(reranker, "A fox?", "Find animals.")
    compiled = judge.metric("qwen_compilations")
    answer = post(judge, "/v1/rerank", model="tiny", query="A fox?", documents=DOCUMENTS)
    order = sorted(range(4), key=lambda index: -wanted[index])
    assert [one["index"] for one in answer["results"]] == order
    got = [one["relevance_score"] for one in answer["results"]]
    np.testing.assert_allclose(got, sorted(wanted, reverse=True), atol=1e-5)
    assert len(set(got)) == 4
    assert [one["document"]["text"] for one in answer["results"]] == [DOCUMENTS[i] for i in order]
    assert judge.metric("qwen_shared_prompt_tokens") > 0
    named = [{"text": text} for text in DOCUMENTS]
    how: Any = {"query": "A fox?", "documents": named, "instruction": "Find animals."}
    best = post(judge, "/rerank", top_n=1, return_documents=False, **how)["results"]
    assert best == [{"index": int(np.argmax(other)), "relevance_score": best[0]["relevance_score"]}]
    assert best[0]["relevance_score"] == pytest.approx(max(other), abs=1e-5)
    assert judge.metric("qwen_compilations") == compiled


def test_a_vocabulary_that_cannot_be_asked(babbler: Qwen) -> None:
    with pytest.raises(ValueError, match="this vocabulary cannot be asked as Qwen3-Reranker is"):
        relevance.answers(tokenizer_of(babbler))


def test_cohere_s_form(judge: Running) -> None:
    body: Any = {"model": "tiny", "query": "A fox?", "documents": DOCUMENTS, "top_n": 2}
    answer = post(judge, "/v2/rerank", max_tokens_per_doc=3, **body)
    assert [set(one) for one in answer["results"]] == [{"index", "relevance_score"}] * 2
    assert answer["meta"]["api_version"] == {"version": "2"}
    assert answer["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize(
    ("how", "param", "wanted"),
    [
        ({"documents": []}, "documents", ""),
        ({"documents": [{"text": 7}]}, "documents", ""),
        ({"documents": [{"title": "a"}]}, "documents", ""),
        ({"documents": ["fox " * 400]}, "documents", "at most 384 fit"),
        ({"documents": ["a"], "top_n": 0}, "top_n", ""),
        ({"documents": ["a"], "rank_fields": ["title"]}, "rank_fields", "not supported"),
        ({"texts": ["fox " * 400]}, "texts", "at most 384 fit"),
        ({"texts": [{"text": "a"}]}, "texts", ""),
        ({"texts": ["a"], "truncation_direction": "left"}, "truncation_direction", ""),
        ({"texts": ["a"], "documents": ["a"]}, "", "wanted either documents or texts"),
        ({"texts": ["a"], "top_n": 1}, "", "top_n goes with documents"),
        ({"documents": ["a"], "raw_scores": True}, "", "raw_scores goes with texts"),
    ],
)
def test_what_cannot_be_ranked(judge: Running, how: Any, param: str, wanted: str) -> None:
    error = post(judge, "/v1/rerank", 400, query="a", **how)["error"]
    assert (error["param"] or "").startswith(param)
    assert wanted in error["message"]


def test_text_embeddings_inference_s_form(judge: Running, reranker: Qwen) -> None:
    wanted = scores(reranker, "A fox?")
    order = sorted(range(4), key=lambda index: -wanted[index])
    answer = post(judge, "/rerank", query="A fox?", texts=DOCUMENTS)
    assert [one["index"] for one in answer] == order
    assert all(one.keys() == {"index", "score"} for one in answer)
    np.testing.assert_allclose([one["score"] for one in answer], sorted(wanted)[::-1], atol=1e-5)
    how: Any = {"query": "A fox?", "texts": [*DOCUMENTS, "fox " * 400], "truncate": True}
    raw = post(judge, "/rerank", raw_scores=True, return_text=True, **how)
    assert all(one["text"] == how["texts"][one["index"]] for one in raw)
    for one in raw:
        if one["index"] < 4:
            odds = np.log(wanted[one["index"]] / (1 - wanted[one["index"]]))
            assert one["score"] == pytest.approx(odds, abs=1e-3)


def test_what_cannot_fit_is_refused_before_any_work(
    judge: Running, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is the last of many."""

    def encode(*_: Any, **__: Any) -> Any:
        raise AssertionError("tokenised")

    long, works = [*["a"] * 2000, "fox " * 2000], []
    monkeypatch.setattr(Tokenizer, "encode", encode)
    for where, path, body in (
        (judge, "/v1/rerank", {"query": "a", "documents": long}),
        (judge, "/rerank", {"query": "a", "texts": long}),
        (judge, "/rerank", {"query": "fox " * 2000, "texts": ["a"]}),
        (server, EMBED, {"input": long}),
        (server, "/embed", {"inputs": long}),
    ):
        works.append(post(where, path, 400, **body)["error"])
    assert all("fit" in str(one) for one in works)
    assert [one["param"] for one in works[:4]] == ["documents", "texts", "query", "input"]
