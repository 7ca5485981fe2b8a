"""The documentation: its numbers, its commands, its code and its links are those of the product."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import qwen_jax
from benchmarks import report
from qwen_jax import cli
from qwen_jax.nn.sharding import make_mesh

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md"}
    - {ROOT / "CHANGELOG.md"}
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
WORD = re.compile(r"[A-Za-z_]\w*")
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
MODULES = {program.module.removesuffix(".__main__"): w for w, program in cli.PROGRAMS.items()}
COMMAND = re.compile(
    rf"(?:qwen-jax ({'|'.join(cli.PROGRAMS)})|python -m ([\w.]+))(?![\w.])([^`\n]*)"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
DOTTED = re.compile(r"(?<![\w./])(?:qwen_jax|convert|train|serve)(?:\.[A-Za-z_]\w*)+")
ELSEWHERE = set(  # options of other programs that the guides name
    "--version --help --signal --requeue --build-arg --editable --model_args --tasks "
    "--apply_chat_template --uniform-bucket-level-access --enable-hierarchical-namespace "
    "--logdir --check --piece --again --seven-billion --avx2 --prompt".split()
)
Options = Callable[[str], set[str]]  # the fixture
RUN = ("README.md", "README.zh.md", "generate", "tokenizer", "sharding", "training", "adapters")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text(page: Path) -> str:
    return page.read_text("utf-8")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Fenced and indented code, with its language."""
    fenced = [(match[1], match[2]) for match in FENCED.finditer(text(page))]
    rest = FENCED.sub("", text(page))
    return fenced + [("", block) for block in INDENTED.findall(rest)]


def code(page: Path) -> Iterator[str]:
    """Everything that is set as code."""
    yield from (block for _, block in blocks(page))
    yield from SPAN.findall(FENCED.sub("", text(page)))


@pytest.fixture(scope="module")
def options() -> Options:
    """The options of a command, as its --help has them."""
    known: dict[str, set[str]] = {}

    def of(word: str) -> set[str]:
        if word not in known:
            line = [sys.executable, "-m", "qwen_jax.cli", word, "--help"]
            run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
            known[word] = set(OPTION.findall(run.stdout))
        return known[word]

    return of


@pytest.mark.parametrize("page", report.PAGES)
def test_numbers_are_those_of_the_results(page: str) -> None:
    assert report.written(page) == text(ROOT / page)
    assert set(report.MARKED.findall(text(ROOT / "docs/benchmarks.md"))) == set(report.SHOWN)


def test_both_readmes_say_the_same() -> None:
    """The same commands, code and output, and as many headings, tables' rows and links."""
    english, chinese = (ROOT / "README.md", ROOT / "README.zh.md")
    bare = lambda page: [re.sub(r" +# .*", "", block) for _, block in blocks(page)]
    assert bare(english) == bare(chinese)
    for kind in (r"^#+ ", r"^\|"):
        assert len(re.findall(kind, text(english), re.M)) == len(
            re.findall(kind, text(chinese), re.M)
        )
    targets = lambda page: {link for link in LINK.findall(text(page)) if "README" not in link}
    assert targets(english) == targets(chinese)
    assert len(text(english).splitlines()) < 110  # a screen and a half


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_have_the_options_they_are_shown_with(page: Path, options: Options) -> None:
    for part in code(page):
        for match in COMMAND.finditer(part):
            word = match[1] or MODULES.get(match[2])
            if word is None:  # benchmarks, pip, venv
                assert importlib.util.find_spec(match[2]), match[0]
                continue
            asked = set(OPTION.findall(match[3].partition(" #")[0]))
            assert asked <= options(word) | {"--help"}, match[0]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_exist(page: Path, options: Options) -> None:
    """Those that are named without a command, too."""
    known = ELSEWHERE.union(*map(options, cli.PROGRAMS))
    for part in SPAN.findall(FENCED.sub("", text(page))):
        assert set(OPTION.findall(part)) <= known, part


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_exist(page: Path) -> None:
    shown = re.findall(r"^::: ([\w.]+)", text(page), re.MULTILINE)
    for found in {*shown, *(n for part in code(page) for n in DOTTED.findall(part))}:
        if found == "qwen_jax.evaluate.lm_eval_model":  # needs lm-eval, which no extra brings
            assert (ROOT / "qwen_jax/evaluate/lm_eval_model.py").exists()
        elif not found.endswith((".json", ".md", ".py", ".yaml", ".yml")):
            assert resolve(found) is not None


def resolve(dotted: str) -> Any:
    """What a dotted name stands for; raises where there is nothing."""
    first, *rest = dotted.split(".")
    found, path = importlib.import_module(first), first
    for word in rest:
        path = f"{path}.{word}"
        if not hasattr(found, word) and hasattr(found, "__path__"):
            importlib.import_module(path)
        found = sys.modules[path] if path in sys.modules else getattr(found, word)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the guides' code runs: with the data that it names."""
    folder = tmp_path_factory.mktemp("guides")
    turns = [{"from": "user", "value": "你好"}, {"from": "assistant", "value": "你好！"}]
    chats = [{"id": str(n), "conversations": turns} for n in range(16)]
    (folder / "chats.json").write_text(json.dumps(chats), "utf-8")
    return folder


@pytest.mark.parametrize("guide", RUN)
def test_python_runs(
    guide: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, the blocks of a page share their names; every model is the bundled one.

    It is on one device where the page does not say: fewer programs, and sooner compiled.
    """
    monkeypatch.chdir(folder)
    load, one = qwen_jax.load, {"mesh": make_mesh(devices=jax.devices()[:1])}
    monkeypatch.setattr(qwen_jax, "load", lambda model, **how: load("demo", **(one | how)))
    page = ROOT / guide if guide.endswith(".md") else ROOT / f"docs/{guide}.md"
    if guide == "adapters" and not (folder / "runs/first/adapter").exists():
        run_python(ROOT / "docs/training.md")
    assert run_python(page)


def run_python(page: Path) -> int:
    """Runs what there is; how many blocks that were."""
    shared: dict[str, Any] = {}
    found = [block for language, block in blocks(page) if language == "python"]
    for block in found:
        exec(compile(block, str(page), "exec"), shared)
    return len(found)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_is_well_formed(page: Path) -> None:
    for language, block in blocks(page):
        if language == "python":
            ast.parse(block)
        elif language == "json":
            json.loads(block)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(text(page)):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_recipes_name_what_is_there() -> None:
    """Of CONTRIBUTING.md: folders and files, and words of the code."""
    tops = ("qwen_jax", "convert", "train", "serve", "tests", "benchmarks", "docs")
    found = [path for top in tops for path in (ROOT / top).rglob("*")]
    paths = {f"/{name(path)}" for path in found}
    words = {word for path in found if path.suffix == ".py" for word in WORD.findall(text(path))}
    recipes = text(ROOT / "CONTRIBUTING.md").partition("\n## Add ")[2].partition("\n## Conv")[0]
    for span in SPAN.findall(recipes):
        if "/" in span[1:] or span.endswith((".py", ".js", ".html")):
            assert any(path.endswith(f"/{span.strip('/')}") for path in paths), span
        else:
            assert set(WORD.findall(span)) <= words, span


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: dead links and anchors, pages that are in no menu, names without a docstring."""
    mkdocs = shutil.which("mkdocs")
    if mkdocs is None:
        pytest.skip("needs mkdocs; pip install -e '.[docs]'")
    line = [mkdocs, "build", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


def test_one_version() -> None:
    version = tomllib.loads(text(ROOT / "pyproject.toml"))["project"]["version"]
    assert f"\nversion: {version}\n" in text(ROOT / "CITATION.cff")
    assert f"\n## {version}\n" in text(ROOT / "CHANGELOG.md")
