"""What a server cannot be started with."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from serve import loading
from serve.settings import ServeConfig


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


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({"adapter_folder": (Path("nowhere"),)}, "there is no folder nowhere"),
        ({"adapter_folder": (Path(),)}, "adapter_folder needs --admin"),
        ({"admin": ("*",)}, r"admin is \('\*',\), which needs --adapter-folder"),
        ({"adapter_folder": (Path(),), "admin": ("ann",)}, "which needs --api-keys"),
    ],
)
def test_settings_that_are_wrong(how: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        ServeConfig(**how)


@pytest.mark.parametrize(
    "how", [{"host": "0.0.0.0"}, {"host": ""}, {"cors": ("*",)}, {"allowed_host": ("*",)}]
)
def test_code_is_run_for_this_machine_or_for_keys(how: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run programs on this machine"):
        ServeConfig(run_generated_code=True, **how)
    (tmp_path / "keys").write_text("ann 0123456789abcdef\n")
    ServeConfig(run_generated_code=True, api_keys=tmp_path / "keys", **how)
    for host in ("127.0.0.1", "localhost", "::1", "[::1]"):
        ServeConfig(run_generated_code=True, host=host)


def test_what_shows_before_an_array_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="this vocabulary cannot be asked as Qwen3-Reranker is"):
        loading.check(ServeConfig(task="rerank"))
    with monkeypatch.context() as patch:
        manifest, *rest = loading.check(ServeConfig())
        halves = {name: x.update(dtype=jnp.float16) for name, x in manifest.leaves.items()}
        changed = (dataclasses.replace(manifest, leaves=halves), *rest)
        patch.setattr(loading, "examine", lambda model: changed)
        patch.setattr(jax, "device_count", lambda: 1)
        loading.check(ServeConfig(attention="llvm", dtype="bfloat16"))
        with pytest.raises(ValueError, match=r"attention llvm takes .*float16"):
            loading.check(ServeConfig(attention="llvm"))
    roomy = ServeConfig(adapter_folder=(tmp_path,), admin=("*",))
    loading.check(roomy)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="--adapter-folder is for a server of one process"):
        loading.check(roomy)
