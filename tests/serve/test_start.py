"""What cannot be served ends the command with one line and 1, before it listens or after."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qwen_jax.bundled import native_folder
from serve.http.keys import Keys
from serve.server import bind, certificate
from serve.settings import ServeConfig
from tests.patience import PATIENCE
from tests.processes import said

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "serve", "--port", "0"]
# A program that is `python -m serve`, but for what a test puts in its way.
INSTEAD = """
import sys, time
from serve import loading
def parameters(settings, examined):
    {}
loading.parameters = parameters
sys.argv[0] = "serve"
import runpy
runpy.run_module("serve", run_name="__main__")
"""


def ended(
    *options: str | Path, program: Sequence[str] = COMMAND
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *options], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The bundled checkpoint without a piece of its weights and with a tokenizer of another."""
    folder = tmp_path / "damaged"
    shutil.copytree(native_folder(), folder)
    next(file for file in sorted((folder / "weights").rglob("*")) if file.is_file()).unlink()
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "10.255.254.253"}, "--host 10.255.254.253 is no address of this machine"),
        ({"host": "nowhere.invalid"}, "--host nowhere.invalid is no name or address"),
    ],
)
def test_a_wrong_host_does_not_speak_of_the_port(options: dict[str, str], words: str) -> None:
    with pytest.raises(OSError, match=words) as caught:
        bind(ServeConfig(**options))  # type: ignore[arg-type]
    assert "port" not in str(caught.value)


def test_the_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    key, other = tmp_path / "key.pem", tmp_path / "certificate.pem"
    key.write_bytes(b"\xff\xfe")
    other.write_text("-----BEGIN CERTIFICATE-----")
    with pytest.raises(ValueError, match=f"^{key} is not in PEM"):
        certificate(ServeConfig(tls_certificate=other, tls_key=key))
    with pytest.raises(ValueError, match=f"^{key} is no file of keys: it is not in UTF-8"):
        Keys.read(key)
    with pytest.raises(ValueError, match=f"^{tmp_path} cannot be read: Is a directory"):
        Keys.read(tmp_path)


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1
    assert "listening" not in result.stderr
    lines = [line for line in said(result.stderr).splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert len(lines) == 1, result.stderr
    assert all(word in lines[0] for word in words), lines[0]


def test_what_is_checked_before_listening(tmp_path: Path, damaged: Path) -> None:
    """The model's folder and files, adapters, keys, the certificate."""
    refused(ended("--model", str(tmp_path / "none")), "there is no folder")
    refused(ended("--model", str(damaged)), "cannot be loaded", "weights")
    (tmp_path / "empty").mkdir()
    refused(ended("--model", "demo", "--adapter", f"a={tmp_path / 'empty'}"), "empty")
    (tmp_path / "file").write_text("no key and no certificate\n")
    file = str(tmp_path / "file")
    refused(ended("--model", "demo", "--api-keys", file), file)
    how = ("--tls-certificate", file, "--tls-key", file)
    refused(ended("--model", "demo", *how), file, "is not in PEM")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise MemoryError", "MemoryError"),
        ("raise ValueError('two\\nlines')", "two lines"),
        ("raise KeyError('x')", "KeyError: 'x' (<string>, line 5)"),
    ],
)
def test_a_fault_while_the_model_is_loaded(fault: str, words: str) -> None:
    program = [sys.executable, "-c", INSTEAD.format(fault)]
    result = ended("--port", "0", program=program)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    (line,) = [line for line in said(result.stderr).splitlines() if "listening" not in line]
    assert line.startswith("error: the model cannot be loaded: ")
    assert words in line


def test_ctrl_c_while_the_model_is_loaded() -> None:
    """In the middle of XLA's own code, which no Python may leave by its usual end."""
    program = [*COMMAND, "--max-length", "512"]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "texts of at most" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read().endswith("interrupted\n")


def test_sigterm_while_the_model_is_loaded() -> None:
    program = [sys.executable, "-c", INSTEAD.format("time.sleep(1000)"), "--port", "0"]
    with subprocess.Popen(program, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "listening on" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
