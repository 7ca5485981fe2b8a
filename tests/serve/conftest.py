"""Servers over tiny models, in this process: all of them share the programs compiled once."""

import copy
import dataclasses
import functools
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jax
import openai
import pytest

from qwen_jax.config import Config
from qwen_jax.nn.model import Qwen, init
from qwen_jax.text.tokenizer import Tokenizer
from serve import loading
from serve.http.keys import Keys
from serve.server import Server, bind
from serve.service import Model, Service
from serve.settings import ServeConfig
from tests.patience import PATIENCE, until
from tests.qwen_jax.conftest import small, small_folder  # noqa: F401
from tests.qwen_jax.memorised_model import NETWORK, with_assets
from tests.serve.page.script import Script

# without drafts, which take twice as long to compile
SETTINGS = ServeConfig(port=0, slots=8, max_length=128, chunk=64, step_tokens=4, draft_tokens=0)
CHATML = {
    "chat_format": "chatml",
    "max_new_tokens": 24,
    "max_window_size": 100,
    "do_sample": True,
    "top_k": 0,
}


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    service: Service
    server: Server
    url: str
    clients: list[Any] = dataclasses.field(default_factory=list)

    @property
    def model(self) -> Model:
        assert self.service.model is not None
        return self.service.model

    @property
    def script(self) -> Script:
        """What plays the device of a `scripted` server."""
        device = self.model.engine._device
        assert isinstance(device, Script)
        return device

    def client(self, key: str = "none") -> Any:
        """OpenAI's; its own types would have dictionaries by classes of theirs."""
        url = f"{self.url}/v1"
        self.clients.append(
            openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE)
        )
        return self.clients[-1]

    @functools.cached_property
    def http(self) -> httpx.Client:
        """For many requests: its connections stay."""
        self.clients.append(httpx.Client(base_url=self.url, timeout=PATIENCE))
        return self.clients[-1]

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        (value,) = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(value)

    def settle(self) -> None:
        """Wait until every slot is free."""
        names = "qwen_requests_running", "qwen_requests_waiting"
        until(lambda: not any(map(self.metric, names)), "slots are still taken")


Serve = Callable[..., AbstractContextManager[Running]]  # the fixtures that start one


@pytest.fixture(scope="session")
def babbler(small: Tokenizer) -> Qwen:  # noqa: F811
    """Random weights, wild enough that greedy answers differ and wander."""
    config = dataclasses.replace(Config.from_hf(NETWORK), init_std=0.3)
    params = init(config, jax.random.key(3))
    params = dataclasses.replace(params, config=Config.from_hf(NETWORK))
    params = jax.device_put(params, jax.devices()[0])  # bound to it, as `load` does
    return with_assets(params, small, **CHATML)


@contextmanager
def running(
    params: Qwen, device: Any = None, keys: Keys | None = None, **changes: Any
) -> Iterator[Running]:
    """A server while the context lasts; device: default, a runner of params."""
    settings = dataclasses.replace(SETTINGS, **{"name": ("tiny",), **changes})
    listener = bind(settings)
    service = Service(settings)
    loading.start(service, params, device or loading.runner(params, settings))
    server = Server(service, keys or Keys({}))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        made = Running(service, server, f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield made
    finally:
        for client in made.clients:
            client.close()
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serving(babbler: Qwen) -> Serve:
    """serving(setting=…) is a server of random answers while its context lasts."""
    return functools.partial(running, babbler)


@pytest.fixture(scope="session")
def scripted(babbler: Qwen, small: Tokenizer) -> Serve:  # noqa: F811
    """scripted(text, setting=…): a server whose every answer is the text; nothing compiles."""

    def start(text: str = "Hello, world", template: str | None = None, **how: Any) -> Any:
        names = {field.name for field in dataclasses.fields(Script)}
        device = Script.of(small, text, **{name: how.pop(name) for name in names & set(how)})
        params = babbler
        if template is not None:
            tokenizer = copy.copy(small)
            tokenizer.chat_template = template
            params = with_assets(babbler, tokenizer, max_new_tokens=200)
        how = {"slots": device.slots, "chunk": device.chunk} | how
        return running(params, device, **how)

    return start


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A key, and a certificate of 127.0.0.1 that it signed itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, public = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split()
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(public)]
    subprocess.run([*command, *names], check=True, capture_output=True)
    return key, public


@pytest.fixture(scope="session")
def tiny(serving: Serve) -> Iterator[Running]:
    """A server of random answers, with drafts."""
    with serving(draft_tokens=4) as running:
        yield running
