"""Adapters by their names: requests for several of them share every step."""

import concurrent.futures
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import pytest

import qwen_jax
from qwen_jax import Sampling, load
from qwen_jax.adapters import attach, bank, peft
from qwen_jax.adapters.peft_config import FILE, LoraConfig
from qwen_jax.nn.lora import Deltas, fuse
from qwen_jax.nn.model import Qwen
from qwen_jax.storage.safetensors_file import write_header
from serve import loading
from serve.adapters import Adapters
from serve.engine.request import Request
from serve.http.keys import Keys
from serve.settings import ServeConfig
from tests.adapters import random_adapter
from tests.assets import tokenizer_of
from tests.serve.conftest import Running, Serve, running

TEXT = "/v1/completions"
NAMES = ("fox", "dog")
LATER = ("cat", "owl")  # while the server runs
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def folders(babbler: Qwen, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of the babbler, as PEFT writes them, in one folder."""
    made, parent = {}, tmp_path_factory.mktemp("adapters")
    for number, name in enumerate((*NAMES, *LATER)):
        config = LoraConfig(2 + number % 2, 8.0, ("q_proj", "down_proj")[: number % 2 + 1])
        blank = attach.fresh(babbler, config, jax.random.key(number))
        shapes = {f"{module}.weight": b @ a for module, (a, b) in blank.deltas.items()}
        made[name] = parent / name
        peft.write(random_adapter(shapes, config, number), made[name])
    return made


@pytest.fixture(scope="module")
def server(babbler: Qwen, folders: dict[str, Path]) -> Iterator[Running]:
    """It begins with two, and has room for one more of rank 3."""
    how: dict[str, Any] = {
        "adapter": tuple(f"{name}={folders[name]}" for name in NAMES),
        "adapter_folder": (folders["fox"].parent,),
        "admin": ("*",),
    }
    with running(bank.with_room(babbler, 8, 3), **how) as made:
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
    assert several.scales.tolist() == [[0] * 4, [4, 4, 0, 0], [0, 0, 4, 4]]
    roomy: Any = loading.parameters(
        ServeConfig(adapter=named, adapter_folder=(tmp_path,), admin=("*",), max_adapters=3)
    )
    assert {d.scales.shape for d in roomy.blocks[0].mlp.down.deltas} == {(4, 64)}


def change(server: Running, path: str, name: str, folder: Any = None, **how: Any) -> httpx.Response:
    body = {"lora_name": name, **({"lora_path": str(folder)} if folder else {}), **how}
    return httpx.post(server.url + path, json=body, timeout=60)


def names(server: Running) -> list[str]:
    return [one["id"] for one in httpx.get(f"{server.url}/v1/models").json()["data"]]


def test_one_comes_and_goes(
    server: Running, folders: dict[str, Path], alone: Callable[..., Any]
) -> None:
    """It answers as in a server that was started with it, and so does the next of its number."""
    prompt = [*range(5, 100)]
    (fox,) = alone("fox", [prompt])
    wanted = {name: alone(name, [prompt])[0] for name in LATER}
    compiled = server.metric("qwen_compilations")
    for name in LATER:
        assert said(server, "fox", prompt) == fox
        answer = change(server, LOAD, name, folders[name])
        assert (answer.status_code, name in answer.text) == (200, True)
        assert names(server) == ["tiny", *NAMES, name]
        assert said(server, name, prompt) == wanted[name]
        assert said(server, "fox", prompt) == fox
        assert change(server, UNLOAD, name, lora_int_id=7).status_code == 200
        assert names(server) == ["tiny", *NAMES]
        refused = httpx.post(server.url + TEXT, json={"model": name, "prompt": "a"})
        assert refused.status_code == 404
    assert server.metric("qwen_compilations") == compiled


def test_one_replaces_another(
    server: Running, folders: dict[str, Path], alone: Callable[..., Any]
) -> None:
    """By its own name; in the same folder something else may lie by now."""
    prompt, where = [*range(9, 90)], folders["cat"].parent / "pet"
    shutil.copytree(folders["owl"], where)
    assert change(server, LOAD, "pet", "pet").status_code == 200  # by where it lies in the folder
    assert said(server, "pet", prompt) == alone("owl", [prompt])[0]
    taken = change(server, LOAD, "pet", where)
    assert taken.status_code == 400
    assert "'pet' has already been loaded" in taken.json()["error"]["message"]
    shutil.rmtree(where)
    shutil.copytree(folders["cat"], where)
    full = change(server, LOAD, "pet", where, load_inplace=True)
    assert (full.status_code, full.headers["retry-after"]) == (409, "1")
    assert "it has rank 2, and of 8 ranks 0 are free" in full.json()["error"]["message"]
    assert said(server, "pet", prompt) == alone("owl", [prompt])[0]
    assert change(server, UNLOAD, "dog").status_code == 200
    assert change(server, LOAD, "pet", where, load_inplace=True).status_code == 200
    assert said(server, "pet", prompt) == alone("cat", [prompt])[0]
    assert change(server, UNLOAD, "pet").status_code == 200
    assert change(server, LOAD, "dog", folders["dog"]).status_code == 200
    assert names(server) == ["tiny", *NAMES]


def test_an_answer_ends_with_the_adapter_that_it_began_with(
    server: Running, folders: dict[str, Path]
) -> None:
    assert change(server, LOAD, "cat", folders["cat"]).status_code == 200
    ask = {"model": "cat", "prompt": [*range(20)], "max_tokens": 100, "temperature": 0}
    wanted = httpx.post(server.url + TEXT, json=ask, timeout=60).json()["choices"][0]["text"]
    told = ""
    with httpx.stream("POST", server.url + TEXT, json=ask | {"stream": True}, timeout=60) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
        for line in lines:
            if not told:
                info = httpx.get(f"{server.url}/metrics").text
                assert change(server, UNLOAD, "cat").status_code == 200
            told += json.loads(line[6:])["choices"][0]["text"]
    assert told == wanted
    assert 'vllm:lora_requests_info{max_lora="3",' in info
    assert change(server, LOAD, "cat", "owl").status_code == 200  # its place is free again
    assert change(server, UNLOAD, "cat").status_code == 200


def test_places_are_free_when_nobody_follows(babbler: Qwen, folders: dict[str, Path]) -> None:
    placed = dict[int, Any]()
    adapters = Adapters(bank.Bank(bank.with_room(babbler, 9, 2)), placed.__setitem__)
    first, asked = adapters.load(folders["fox"]), Request([1], None, 1, lambda update: None)
    first.followers.add(asked)
    first.retired = True
    assert adapters.make_room() == 1
    assert adapters.load(folders["dog"]).number == 2
    assert not first.gone
    with pytest.raises(bank.Full, match="there are 2 adapters"):
        adapters.load(folders["cat"])
    first.followers.discard(asked)
    assert adapters.make_room() == 0
    assert first.gone
    again = adapters.load(folders["cat"])
    assert again.number == 1
    assert again.edition not in (0, first.edition)
    with pytest.raises(ValueError, match="it has rank 3, and there is room for 2 ranks in all"):
        Adapters(bank.Bank(bank.with_room(babbler, 2, 1)), placed.__setitem__).load(folders["dog"])


def test_what_cannot_be_loaded(server: Running, folders: dict[str, Path], tmp_path: Path) -> None:
    """Each has its reason, and none leaves a trace."""
    inside = folders["fox"].parent
    shutil.copytree(folders["cat"], tmp_path / "outside")
    (inside / "link").symlink_to(tmp_path / "outside")
    shutil.copytree(folders["cat"], inside / "linked")
    (inside / "linked" / FILE).unlink()
    (inside / "linked" / FILE).symlink_to(tmp_path / "outside" / FILE)
    shutil.copytree(folders["cat"], inside / "torn")
    weights = inside / "torn" / peft.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    shapes = {"model.layers.0.self_attn.q_proj.weight": np.zeros((8, 8), np.float32)}
    odd = random_adapter(shapes, LoraConfig(2, 8.0, ("q_proj",)))
    peft.write(odd, inside / "odd")
    (inside / "empty").mkdir()
    shutil.copytree(folders["cat"], inside / "huge")
    write_header(inside / "huge" / peft.WEIGHTS, {"x": (np.dtype(np.float32), (2**30,))}, None)
    before = names(server)
    for path, wanted in [
        (tmp_path / "outside", "there is no folder"),
        ("../outside", "there is no folder"),
        ("link", "there is no folder"),
        ("linked", "there is no folder"),
        ("x" * 4000, "there is no folder"),
        ("nowhere", "there is no folder"),
        ("empty", "is no adapter: it has no adapter_config.json"),
        ("torn", "it is cut off; download it again"),
        ("odd", "does not fit this network"),
        ("huge", "has 4294967296 bytes of tensors, at most"),
    ]:
        answer = change(server, LOAD, "new", path)
        assert answer.status_code == 400, path
        error = answer.json()["error"]
        assert (error["param"], wanted in error["message"]) == ("lora_path", True), error
    for name, wanted in [
        ("tiny", "'tiny' is the model itself"),
        ("fox", "'fox' has already been loaded"),
        ("a,b", "lora_name: String should match pattern"),
    ]:
        answer = change(server, LOAD, name, folders["cat"])
        assert answer.status_code == 400
        assert wanted in answer.json()["error"]["message"]
    for name in ("nobody", "tiny"):
        assert change(server, UNLOAD, name).status_code == 404
    assert names(server) == before


def test_two_at_once(server: Running, folders: dict[str, Path]) -> None:
    """One after the other: the second finds the name taken."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        load = lambda name: change(server, LOAD, "cat", folders[name])
        answers = sorted(one.status_code for one in pool.map(load, LATER))
    assert answers == [200, 400]
    assert change(server, UNLOAD, "cat").status_code == 200


def test_who_may(babbler: Qwen, scripted: Serve, folders: dict[str, Path]) -> None:
    with scripted() as server:
        answer = change(server, LOAD, "cat", "cat")
        assert (answer.status_code, "it has no --adapter-folder" in answer.text) == (403, True)
    keys = Keys({"k" * 16: "ann", "l" * 16: "bob"})
    with pytest.raises(ValueError, match="--admin has eve, who has no key"):
        keys.expect_owners(("ann", "eve", "*"))
    with scripted(keys=keys) as server:
        service, placed = server.service, dict[int, Any]()
        service.settings = dataclasses.replace(
            service.settings,
            api_keys=Path(__file__),
            adapter_folder=(folders["cat"].parent,),
            admin=("ann",),
        )
        service.adapters = Adapters(bank.Bank(bank.with_room(babbler, 5, 2)), placed.__setitem__)
        body = {"lora_name": "cat", "lora_path": "cat"}
        for key, status in (("?" * 16, 401), ("l" * 16, 403), ("k" * 16, 200)):
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.post(server.url + LOAD, json=body, headers=headers).status_code == status
        assert list(service.named) == ["cat"]
