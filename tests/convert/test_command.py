"""python -m convert: exit codes, and one message instead of a traceback."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import convert
from convert.__main__ import main
from qwen_jax.files.sizes import on_disk, size
from tests.conftest import Golden
from tests.convert.small import assert_same_files
from tests.processes import said

ROOT = Path(__file__).parents[2]
# the command on a disk that looks empty at first: something else fills it afterwards
UNCHECKED = """
import runpy, shutil, sys, types
answers = [types.SimpleNamespace(free=10**12)]
honest = shutil.disk_usage
shutil.disk_usage = lambda path: answers.pop() if answers else honest(path)
sys.argv[0] = "convert"
runpy.run_module("convert", run_name="__main__")
"""


def command(
    *arguments: str | Path, start: tuple[str, str] = ("-m", "convert"), **options: Any
) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(
        line, capture_output=True, text=True, env=environment(), check=False, **options
    )


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def test_there_and_back(golden: Golden, tmp_path: Path) -> None:
    source = golden("v1/base")
    run = command("--hf", source, "--out", "native", "--verify", cwd=tmp_path)
    assert (run.returncode, said(run.stderr)) == (0, "")
    assert [line.split(":")[0] for line in run.stdout.splitlines()] == [
        "writing native",
        "weights 666 kB (666 kB float32), cache of a token 1.02 kB float32",
        "verifying native",
        "next",
    ]
    held = size(on_disk(tmp_path / "native"))
    assert re.match(rf"writing native: {held} in \d+\.\d s \(.* .B/s\)\n", run.stdout)
    assert run.stdout.endswith("next: qwen-jax generate native 'Hello'\n")
    run = command("--to-hf", "native", "--out", "back", cwd=tmp_path)
    assert (run.returncode, said(run.stderr)) == (0, "")
    assert_same_files(tmp_path / "back", source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hf", "nothing"], "error: there is no folder nothing"),
        (["--hf", ".", "--dtype", "int8"], "int8"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], message: str) -> None:
    run = command(*arguments, cwd=tmp_path)
    assert run.returncode in (1, 2)
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert not run.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either --hf MODEL or --to-hf FOLDER"),
        ({"hf": "a", "to_hf": "b"}, "give either --hf MODEL or --to-hf FOLDER"),
        ({"to_hf": "a"}, "--to-hf needs --out"),
        ({"to_hf": "a", "out": "b", "verify": True}, "belong to --hf"),
        ({"hf": "demo", "quantize": "int4", "bits": 8}, "--bits belongs to --quantize gptq"),
        ({"to_hf": "a", "out": "b", "dtype": "float16"}, "belong to --hf"),
    ],
)
def test_nothing_asked_for_is_ignored(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(**arguments)


def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    made = convert.to_native("demo", tmp_path / "native")
    for arguments in (["--hf", "demo"], ["--to-hf", made]):
        run = command(*arguments, "--out", small_disk / "out", start=("-c", UNCHECKED))
        assert run.returncode == 1
        assert said(run.stderr).startswith(f"error: the disk of {small_disk / 'out'} is full")
        assert said(run.stderr).count("\n") == 1
        assert list(small_disk.iterdir()) == []


def test_control_c(golden: Golden, tmp_path: Path) -> None:
    """Interrupted before it has read everything, it says so in one line."""
    fifo = tmp_path / "hf"
    fifo.mkdir()
    os.mkfifo(fifo / "config.json")  # reading waits for a writer that never comes
    line = [sys.executable, "-m", "convert", "--hf", str(fifo), "--out", str(tmp_path / "out")]
    with (
        subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment()) as process,
        (fifo / "config.json").open("wb"),  # opens when the other end is open
    ):
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said(errors) == "interrupted; the same command goes on from here\n"
