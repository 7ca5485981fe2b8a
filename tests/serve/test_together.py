"""The page, the terminal's client and the benchmark, each with the real server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.bench import main
from serve.cli.client import Remote, ServerError
from serve.cli.conversation import SETTINGS
from tests.serve.conftest import Running, Serve
from tests.serve.page.browser import answers, ask, chromium, opened, press

SAID = "**quick** <b>fox</b>"


@pytest.fixture(scope="module")
def server(scripted: Serve) -> Iterator[Running]:
    with scripted(SAID) as running:
        yield running


def test_page(server: Running) -> None:
    with chromium() as browser, opened(browser, server.url, ("400",)) as page:
        page.click("#open-settings")
        for name in ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"):
            page.fill(f"[name={name}]", "1")
        page.fill("[name=max_tokens]", "50")
        page.fill("#system", "Be brief.")
        page.keyboard.press("Escape")
        ask(page, "A question")
        assert answers(page) == ["quick <b>fox</b>"]
        press(page, "Another answer")
        assert answers(page) == ["quick <b>fox</b>"]
        page.click("#open-settings")
        page.fill("[name=max_tokens]", "100000")
        page.keyboard.press("Escape")
        press(page, "Another answer")
        page.wait_for_selector("[role=alert]")
        assert "100000" in page.inner_text("[role=alert]")


def test_terminal(server: Running) -> None:
    remote = Remote(server.url, "tiny")
    samplings = dict.fromkeys(SETTINGS, 1) | {"stop": ["zebra"], "max_new_tokens": 50}
    *_, answer = remote.answer("A question", [("a", "b")], "Be brief.", 1, samplings)
    assert (answer.text, answer.finish_reason) == (SAID, "stop")
    assert answer.tokens > 1
    with pytest.raises(ServerError, match=r"HTTP 400: .*top_p"):
        list(remote.answer("A question", [], None, 1, {"top_p": 7}))


def test_benchmark(server: Running, tmp_path: Path) -> None:
    how: dict[str, Any] = {"url": server.url, "requests": 6, "warmup": 1, "concurrency": 3}
    how["ignore_eos"] = False
    found = main(**how, input_length=9, output_length=30)
    assert (found["completed"], found["failed"]) == (6, 0)
    assert found["total_input_tokens"] == 54
    assert found["mean_tpot_ms"] > 0
    file = tmp_path / "sharegpt.json"
    turns = [{"value": "one two three four five"}, {"value": "six seven eight nine"}]
    file.write_text(json.dumps([{"conversations": turns}]))
    assert main(**how, dataset="sharegpt", file=file)["failed"] == 0
