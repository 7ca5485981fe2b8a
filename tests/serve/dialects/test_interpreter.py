"""Code that an answer runs on its way, at a server that may."""

import httpx

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
