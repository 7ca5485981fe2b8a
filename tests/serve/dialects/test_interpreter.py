"""Code that an answer runs on its way, at a server that may."""

import tempfile
import time
from pathlib import Path

import httpx
import pytest

from tests.serve.conftest import Serve

CALL = "Thought: So.\nAction: code_interpreter\nAction Input:\n```py\n{}\n```\n"


def test_turns(scripted: Serve) -> None:
    with scripted(run_generated_code=True) as running:
        (model,) = httpx.get(f"{running.url}/v1/models").json()["data"]
        how = model["code_interpreter"]
        assert (how["stop"], how["runs"]) == ("Observation:", 8)
        assert how["ask"].endswith("Begin!\n\nQuestion: ")

        def turn(**body: str) -> httpx.Response:
            return httpx.post(f"{running.url}/v1/code_interpreter", json=body, timeout=60)

        first = turn(reply=CALL.format("x = 2")).json()
        second = turn(begun=first["text"], reply=CALL.format("x + 1")).json()
        assert (second["shown"], second["runs"]) == ("execute_result:\n\n```\n3\n```", 2)
        assert second["text"].endswith(f"Observation: {second['shown']}\nThought:")
        assert turn(reply="Final Answer: 3").json()["shown"] is None
        hostile = CALL.format("import os\nos.kill(os.getppid(), 9)")
        assert "PermissionError" in turn(reply=hostile).json()["shown"]
        assert turn(reply="x" * 2**17).status_code == 400
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_no_code_without_consent(scripted: Serve) -> None:
    with scripted() as running:
        (model,) = httpx.get(f"{running.url}/v1/models").json()["data"]
        assert "code_interpreter" not in model
        body = {"reply": CALL.format("x = 2")}
        refused = httpx.post(f"{running.url}/v1/code_interpreter", json=body)
    assert refused.status_code == 403
    assert "--run-generated-code" in refused.json()["error"]["message"]


def test_code_of_a_client_who_leaves_ends(
    scripted: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scripted(run_generated_code=True) as running:
        url, body = f"{running.url}/v1/code_interpreter", {"reply": CALL.format("while True: 1")}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=body, timeout=1)
        started = time.monotonic()
        while list(tmp_path.glob("qwen-jax-code-*")):
            assert time.monotonic() - started < 10
            time.sleep(0.02)
        call = CALL.format("1") + "Observation:"
        refused = httpx.post(url, json={"begun": call * 8, "reply": CALL.format("1")})
        assert refused.status_code == 400
        assert "8 at most" in refused.json()["error"]["message"]
