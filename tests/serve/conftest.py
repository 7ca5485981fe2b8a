"""Servers over tiny models, in this process: all of them share the programs compiled once."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import jax
import openai
import pytest

from qwen_jax.config import Config
from qwen_jax.model import Qwen, init
from qwen_jax.tokenizer import Tokenizer
from serve import loading
from serve.runner import Runner
from serve.security import Keys
from serve.server import Server, bind
from serve.service import Model, Service
from serve.settings import Settings
from tests.qwen_jax.conftest import small, small_folder  # noqa: F401
from tests.qwen_jax.parrot import NETWORK, parrot, with_assets

SETTINGS = Settings(port=0, slots=8, max_length=128, chunk=32, step_tokens=4)
CHATML = {"chat_format": "chatml", "max_new_tokens": 24, "max_window_size": 100}


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    service: Service
    server: Server
    url: str

    @property
    def model(self) -> Model:
        assert self.service.model is not None
        return self.service.model

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        (value,) = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(value)

    def settle(self) -> None:
        """Wait until every slot is free."""
        deadline = time.monotonic() + 20
        while self.metric("qwen_requests_running") or self.metric("qwen_requests_waiting"):
            assert time.monotonic() < deadline, "slots are still taken"
            time.sleep(0.05)


Starter = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def babbler(small: Tokenizer) -> Qwen:  # noqa: F811
    """Random weights, wild enough that greedy answers differ and wander."""
    config = dataclasses.replace(Config.from_hf(NETWORK), init_std=0.3)
    params = init(config, jax.random.key(3))
    params = dataclasses.replace(params, config=Config.from_hf(NETWORK))
    return with_assets(params, small, **CHATML)


@pytest.fixture(scope="session")
def serving(babbler: Qwen) -> Starter:
    """serving(params, setting=…) is a server while its context lasts."""

    @contextmanager
    def start(params: Qwen | None = None, keys: Keys | None = None, **changes: Any):
        settings = dataclasses.replace(SETTINGS, name="tiny", **changes)
        listener = bind(settings)
        service = Service(settings)
        params = babbler if params is None else params
        loading.start(service, params, loading.runner(params, settings))
        server = Server(service, keys or Keys({}))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield Running(service, server, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()

    return start


@pytest.fixture(scope="session")
def tiny(serving: Starter) -> Iterator[Running]:
    """A server of random answers."""
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def said(small: Tokenizer) -> Callable[..., Qwen]:  # noqa: F811
    """A v1 chat model that answers with a text it knows by heart."""

    def know(text: str) -> Qwen:
        return parrot(small, f"assistant\n{text}<|im_end|>", do_sample=False, **CHATML)

    return know


@pytest.fixture
def runner(babbler: Qwen) -> Runner:
    return loading.runner(babbler, SETTINGS)
