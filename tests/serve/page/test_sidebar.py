"""The conversations beside the one that is shown: chosen, renamed, found, exported and deleted."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.serve.page.browser import answers, ask, questions
from tests.serve.stub import Stub


def test_conversations_are_renamed_and_found(page: Any, stub: Stub) -> None:
    stub.answer = lambda body: [f"The answer to {body['messages'][-1]['content']}"]
    for text in ("Apples", "Pears"):
        page.click("#new")
        ask(page, text)
        answers(page)
    names = page.locator("#conversations .name")
    for place, typed, key in (("last", "Fruit <b>", "Enter"), ("first", "not this", "Escape")):
        item = page.locator(f"#conversations li:{place}-child")
        item.hover()  # which shows its buttons
        item.get_by_label("Rename").click()
        page.keyboard.type(typed)
        page.keyboard.press(key)
    page.reload()
    assert names.all_inner_texts() == ["Pears", "Fruit <b>"]
    both = ["Pears", "Fruit <b>"]
    for wanted, found in (("fruit", both[1:]), ("ANSWER pears", both[:1]), ("answer", both)):
        page.fill("#search", wanted)
        assert names.all_inner_texts() == found
    page.fill("#search", "no such thing")
    assert (names.count(), page.inner_text("#conversations")) == (0, "Nothing found.")
    page.fill("#search", "")
    assert names.count() == 2


def test_conversations(page: Any, stub: Stub, tmp_path: Path) -> None:
    for text in ("First", "Second"):
        page.click("#new")
        ask(page, text)
        answers(page)
    names = page.locator("#conversations .name")
    assert names.all_inner_texts() == ["Second", "First"]
    names.last.click()
    assert questions(page) == ["First"]
    with page.expect_download() as download:
        page.locator("#conversations li:last-child").get_by_label("Export").click(force=True)
    saved = json.loads(download.value.path().read_text("utf-8"))
    assert download.value.suggested_filename == "First.json"
    assert [message["content"] for message in saved["messages"]] == ["First", "Hi."]
    page.locator("#conversations li:last-child").get_by_label("Delete").click(force=True)
    assert (names.all_inner_texts(), questions(page)) == (["Second"], [])
    page.click("#toast >> text=Undo")
    assert names.all_inner_texts() == ["Second", "First"]
    page.click("#open-settings")
    page.click("#delete-all")
    page.reload()
    assert names.count() == 0


def test_an_answer_grows_while_another_conversation_is_shown(page: Any, stub: Stub) -> None:
    goes_on = threading.Event()

    def answer(body: dict[str, Any]) -> Iterator[str]:
        yield "one "
        goes_on.wait(10)
        yield "two"

    stub.answer = answer
    ask(page, "Slow")
    page.wait_for_selector("text=one")
    page.click("#new")
    assert answers(page) == []
    page.click("#conversations .name")
    goes_on.set()
    page.wait_for_selector("#conversations .name:not(.growing)")
    assert answers(page) == ["one two"]
