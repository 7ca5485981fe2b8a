"""What every test sees: one CPU that looks like eight devices, and whole reference checkpoints."""

import atexit
import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

# jax and NumPy read these when they are first imported, which is later than this file.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # halves the time of compiling
if version("jaxlib").startswith("0.10."):  # later ones have no such flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # takes a third of the rest
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"  # and an eighth
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy: the reference's matrices are too small to share

# All processes of a run compile a program once: workers, and the commands that tests start. And
# a module, also where Python is told to write none of them beside its source.
if "PYTEST_XDIST_WORKER" not in os.environ:
    made = tempfile.mkdtemp(prefix="qwen_jax-tests-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{made}/programs"
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ["PYTHONPYCACHEPREFIX"] = f"{made}/modules"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# What clients ask is on this machine: none reads the world's certificates, for 20 ms each time.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull
os.environ["QWEN_JAX_PROGRAMS"] = ""  # whole executables are kept by the tests of that alone

# Tests that a shell starts in its background would have Ctrl-C ignored, and what they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)

Golden = Callable[[str], Path]  # the fixture

GOLDEN = Path(__file__).parent / "golden"
SAME_WEIGHTS = {  # folders whose tensors are kept once, in another folder
    "modern/qwen25_yarn": "modern/qwen2_gqa",
    "v1/logn_only": "v1/longctx",
    "v1/ntk_only": "v1/longctx",
}


def pytest_collection_finish() -> None:
    """What the modules of thousands of tests hold is not looked through for garbage again."""
    gc.freeze()


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """golden("v1/base") -> that folder of tests/golden, a whole checkpoint, safe to write to."""
    root = tmp_path_factory.mktemp("golden")

    def assemble(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            shutil.copytree(GOLDEN / name, folder)
            for file in (GOLDEN / SAME_WEIGHTS.get(name, name)).glob("model*"):
                shutil.copy(file, folder)
        return folder

    return assemble


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    (tmp_path / "disk").mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path / "disk")]
    try:
        subprocess.run(line, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """Programs of these tests run for so long that compiling them well is the shorter way."""
    from jax._src import compiler  # `jit` takes such options, and is the product's

    name, plain = "env_options_overrides", compiler.get_compile_options
    options: dict[str, Any] = {"xla_backend_optimization_level": 1}

    def optimising(*sizes: Any, **how: Any) -> Any:
        return plain(*sizes, **(how | {name: options | (how.get(name) or {})}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", optimising)
        yield


@pytest.fixture(scope="module", autouse=True)
def few_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled programs are forgotten before the system's maps of memory for them run out.

    Not beside servers, which live longer than a module and count what they compile.
    """
    yield
    maps = Path("/proc/self/maps")
    if "serve" in request.path.parts or not maps.exists():
        return
    if len(maps.read_bytes().splitlines()) > 15_000:  # of 65,530
        import jax  # which reads the settings above

        jax.clear_caches()
