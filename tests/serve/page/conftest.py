"""The page in a browser, in front of a server that says what a test wants."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.page.browser import chromium, opened
from tests.serve.stub import Stub


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as stub:
        yield stub


@pytest.fixture
def page(browser: Any, stub: Stub) -> Iterator[Any]:
    with opened(browser, stub.url) as page:
        yield page
