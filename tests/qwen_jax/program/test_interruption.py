"""Ctrl-C, in processes of their own whose main thread is where Python cannot hear it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DEAF = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)'  # for many minutes
START = "import hashlib\nfrom qwen_jax.cli import run\nfrom qwen_jax.program import interruption\n"
CODES = {
    "deaf": f"def work():\n    print(flush=True)\n    {DEAF}\n",
    "swallowed": """
def work():
    print(flush=True)
    while True:
        try:
            while True: pass
        except KeyboardInterrupt: pass
""",
    "held": f"""
def pressed():
    print(flush=True)
    presses.append(True)
    return len(presses) > 1
presses = []
def work():
    with interruption.held(pressed):
        print(flush=True)
        {DEAF}
""",
    "caught": f"""
def work():
    with interruption.caught():
        print(flush=True)
        {DEAF}
""",
}


@pytest.mark.parametrize(("how", "presses"), [("deaf", 1), ("swallowed", 1), ("held", 2)])
def test_ctrl_c_ends_a_program(how: str, presses: int) -> None:
    with started(how) as process:
        for _ in range(presses):
            assert process.stdout is not None
            process.stdout.readline()  # it is at work, or has heard the one before
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_a_second_leaves_what_catches_the_first() -> None:
    with started("caught") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        time.sleep(0.3)  # until it is in there
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        assert process.stderr.readline().endswith("Ctrl-C again leaves\n")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "interrupted\n")


def started(how: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", f"{START}{CODES[how]}run(work)"]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
