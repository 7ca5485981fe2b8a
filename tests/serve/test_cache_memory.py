"""How much the cache holds: what is asked for, or what memory allows; and how long texts may be."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import httpx
import jax
import pytest

from qwen_jax import memory
from qwen_jax.nn.model import Qwen
from serve import cache_memory, loading
from serve.settings import ServeConfig
from tests.serve.conftest import Serve
from tests.serve.raw_http import fault

SETTINGS = ServeConfig(slots=4, chunk=64)
PAGE, TOKEN = 64, 100  # tokens of a page, bytes of a token


def decide(
    params: Qwen, free: int | None, share: float = 0.5, few: bool = False, **asked: Any
) -> cache_memory.Room:
    config = dataclasses.replace(params.config, max_length=512)
    settings = dataclasses.replace(SETTINGS, **asked)
    return cache_memory.decide(settings, config, PAGE, TOKEN, free, share, few)


def test_few_sizes_of_what_a_computer_has_free(babbler: Qwen) -> None:
    """So that a start finds the programs of the last one, which had a little more or less."""
    pages = lambda free, **asked: decide(babbler, free * TOKEN, few=True, **asked).pages
    assert [pages(free) for free in (128, 300, 1023, 1024, 2047, 10_000)] == [1, 2, 4, 8, 8, 32]
    assert pages(2000, cache_memory="100kB") == 15  # what is asked for is given


@pytest.mark.parametrize(
    ("asked", "tokens", "pages", "length"),
    [
        ({}, None, 32, 512),  # nobody knows: the checkpoint's window for every slot
        ({}, 10_000, 32, 512),
        ({}, 1000, 7, 448),  # half of what is free, which is less than a window
        ({}, 2000, 15, 512),
        ({"cache_memory": "100kB"}, 2000, 15, 512),
        ({"cache_memory": "100kB"}, None, 15, 512),
        ({"cache_memory": "1MB"}, None, 156, 512),  # more than slots use at once: kept for prefixes
        ({"max_length": 300}, None, 20, 300),
        ({"max_length": 300}, 1000, 7, 300),
        ({"max_length": 1000}, 3000, 23, 1000),  # longer than the checkpoint's, as asked
    ],
)
def test_what_fits(babbler: Qwen, asked: Any, tokens: int | None, pages: int, length: int) -> None:
    free = None if tokens is None else tokens * TOKEN
    room = decide(babbler, free, **asked)
    assert (room.pages, room.length) == (pages, length)


@pytest.mark.parametrize(
    ("asked", "free", "said"),
    [
        ({"cache_memory": "2MiB"}, 10**6, r"--cache-memory 2MiB does not fit, 1 MB are free"),
        ({"cache_memory": "6kB"}, None, r"room for 0 tokens, wanted 64 or more, which take 6.4 kB"),
        ({}, 6000, r"room for 0 tokens, wanted 64 or more.* more --cache-memory, or a shorter"),
        ({"max_length": 300}, 50_000, r"--max-length 300 does not fit: .* room for 192 tokens"),
    ],
)
def test_what_cannot_fit(babbler: Qwen, asked: Any, free: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decide(babbler, free, **asked)


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("2GiB", 2 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("700M", 700_000_000),
        ("700Mi", 700 * 2**20),
        ("64kB", 64_000),
        ("4096", 4096),
        ("lots", None),
        ("2GiBs", None),
        ("-1GB", None),
        ("", None),
    ],
)
def test_sizes(written: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(ValueError, match=r"cache_memory is .* wanted a size such as 2GiB"):
            ServeConfig(cache_memory=written)
    else:
        assert ServeConfig(cache_memory=written).cache_bytes == size


def test_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda devices: (10**8, "cpu"))
    loading.check(ServeConfig())
    loading.check(ServeConfig(cache_memory="90MB"))
    with pytest.raises(ValueError, match="--cache-memory 1GB does not fit"):
        loading.check(ServeConfig(cache_memory="1GB"))
    with pytest.raises(ValueError, match="--max-length 999999 does not fit"):
        loading.check(ServeConfig(max_length=999_999))


@pytest.mark.parametrize("cache_dtype", [None, "int8"])
def test_bytes_are_those_of_the_cache(babbler: Qwen, cache_dtype: Any) -> None:
    """As the runner makes it."""
    settings = dataclasses.replace(SETTINGS, cache_memory="300kB", cache_dtype=cache_dtype)
    runner = loading.runner(babbler, settings)
    held = sum(memory.by_dtype(jax.tree.leaves(runner._state.cache)).values())
    token = cache_memory.bytes_of_token(babbler, settings)
    assert token * runner.pages * runner.page == held
    assert 300_000 - token * runner.page < held <= 300_000


def test_memory_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine, and of a container that may have less."""
    machine, platform = memory.free(jax.devices())
    assert platform == "cpu"
    assert 10**8 < (machine or 0) < 10**14
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    group = ((str(tmp_path), "memory.max", "memory.current"),)
    monkeypatch.setattr(memory, "_GROUPS", group)
    assert memory.free(jax.devices())[0] == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert (memory.free(jax.devices())[0] or 0) > 10**8


def test_what_it_took_and_why(
    babbler: Qwen,
    scripted: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the log, at /v1/models, and in the error for what is longer."""
    caplog.set_level(logging.INFO)
    settings = dataclasses.replace(SETTINGS, slots=2)
    token = cache_memory.bytes_of_token(babbler, settings)
    monkeypatch.setattr(memory, "free", lambda devices: (300 * token, "cpu"))
    assert loading.runner(babbler, settings).length == 128
    with scripted(slots=2, length=128, page=64, pages=2, max_length=None) as running:
        (model,) = httpx.get(running.url + "/v1/models").json()["data"]
        ask = {"model": "tiny", "prompt": [5] * 128}
        error = fault(httpx.post(running.url + "/v1/completions", json=ask), 400)
    window = babbler.config.max_length
    why = f"all that the cache holds, of the checkpoint's window of {window}"
    assert (model["max_model_len"], model["max_model_len_reason"]) == (128, why)
    assert (model["cache_tokens"], model["cache_tokens_reason"]) == (128, "what memory allows")
    assert "a cache of 128 tokens: what memory allows" in caplog.text
    assert f"2 slots, texts of at most 128 tokens: {why}" in caplog.text
    assert "128 tokens" in error["message"]
    wanted = f"more --cache-memory or --max-length (the checkpoint's is {window})"
    assert wanted in error["message"]
    assert "again" not in error["message"]
