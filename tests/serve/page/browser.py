"""A real Chromium, and what the tests of the page do with it."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium without a window; tests skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Any, url: str, expect: tuple[str, ...] = (), **how: Any) -> Iterator[Any]:
    """A tab with nothing stored that shows the page; how: of Playwright's new_context.

    Whatever the browser complains of fails the test, a broken content security policy included,
    unless it contains one of `expect`.
    """
    complaints: list[str] = []
    context = browser.new_context(**{"locale": "en-US", "accept_downloads": True, **how})
    page = context.new_page()
    page.set_default_timeout(8000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.goto(url)
    page.wait_for_selector("#model option", state="attached")
    yield page
    context.close()
    assert [c for c in complaints if not any(part in c for part in expect)] == []


def ask(page: Any, text: str) -> None:
    page.fill("#query", text)
    page.press("#query", "Enter")


def answers(page: Any) -> list[str]:
    """What was answered, once nothing grows any more."""
    page.wait_for_selector("#send", state="visible")
    return page.locator("#messages > .assistant > .prose").all_inner_texts()


def questions(page: Any) -> list[str]:
    return page.locator("#messages .bubble").all_inner_texts()


def press(page: Any, label: str) -> None:
    """Press the button of that name, whether the pointer is there to show it or not."""
    page.get_by_role("button", name=label, exact=True).last.click(force=True)
