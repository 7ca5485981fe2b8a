"""Clients for Node, and agents that are written with them, each ending one task."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.clients.reciter import reciting
from tools.recite import first_turns

NODE = Path(__file__).parent / "node"
COMMANDS = NODE / "node_modules" / ".bin"
QUESTION = "Who are you?"
TASK, DONE = "Write hello into greeting.txt", "The greeting is written."
CHECKS = """openai_create openai_stream openai_parse openai_tools openai_chat anthropic_create
    anthropic_stream anthropic_tools ai_sdk_text ai_sdk_object ai_sdk_tools""".split()
CODEX = """
model = "demo"
model_provider = "local"
web_search = "disabled"
[model_providers.local]
name = "local"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "KEY"
"""


@pytest.fixture(scope="module")
def found(server: Any) -> dict[str, str]:
    """What is wrong with each check of clients.mjs; nothing, if it is well."""
    command = ["node", "clients.mjs", server.url, server.key, QUESTION]
    command.append(dict(first_turns())[QUESTION])
    made = subprocess.run(command, cwd=NODE, stdout=subprocess.PIPE, check=True, timeout=300)
    read: dict[str, str] = json.loads(made.stdout.splitlines()[-1])
    assert read.keys() == set(CHECKS)
    return read


@pytest.mark.parametrize("check", CHECKS)
def test_clients(found: dict[str, str], check: str) -> None:
    assert found[check] == ""


def ended(agent: str, call: dict[str, Any], arguments: list[str], folder: Path) -> str:
    """What an agent says at the end of the task, when the model first makes a call."""

    def answer(prompt: str) -> str:
        told = "<|im_start|>tool" in prompt
        return DONE if told else f"<tool_call>\n{json.dumps(call)}\n</tool_call>"

    work, key = folder / "work", "a-key-for-all-clients"
    work.mkdir()
    with reciting(answer, key, folder) as url:
        (folder / "config.toml").write_text(CODEX.format(url=url))
        own = {"HOME": str(folder), "CODEX_HOME": str(folder), "KEY": key}
        own |= {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key, "OPENAI_MODEL": "demo"}
        made = subprocess.run(
            [COMMANDS / agent, *arguments, TASK],
            cwd=work,
            env=os.environ | own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert made.returncode == 0, made.stderr
    assert (work / "greeting.txt").read_text() == "hello\n"
    return made.stdout.strip()


def test_codex(tmp_path: Path) -> None:
    call = {"name": "exec_command", "arguments": {"cmd": "echo hello > greeting.txt"}}
    how = ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    assert ended("codex", call, how, tmp_path) == DONE


def test_qwen_code(tmp_path: Path) -> None:
    file = str(tmp_path / "work" / "greeting.txt")
    call = {"name": "write_file", "arguments": {"file_path": file, "content": "hello\n"}}
    assert ended("qwen", call, ["--yolo", "--auth-type", "openai", "-p"], tmp_path) == DONE
