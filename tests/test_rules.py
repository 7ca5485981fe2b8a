"""The shape of the code: who may import whom, what files are called, how long they are."""

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("qwen_jax", "convert", "train", "serve")
CODE = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
FILES = sorted(
    {*CODE, *(f for d in ("tests", "tools", "benchmarks") for f in (ROOT / d).rglob("*.py"))}
)


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    """Everything in a file's tree."""
    return list(ast.walk(ast.parse(file.read_text("utf-8"))))


def imports(file: Path) -> Iterator[str]:
    """Dotted names of everything the file imports, inside functions too."""
    package = file.relative_to(ROOT).parent.parts
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def roots(file: Path) -> set[str]:
    return {imported.split(".")[0] for imported in imports(file)}


@functools.cache
def modules(file: Path) -> set[str]:
    """The files of this repository that a file imports."""
    found = set()
    for imported in imports(file):
        path = ROOT.joinpath(*imported.split("."))
        for candidate in (path, path.parent):
            hits = [
                f for f in (candidate.with_suffix(".py"), candidate / "__init__.py") if f in CODE
            ]
            if hits:
                found.add(name(hits[0]))
                break
    return found


@pytest.mark.parametrize("file", CODE, ids=name)
def test_arrows_between_packages(file: Path) -> None:
    package = name(file).split("/")[0]
    assert roots(file) & {*PACKAGES, "tests", "tools", "benchmarks"} <= {package, "qwen_jax"}


def test_no_cycles() -> None:
    TopologicalSorter({name(file): modules(file) - {name(file)} for file in CODE}).prepare()


def room(file: str) -> str:
    """A file's folder in its package; one that lies beside rooms is a room of its own."""
    return "/".join(Path(file).parts[:2])


def arrows() -> dict[str, set[str]]:
    """The other rooms that each room imports."""
    found: dict[str, set[str]] = {}
    for file in CODE:
        found.setdefault(room(name(file)), set()).update(map(room, modules(file)))
    return {one: others - {one} for one, others in found.items()}


def test_no_cycles_between_rooms() -> None:
    TopologicalSorter(arrows()).prepare()


# what a room may import of this package; the files beside the rooms may import all of them
MAY_IMPORT = {
    "files": set(),
    "sandbox": set(),
    "text": {"files", "sandbox"},
    "data": {"files", "text"},
    "nn": {"files", "config.py"},
    "storage": {"files", "config.py", "nn"},
    "adapters": {"files", "sandbox", "config.py", "nn", "storage"},
    "program": {"files"},
    "command": {
        *("checkpoint.py", "conversation.py", "distributed.py", "memory.py"),
        *("decoding", "nn", "program", "storage"),
    },
    "decoding": {"files", "config.py", "nn", "program", "text"},
    "evaluate": {"files", "sandbox", "nn", "text", "decoding", "checkpoint.py", "conversation.py"}
    | {"cli.py", "distributed.py", "model_folder.py", "program"},
    "profile": {
        "files",
        "nn",
        "decoding",
        "memory.py",
        "checkpoint.py",
        "cli.py",
        "distributed.py",
        "model_folder.py",
        "program",
    },
    "plan": {"files", "nn", "storage", "decoding", "config.py", "memory.py", "cli.py"}
    | {"bundled.py", "program"},
}


def test_arrows_between_rooms() -> None:
    for one, others in arrows().items():
        package, inner = one.split("/")
        if package == "qwen_jax" and not inner.endswith(".py"):
            assert others <= {f"qwen_jax/{other}" for other in MAY_IMPORT[inner]}, one


@pytest.mark.parametrize("inner", ["files", "sandbox", "text", "data", "program"])
def test_rooms_without_jax(inner: Any) -> None:
    """Neither their files nor what those import from the package."""
    todo, seen = [name(file) for file in (ROOT / "qwen_jax" / inner).rglob("*.py")], set()
    while todo:
        current = todo.pop()
        seen.add(current)
        assert not roots(ROOT / current) & {"jax", "jaxlib", "flax"}, current
        todo += modules(ROOT / current) - seen


def test_the_network_is_below_what_plugs_into_it() -> None:
    for lower, upper in (("model", "lora"), ("model", "quant"), ("model", "sharding")):
        assert f"qwen_jax/nn/{upper}.py" not in modules(ROOT / f"qwen_jax/nn/{lower}.py")
        assert f"qwen_jax/nn/{lower}.py" in modules(ROOT / f"qwen_jax/nn/{upper}.py")


def test_rooms_are_small() -> None:
    counts = Counter(file.parent for file in FILES)
    assert {name(folder): n for folder, n in counts.items() if n > 16} == {}


@pytest.mark.parametrize("file", CODE, ids=name)
def test_pure_jax(file: Path) -> None:
    """No PyTorch, and nothing that runs code from a model's files."""
    assert not roots(file) & {"torch", "tensorflow", "transformers", "pickle", "dill", "joblib"}


@pytest.mark.parametrize("file", CODE, ids=name)
def test_plain_pytrees(file: Path) -> None:
    """Of Flax, only modules that are plain pytrees; jax.jit, jax.grad and jax.lax work on them."""
    banned = {"jit", "grad", "value_and_grad", "scan", "vmap", "Rngs"}
    for node in nodes(file):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert not (node.value.id == "nnx" and node.attr in banned), f"nnx.{node.attr}"


@pytest.mark.parametrize("file", FILES, ids=name)
def test_files_are_small_and_well_named(file: Path) -> None:
    assert file.stem not in {"util", "utils", "common", "helper", "helpers", "base", "misc"}
    assert len(file.read_text("utf-8").splitlines()) <= 300


def test_golden_files_are_small() -> None:
    assert sum(f.stat().st_size for f in (ROOT / "tests/golden").rglob("*")) < 6_000_000
