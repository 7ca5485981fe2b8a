"""A process that begins again to have large pages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_jax.program import huge_pages

SCRIPT = """
import json, os, sys
from qwen_jax.program import huge_pages
print("began", flush=True)
huge_pages.ask()
print(json.dumps([sys.argv[1:], os.environ.get("GLIBC_TUNABLES")]))
"""


def run(environment: dict[str, str]) -> tuple[int, list[object]]:
    """How often such a process began, its arguments, and what the C library was told."""
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, "two words", ""],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *began, last = made.stdout.splitlines()
    return len(began), json.loads(last)


@pytest.mark.skipif(not huge_pages._can_help(), reason="this system gives none, or all")
def test_begins_once_more_with_the_same_arguments() -> None:
    asked = "glibc.malloc.hugetlb=1"
    assert run({}) == (2, [["two words", ""], asked])
    other = "glibc.malloc.check=0"
    assert run({"GLIBC_TUNABLES": other}) == (2, [["two words", ""], f"{other}:{asked}"])


def test_what_was_told_already_stays() -> None:
    told = "glibc.malloc.hugetlb=0"
    assert run({"GLIBC_TUNABLES": told}) == (1, [["two words", ""], told])


def test_where_it_would_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "enabled"
    monkeypatch.setattr(huge_pages, "_GIVEN", given)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert not huge_pages._can_help()  # no such file
    for library, said, can in (
        ("glibc 2.35", "always [madvise] never", True),
        ("glibc 2.34", "always [madvise] never", False),
        ("glibc 2.36", "[always] madvise never", False),
        ("musl", "always [madvise] never", False),
    ):
        given.write_text(said)
        monkeypatch.setattr(os, "confstr", lambda _, library=library: library)
        assert huge_pages._can_help() == can
