"""Commands as users type them: one process that drains on SIGTERM, two that share a model."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np

import qwen_jax
from qwen_jax.decoding.completion import complete
from qwen_jax.decoding.logits import SamplingArrays
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.nn.sharding import make_mesh
from serve.engine.multihost import decode, encode
from serve.engine.operations import CopyPage, Piece, Prefill, Release, ScoreChunk, SetPages, Step
from tests.assets import assets_of, tokenizer_of

ROOT = Path(__file__).parents[3]
SMALL = "--model demo --slots 2 --max-length 64 --chunk 64 --step-tokens 2".split()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(*options: int | str) -> Any:
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "serve", *SMALL, *map(str, options)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def ready(url: str, processes: list[Any]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for process in processes:
            assert process.poll() is None, process.stderr.read()
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError


def test_two_processes_one_model() -> None:
    """The same tokens as one device gives; SIGTERM under load lets the answer end; both exit."""
    port, coordinator = free_port(), f"127.0.0.1:{free_port()}"
    url = f"http://127.0.0.1:{port}"
    processes = [
        serve("--port", port, "--coordinator", coordinator, "--processes", 2, "--process", rank)
        for rank in range(2)
    ]
    try:
        ready(url, processes)
        ask = {
            "model": "demo",
            "prompt": "The model",
            "seed": 5,
            "max_tokens": 40,
            "temperature": 0.0,
        }
        answers = [httpx.post(f"{url}/v1/completions", json=ask, timeout=60).json()]
        wanted = {"type": "regex", "pattern": "[a-c]{5}"}
        kept = httpx.post(
            f"{url}/v1/completions", json=ask | {"response_format": wanted}, timeout=60
        )
        assert set(kept.json()["choices"][0]["text"]) <= set("abc")
        whole = []
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=ask | {"stream": True}, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            whole.append(next(lines))
            for process in processes:
                process.send_signal(signal.SIGTERM)
            whole += [line for line in lines if line]
        assert whole[-1] == "data: [DONE]"
        assert [process.wait(60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    text = "".join(
        json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in whole[:-1]
    )
    params = qwen_jax.load("demo", mesh=make_mesh(devices=jax.devices()[:1]))
    ids = tokenizer_of(params).encode("The model", specials=True)
    sampling = dataclasses.replace(assets_of(params).defaults.sampling, temperature=0.0)
    (alone,) = complete(params, [ids], sampling, max_new_tokens=40, seed=5)
    assert text == answers[0]["choices"][0]["text"] == alone.text


def test_operations_survive_the_wire() -> None:
    samplings = SamplingArrays.of(
        Sampling(temperature=0.5, logit_bias={3: 1.5}), ((1, 2),), 2**64 - 1
    )
    mask = b"\1\0\0\377"
    for operation in (
        Release(3),
        SetPages(1, 2, (4, 5)),
        CopyPage(1, 2),
        ScoreChunk(0, [1], [2], 64, 70),
        Step([0], 4),
        Step([0, 3], 1, {0: mask, 3: mask}),
        Prefill([Piece(1, [5, 6], 3, 9, samplings, 7, mask, 2, True, [1, 2, 3])]),
    ):
        back = decode(json.loads(json.dumps(encode(operation))))
        if isinstance(operation, Prefill):
            assert isinstance(back, Prefill)
            pairs = zip(
                jax.tree.leaves(operation.pieces[0].settings),
                jax.tree.leaves(back.pieces[0].settings),
                strict=True,
            )
            for mine, other in pairs:
                np.testing.assert_array_equal(mine, other)
                assert mine.dtype == other.dtype
            operation, back = (
                Prefill([dataclasses.replace(op.pieces[0], settings=None)])
                for op in (operation, back)
            )
        assert repr(operation) == repr(back).replace("[4, 5]", "(4, 5)")


def test_the_port_is_taken_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serve("--port", taken.getsockname()[1])
        _, said = server.communicate(timeout=60)
    assert server.returncode == 1
    *_, last = said.splitlines()  # before it, how far a busy machine is
    assert last.startswith("error: cannot listen on 127.0.0.1")
