"""Hostile programs hurt nobody, and none of them passes."""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_jax.sandbox import program as sandbox
from qwen_jax.sandbox import program_guard
from qwen_jax.sandbox.program_guard import DENIED, MACHINES

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MACHINES or bool(sandbox.missing()),
    reason="this system does not give all walls",
)

HARMLESS = [
    "x = 1",
    "open('own', 'w').write('x'); assert open('own').read() == 'x'",
    "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
    "import math, re, collections, itertools, heapq, json, hashlib, random, datetime",
    "import numpy; assert numpy.ones(3).sum() == 3",
    "def f():\n    return __name__\nassert f() == '__main__'",
    "from pathlib import Path; Path.home().joinpath('.cache').mkdir()",  # as matplotlib does
]
HOSTILE = [
    # leaving early is not passing
    *("1 / 0", "raise SystemExit(0)", "import os; os._exit(0)", "raise BaseException", "def f(:"),
    *("import ctypes; ctypes.string_at(0)", "def f(): f()\nf()", "assert False"),
    "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    # time and memory
    *("while True: pass", "import time; time.sleep(99)", "input()", "x = b'a' * 10**10"),
    *("x = []\nwhile True: x.append(' ' * 10**7)", "10 ** 10 ** 10", "sum(range(10**12))"),
    "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
    "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')",
    "import mmap; mmap.mmap(-1, 10**11)",
    # files
    *("open('{outside}', 'w')", "open('{victim}', 'a').write('x')", "open('/etc/passwd', 'a')"),
    *("import os; os.remove('{victim}')", "import os; os.rename('{victim}', 'mine')"),
    *("import os; os.chmod('{victim}', 0)", "import os; os.truncate('{victim}', 0)"),
    *("import os; os.utime('{victim}', (0, 0))", "import os; os.link('{victim}', '{outside}')"),
    *("import os; os.symlink('{victim}', 'a'); open('a', 'w')", "import os; os.mkdir('{outside}')"),
    *(
        "import os; os.link('{victim}', 'mine'); open('mine', 'w')",
        "import os; os.mkfifo('{outside}')",
    ),
    "import shutil; shutil.rmtree('{folder}')",
    *("open('{victim}').read()", "import os; os.listdir('{folder}')"),
    *("open('/proc/{parent}/environ').read()", "open('/proc/self/root{victim}').read()"),
    "import os; os.symlink('{victim}', 'a'); open('a').read()",
    "import os\nos.setxattr('{victim}', 'user.a', b'1')",
    "for i in range(10**6): open(str(i), 'wb').write(b'x' * 10**6)",
    "open('large', 'wb').write(b'x' * 10**8)",
    "while True: print('x' * 10**6)",
    "import os\nos.chdir('/')\nopen('outside', 'w')",
    # processes
    *(
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['true'], check=True)",
    ),
    *("import os; os.system('true') == 0 or 1 / 0", "import os; os.execv('/bin/true', ['true'])"),
    "import multiprocessing as m; p = m.Process(target=print); p.start(); p.join()",
    "import os; os.posix_spawn('/bin/true', ['true'], {{}})",
    # signals
    *(
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.kill(-1, 9)",
        "import os; os.kill(1, 0)",
    ),
    "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
    "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "import resource, os; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1))",
    "import fcntl, os; fcntl.fcntl(os.pipe()[0], 8, os.getppid())",  # whom O_ASYNC signals
    "import fcntl; fcntl.ioctl(open('own', 'w'), 0x40086602, bytes(8))",  # its attributes
    # what others share
    "import ctypes; l = ctypes.CDLL(None, None, None, True); l.shmctl(-1, 0, 0)\n"
    "assert ctypes.get_errno() != 1",
    "import ctypes; assert ctypes.CDLL(None).inotify_init() >= 0",
    "import ctypes; assert ctypes.CDLL(None).fanotify_init(0, 0) >= 0",
    "import os, stat; os.mknod('device', stat.S_IFCHR | 0o600, os.makedev(1, 3))",
    "open('{ours}').read()",  # an editable installation's folder is no part of Python's
    # the network
    *("import socket; socket.socket()", "import socket; socket.socketpair()"),
    "import socket; socket.create_connection(('127.0.0.1', 22))",
    "import urllib.request; urllib.request.urlopen('http://example.org')",
    "import http.server; http.server.HTTPServer(('', 0), None)",
    # the walls themselves
    "import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",  # to outlive its parent
    "assert int(open('/proc/self/status').read().split('CapEff:')[1][:17], 16) & ~4",
    "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "import ctypes; assert ctypes.CDLL(None).mount(b'a', b'/', b'tmpfs', 0, None) == 0",
    "import ctypes; assert ctypes.CDLL(None).ptrace(16, {parent}, 0, 0) == 0",
]


@pytest.mark.parametrize("program", HARMLESS)
def test_harmless_programs_pass(program: str) -> None:
    assert sandbox.run(program, 10) == (True, sandbox.run(program, 10)[1])


@pytest.mark.parametrize("program", HOSTILE)
def test_hostile_programs_fail_and_hurt_nobody(program: str, tmp_path: Path) -> None:
    victim, outside = tmp_path / "victim", tmp_path / "outside"
    victim.write_text("whole")
    before = victim.stat()
    words = {"victim": victim, "outside": outside, "folder": tmp_path, "parent": os.getpid()}
    words["ours"] = Path(sandbox.__file__).parents[2] / "pyproject.toml"
    assert not sandbox.passes(program.format(**words), 0.4)
    assert victim.read_text() == "whole"
    after = victim.stat()
    assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)
    assert [file.name for file in tmp_path.iterdir()] == ["victim"]


def test_there_are_fifty() -> None:
    assert len(HOSTILE) >= 50


def test_no_environment_and_a_printed_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "hidden")
    passed, printed = sandbox.run("import os; print(sorted(os.environ))", 10)
    assert passed
    assert "SECRET" not in printed
    assert "OMP_NUM_THREADS" in printed


def test_numbers_of_calls_are_those_of_this_machine() -> None:
    """No number stands for two calls, in either table."""
    for column in (0, 1):
        numbers = [n for tables in DENIED.values() for n in tables[column].values()]
        numbers += [number for number, *_ in program_guard.WORDS[column].values()]
        assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize(
    ("program", "ends"),
    [
        ("os.remove('printed'); os.mkfifo('printed')", True),  # at which a reader waits
        ("for _ in range(3000): os.mkdir('a'); os.chdir('a')\ntime.sleep(99)", False),
        ("os.mkdir('a'); open('a/b', 'w'); os.mkdir('a/c', 0); os.umask(0o777)", True),
        ("for i in range(10**6): open(str(i), 'w').close()", False),  # of no bytes, each a block
        (
            "import threading\nthreading.stack_size(32768)\n"
            "for _ in range(2000): threading.Thread(target=time.sleep, args=(99,)).start()",
            False,
        ),
    ],
)
def test_it_ends_and_leaves_nothing(
    program: str, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = time.monotonic()
    assert sandbox.passes(f"import os, time\n{program}", 25) == ends
    assert time.monotonic() - started < 20
    assert not list(tmp_path.iterdir())


def test_files_that_come_and_go_are_no_fault() -> None:
    assert not sandbox.passes("import os\nwhile True: open('a', 'w').close(); os.remove('a')", 1)


def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    run = "from qwen_jax.sandbox import program as p; p.run('import os, time\\n"
    run += "print(os.getpid(), flush=True)\\ntime.sleep(60)', 60)"
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    asking = subprocess.Popen([sys.executable, "-c", run], env=variables)
    printed = until(lambda: [f for f in tmp_path.glob("*/printed") if f.read_text()])
    asking.kill()
    asking.wait()
    child = Path("/proc") / printed[0].read_text().strip()
    until(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text())


def until(true: Callable[[], Any]) -> Any:
    for _ in range(500):
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def test_one_wall_that_is_missing_is_said_and_the_others_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = tmp_path / "guard.py"
    text = Path(program_guard.__file__).read_text()
    guard.write_text(text.replace("(444, 445, 446)", "(99999, 99999, 99999)"))
    monkeypatch.setattr(sandbox, "_GUARD", guard)
    assert sandbox.missing() == "files (Landlock failed: Function not implemented)"
    assert not sandbox.passes("import socket; socket.socket()", 9)
    assert not sandbox.passes("import os; os.fork()", 9)
    guard.write_text("raise SystemExit('broken')")
    assert sandbox.missing() == "all: no program comes to its end: broken"
