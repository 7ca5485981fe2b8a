"""Adapters by their names: requests for several of them share every step."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import pytest

import qwen_jax
from qwen_jax import Sampling, load
from qwen_jax.adapters import attach, peft
from qwen_jax.adapters.peft_config import LoraConfig
from qwen_jax.nn.lora import Deltas, fuse
from qwen_jax.nn.model import Qwen
from serve import loading
from serve.settings import ServeConfig
from tests.adapters import random_adapter
from tests.assets import tokenizer_of
from tests.serve.conftest import Running, running

TEXT = "/v1/completions"
NAMES = ("fox", "dog")


@pytest.fixture(scope="module")
def folders(babbler: Qwen, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of the babbler, as PEFT writes them."""
    made = {}
    for number, name in enumerate(NAMES):
        config = LoraConfig(2 + number, 8.0, ("q_proj", "down_proj")[: number + 1])
        blank = attach.fresh(babbler, config, jax.random.key(number))
        shapes = {f"{module}.weight": b @ a for module, (a, b) in blank.deltas.items()}
        made[name] = tmp_path_factory.mktemp("adapters") / name
        peft.write(random_adapter(shapes, config, number), made[name])
    return made


@pytest.fixture(scope="module")
def server(babbler: Qwen, folders: dict[str, Path]) -> Iterator[Running]:
    params = attach.add_all(babbler, {name: peft.read(made) for name, made in folders.items()})
    named = tuple(f"{name}={folder}" for name, folder in folders.items())
    with running(params, adapter=named) as made:
        yield made


@pytest.fixture(scope="module")
def alone(babbler: Qwen, folders: dict[str, Path]) -> Callable[..., Any]:
    """alone(name, prompts): what a network says that has just this adapter."""

    def answers(name: str, prompts: list[list[int]]) -> list[str]:
        params = babbler
        if name in folders:
            params = fuse(attach.add(babbler, peft.read(folders[name])))
        made = qwen_jax.generate(params, prompts, Sampling(temperature=0), max_new_tokens=12)
        return [tokenizer_of(params).decode(ids) for ids in made]

    return answers


def said(server: Running, model: str, prompt: list[int]) -> str:
    ask = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 1}
    (choice,) = httpx.post(server.url + TEXT, json=ask, timeout=60).json()["choices"]
    return choice["text"]


def test_one_batch_of_several(server: Running, alone: Callable[..., Any]) -> None:
    """Also where prompts begin alike: keys and values are another adapter's."""
    prompts = [[*range(5, 75), last] for last in range(4)]  # one chunk of 64 is the same in all
    names = ("tiny", *NAMES)
    compiled = server.metric("qwen_compilations")
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        asked = {
            name: [pool.submit(said, server, name, prompt) for prompt in prompts] for name in names
        }
    got = {name: [one.result() for one in asked[name]] for name in names}
    assert server.metric("qwen_shared_prompt_tokens") > 0
    assert server.metric("qwen_compilations") == compiled
    assert got == {name: alone(name, prompts) for name in names}
    assert len({tuple(answers) for answers in got.values()}) == 3


def test_they_are_models(server: Running) -> None:
    listed = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [(one["id"], one["parent"]) for one in listed] == [
        ("tiny", None),
        ("fox", "tiny"),
        ("dog", "tiny"),
    ]
    assert httpx.get(f"{server.url}/v1/models/dog").json() == listed[2]
    refused = httpx.post(server.url + TEXT, json={"model": "cat", "prompt": "a"})
    assert refused.status_code == 404
    assert "'tiny', 'fox', 'dog'" in refused.json()["error"]["message"]


def test_loaded_by_their_names(tmp_path: Path) -> None:
    fresh = attach.fresh(load("demo"), LoraConfig(2, 8.0, ("c_attn",)), jax.random.key(0))
    for name in NAMES:
        peft.write(fresh, tmp_path / name)
    named = tuple(f"{name}={tmp_path / name}" for name in NAMES)
    params: Any = loading.parameters(ServeConfig(adapter=named))
    (several,) = params.blocks[0].attn.qkv.deltas
    assert isinstance(several, Deltas)
    assert several.numbers == (1, 2)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("folder", "adapter is 'folder', wanted NAME=FOLDER"),
        ("=folder", "adapter is '=folder', wanted NAME=FOLDER"),
        ("demo=.", "adapter 'demo' has the name of another model"),
        ("x=nowhere", "adapter 'x': there is no folder nowhere"),
    ],
)
def test_names_that_are_wrong(given: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        dataclasses.replace(ServeConfig(), adapter=(given,))
    with pytest.raises(ValueError, match="'x' has the name"):
        ServeConfig(adapter=("x=.", "x=."))
