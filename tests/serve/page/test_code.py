"""Code on the way to an answer, in the page."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.page.browser import answers, ask, opened
from tests.serve.stub import Stub


@pytest.fixture
def turns(stub: Stub) -> list[dict[str, Any]]:
    """What the page asks to run; the server runs nothing, but says so."""
    asked: list[dict[str, Any]] = []

    def turn(body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        shown = "6" if "CODE" in body["reply"] else None
        said = body["begun"] + body["reply"] + ("" if shown is None else f" shows {shown}.")
        return {"text": said, "shown": shown, "runs": len(asked)}

    stub.turn = turn
    return asked


def test_what_code_shows_goes_to_the_model(
    browser: Any, stub: Stub, turns: list[dict[str, Any]]
) -> None:
    def answer(body: dict[str, Any]) -> Iterator[str]:
        yield " It is 6." if body["messages"][-1]["role"] == "assistant" else "CODE"

    stub.answer = answer
    with opened(browser, stub.url) as page:
        ask(page, "Plain")
        answers(page)
        page.click("#code")
        assert page.get_attribute("#code", "aria-pressed") == "true"
        ask(page, "2 * 3?")
        assert answers(page) == ["CODE", "CODE shows 6. It is 6."]
        page.reload()
        page.wait_for_selector("#code[aria-pressed=true]")
    plain, first, second = stub.requests
    assert "stop" not in plain
    assert first["messages"][-1] == {"role": "user", "content": "Ask: 2 * 3?"}
    assert first["messages"][0]["content"] == "Plain"
    assert first["stop"] == second["stop"] == ["STOP"]
    assert second["messages"][:-1] == first["messages"]
    assert second["messages"][-1] == {"role": "assistant", "content": "CODE shows 6."}
    assert (second["continue_final_message"], second["add_generation_prompt"]) == (True, False)
    assert [turn["begun"] for turn in turns] == ["", "CODE shows 6."]


def test_code_that_never_ends(browser: Any, stub: Stub, turns: list[dict[str, Any]]) -> None:
    stub.answer = lambda body: ["CODE"]
    with opened(browser, stub.url) as page:
        page.click("#code")
        ask(page, "Go on")
        assert answers(page) == ["CODE shows 6.CODE shows 6."]  # twice, as the server says
    assert len(turns) == 2


def test_a_server_without_it_is_not_asked(page: Any, stub: Stub) -> None:
    assert page.is_hidden("#code")
    page.evaluate("localStorage.setItem('qwen.settings', '{\"code\": true}')")
    page.reload()
    ask(page, "Hello")
    answers(page)
    assert "stop" not in stub.requests[0]
