"""How long slots are: the checkpoint's window, what memory allows, or what is asked for."""

import dataclasses
import logging
from pathlib import Path

import httpx
import jax
import pytest

from qwen_jax import memory
from qwen_jax.nn.model import Qwen
from serve import cache_length, loading
from serve.settings import ServeConfig
from tests.serve.conftest import Serve
from tests.serve.raw_http import fault

SETTINGS = ServeConfig(slots=4, chunk=64)


@pytest.mark.parametrize(
    ("asked", "fitting", "length"),
    [
        (None, None, 512),  # nobody knows
        (None, 10_000, 512),
        (None, 1024, 512),
        (None, 1023, 448),
        (None, 300, 128),
        (None, 3, 64),  # a chunk is the least
        (300, None, 320),
        (300, 320, 320),
        (1000, 1024, 1024),  # longer than the checkpoint's, as asked
    ],
)
def test_the_longest_that_fits(babbler: Qwen, asked: int, fitting: int, length: int) -> None:
    config = dataclasses.replace(babbler.config, max_length=512)
    settings = dataclasses.replace(SETTINGS, max_length=asked)
    assert cache_length.decide(settings, config, fitting, 0.5) == length


def test_what_is_asked_for_and_cannot_fit(babbler: Qwen) -> None:
    settings = dataclasses.replace(SETTINGS, max_length=300)
    with pytest.raises(ValueError, match=r"--max-length 300 for 4 slots .* room for 319 tokens"):
        cache_length.decide(settings, babbler.config, 319, 0.5)


def test_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda devices: (10**9, "cpu"))
    loading.check(ServeConfig(max_length=8192))  # half a gigabyte
    loading.check(ServeConfig())
    with pytest.raises(ValueError, match=r"--max-length 32768 for 16 slots does not fit"):
        loading.check(ServeConfig(max_length=32768))


def test_bytes_are_those_of_the_cache(babbler: Qwen) -> None:
    """As the runner makes it."""
    runner = loading.runner(babbler, dataclasses.replace(SETTINGS, max_length=128))
    held = sum(memory.by_dtype(jax.tree.leaves(runner._state.cache)).values())
    assert cache_length.bytes_of_token(babbler, SETTINGS) * 128 == held


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
    token = cache_length.bytes_of_token(babbler, settings)
    monkeypatch.setattr(memory, "free", lambda devices: (300 * token, "cpu"))
    assert loading.runner(babbler, settings).length == 128
    with scripted(slots=2, length=128, max_length=None) as running:
        (model,) = httpx.get(running.url + "/v1/models").json()["data"]
        ask = {"model": "tiny", "prompt": [5] * 128}
        error = fault(httpx.post(running.url + "/v1/completions", json=ask), 400)
    assert model["max_model_len"] == 128
    window = babbler.config.max_length
    why = f"what memory allows beside 2 slots, of the checkpoint's window of {window}"
    assert model["max_model_len_reason"] == why
    assert f"2 slots of 128 tokens: {why}" in caplog.text
    assert "128 tokens" in error["message"]
    assert f"a larger --max-length (the checkpoint's is {window})" in error["message"]
    assert "again" not in error["message"]
