"""Programs that are kept: the next process finds them, and never one that is not its own."""

import json
import logging
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable

from qwen_jax.config import Config
from qwen_jax.decoding import aot, decode, executables, flat_params, prompts
from qwen_jax.decoding.completion import complete
from qwen_jax.decoding.state import Output
from qwen_jax.files import kept_code
from qwen_jax.nn.cpu import layers
from qwen_jax.nn.sharding import make_mesh, shardings
from tests.convert.small import QWEN2, random_params

EIGHT_HEADS = QWEN2 | {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 64}
DEVICES = jax.devices()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder."""
    monkeypatch.setenv(executables.FOLDER, str(tmp_path / "programs"))
    return tmp_path / "programs"


def twice(x: Any) -> tuple[Any, list[Any]]:
    return x * 2, [Output(x, x, None, x, x)]  # type: ignore[arg-type]


def get(name: str = "twice", what: Any = "this", device: Any = DEVICES[0]) -> bool:
    """Ask for a program and run it; whether it had to be made."""
    made: list[bool] = []
    x = jax.device_put(np.arange(4.0, dtype=np.float32), device)

    def make() -> Any:
        made.append(True)
        return jax.jit(twice).trace(x).lower()

    program = executables.get(name, what, make, ((x,), {}), [device])
    value, (output,) = program(x)
    np.testing.assert_array_equal(value, 2 * x)
    assert isinstance(output, Output)
    assert output.top_tokens is None
    return bool(made)


def test_a_program_is_made_once(place: Path) -> None:
    assert get()
    assert not get()
    assert len([*place.iterdir()]) == 1
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("change", [{"name": "thrice"}, {"what": "that"}, {"device": DEVICES[1]}])
def test_what_a_caller_tells_is_a_key(place: Path, change: dict[str, Any]) -> None:
    assert get()
    assert get(**change)
    assert not get()


@pytest.mark.parametrize(
    "key", ["code", "jax", "jaxlib", "flax", "python", "processor", "platform", "count"]
)
def test_the_surroundings_are_keys(place: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    assert get()
    executables._surroundings.cache_clear()
    version = metadata.version
    client = jax.devices()[0].client
    other = {
        "code": (executables, "_code", lambda package: "other"),
        "python": (sys, "version", "3.99"),
        "processor": (executables, "_processor", lambda: ["flags: none"]),
        "platform": (executables, "_backend", lambda: ["cpu", "9.9", 8]),
        "count": (executables, "_backend", lambda: [client.platform, client.platform_version, 3]),
    }
    newer = lambda name: "99" if name == key else version(name)
    with monkeypatch.context() as patch:
        patch.setattr(*other.get(key, (metadata, "version", newer)))
        assert get()
    executables._surroundings.cache_clear()
    assert not get()


def test_code_is_hashed_file_by_file(tmp_path: Path) -> None:
    for room in ("nn", "decoding"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "x.py").write_text("x = 1")
    (tmp_path / "config.py").write_text("y = 1")
    before = executables._code(tmp_path)
    for file in sorted(tmp_path.rglob("*.py")):
        text = file.read_text()
        file.write_text(text.replace("1", "2"))
        assert executables._code(tmp_path) != before
        file.write_text(text)
    assert executables._code(tmp_path) == before


def test_settings_and_flags_are_keys(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get()
    with jax.default_matmul_precision("highest"):
        assert get()
    for flag in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE"):
        with monkeypatch.context() as patch:
            patch.setenv(flag, "--other")
            assert get()
    with monkeypatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
        assert not get()


# --- trust --------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["folder", "file", "owner"])
def test_what_others_may_write_is_not_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    assert get()
    (file,) = place.iterdir()
    if mode == "folder":
        place.chmod(0o777)
    elif mode == "file":
        file.chmod(0o620)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(serialize_executable, "deserialize_and_load", None)
    with caplog.at_level(logging.WARNING):
        assert get()
    assert "NoneType" not in caplog.text
    assert "belongs to somebody else, or others may write to it" in caplog.text


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "head", "tree", "rubbish"])
def test_what_is_damaged_is_made_again(place: Path, damage: str) -> None:
    assert get()
    (file,) = place.iterdir()
    content = bytearray(file.read_bytes())
    head, _, rest = bytes(content).partition(b"\n")
    told = json.loads(head)
    if damage == "flipped":
        content[-100] ^= 1
    elif damage == "cut":
        del content[-1:]
    elif damage == "empty":
        content = bytearray()
    elif damage == "head":
        content[20] ^= 1
    elif damage == "tree":
        told["note"] = ["os", "system", [], 0]
        content = bytearray(json.dumps(told).encode() + b"\n" + rest)
    else:  # whole, but nothing that can be loaded
        told["hash"] = kept_code.digest(b"rubbish")
        content = bytearray(json.dumps(told).encode() + b"\nrubbish")
    file.write_bytes(content)
    assert get()
    assert not get()


def test_the_oldest_go_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        assert get(name)
    files = {file.name[0]: file for file in place.iterdir()}
    for age, name in enumerate(("c", "a", "b")):
        os.utime(files[name], (1e9 - age, 1e9 - age))
    assert not get("b")  # which makes it the newest
    size = files["a"].stat().st_size
    monkeypatch.setattr(kept_code, "LIMIT", int(3.5 * size))
    assert get("d")
    assert {file.name[0] for file in place.iterdir()} == {"b", "c", "d"}


def test_a_folder_that_cannot_be_written_costs_no_answer(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place.write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert get()
    assert "is not kept" in caplog.text


# --- the decode functions -----------------------------------------------------------------------
@pytest.fixture
def compiled() -> Any:
    """Counts what is compiled."""
    names: list[Any] = []

    def note(event: str, duration_secs: float, **details: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were another process."""
    for program in (prompts._prefill, decode._step):
        monkeypatch.setattr(program, "_made", {})


@pytest.mark.parametrize("sizes", [None, {"tensor": 4, "fsdp": 2}])
def test_the_next_process_compiles_no_program(
    place: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch, sizes: Any
) -> None:
    params = random_params(EIGHT_HEADS)
    if sizes is not None:
        mesh = make_mesh(**sizes)
        params = jax.device_put(params, shardings(params.config, mesh))
    ask = lambda: complete(params, [[1, 2, 3]], max_new_tokens=5, seed=1, draft_tokens=2)
    with monkeypatch.context() as patch:
        patch.delenv(executables.FOLDER)
        wanted = ask()
    forget(monkeypatch)
    assert ask() == wanted
    names = {file.name.split("-")[0] for file in place.iterdir()}
    assert names == {"step", "prefill"}
    forget(monkeypatch)
    compiled.clear()
    assert ask() == wanted
    assert compiled == []


def test_a_program_is_prepared_from_shapes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is the one that the call asks for."""
    forget(monkeypatch)
    config = Config.from_hf(EIGHT_HEADS)
    shapes = aot.params(config, jnp.float32, jax.devices()[0])
    aot.prepare(shapes, 1, 64, jnp.float32, prompt=16, count=8)
    params = jax.device_put(random_params(EIGHT_HEADS), jax.devices()[0])
    (answer,) = complete(params, [[1, 2, 3]], max_new_tokens=5, seed=1, draft_tokens=0)
    assert answer.tokens
    assert len([*place.iterdir()]) == 2


def test_whose_products_it_calls_is_a_key(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = flat_params.flatten(jax.device_put(random_params(EIGHT_HEADS), jax.devices()[0]))
    x = jnp.ones((1, 2, 64))

    def ask() -> Any:
        return flat_params.Program(lambda weights, x: weights.model().blocks[0].mlp(x))(weights, x)

    ours = ask()
    assert len([*place.iterdir()]) == 1
    monkeypatch.setattr(flat_params, "available", lambda: False)
    monkeypatch.setattr(layers, "available", lambda: False)
    np.testing.assert_allclose(ask(), ours, rtol=1e-4, atol=1e-5)
    assert len([*place.iterdir()]) == 2
