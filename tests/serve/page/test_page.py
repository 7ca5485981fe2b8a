import re
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from tests.serve.page.browser import answers, ask, opened, press, questions
from tests.serve.stub import BreaksOff, Piece, Refusal, Stub

STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


def endless(body: dict[str, Any]) -> Iterator[str]:
    while True:
        yield "more "
        threading.Event().wait(0.02)


def contents(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request["messages"]]


def test_an_answer_is_shown_while_it_streams(page: Any, stub: Stub) -> None:
    goes_on = threading.Event()

    def answer(body: dict[str, Any]) -> Iterator[Piece]:
        yield from ({"reasoning_content": "hm"}, {"reasoning_content": "m"}, "**first** ")
        goes_on.wait(10)
        yield "second"

    stub.answer = answer
    ask(page, "A question")
    page.wait_for_selector(".prose strong >> text=first")
    assert page.is_visible("#stop")
    assert page.get_attribute(".assistant", "aria-busy") == "true"
    goes_on.set()
    assert (answers(page), page.text_content("details .prose")) == (["first second"], "hmm")
    assert page.get_attribute(".assistant", "aria-busy") == "false"
    assert "first second" in page.inner_text("#status")
    messages = [{"role": "user", "content": "A question"}]
    assert stub.requests == [{"model": "qwen-tiny", "messages": messages, **STREAMED}]


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop(page: Any, stub: Stub, how: str) -> None:
    stub.answer = endless
    ask(page, "Go on")
    page.wait_for_selector("text=more more")
    page.click("#stop") if how == "button" else page.keyboard.press("Escape")
    (part,) = answers(page)
    assert page.inner_text(".assistant p.note") == "Stopped."
    assert stub.left.wait(5), "the server was not told"
    assert page.evaluate("document.activeElement.id") == "query"
    stub.answer = lambda body: ["Yes."]
    ask(page, "Enough?")
    assert answers(page) == [part, "Yes."]
    assert contents(stub.requests[1])[1][1].strip() == part.strip()


def test_another_answer(page: Any, stub: Stub) -> None:
    stub.answer = lambda body: [f"answer {len(stub.requests)}"]
    ask(page, "One")
    answers(page)
    ask(page, "Two")
    answers(page)
    press(page, "Another answer")
    assert answers(page) == ["answer 1", "answer 3"]
    assert stub.requests[2] == stub.requests[1]


def test_edit_and_send_again(page: Any, stub: Stub) -> None:
    stub.answer = lambda body: [f"to {body['messages'][-1]['content']}"]
    for text in ("One", "Two"):
        ask(page, text)
        answers(page)
    page.locator(".user").first.get_by_role("button", name="Edit").click(force=True)
    assert page.evaluate("document.activeElement.value") == "One"
    page.keyboard.press("Escape")
    assert questions(page) == ["One", "Two"]
    page.keyboard.press("Enter")  # the focus is back on the button
    page.keyboard.type(", changed")
    page.keyboard.press("Enter")
    assert answers(page) == ["to One, changed"]
    assert questions(page) == ["One, changed"]
    assert contents(stub.requests[2]) == [("user", "One, changed")]


def test_reload_keeps_the_conversation(page: Any, stub: Stub) -> None:
    stub.answer = lambda body: ["*kept*"]
    ask(page, "Keep this")
    answers(page)
    stub.answer = endless
    ask(page, "And this")
    page.wait_for_selector("text=more more")
    page.reload()
    assert questions(page) == ["Keep this", "And this"]
    kept, part = answers(page)
    assert kept == "kept"
    assert part.startswith("more more")
    assert page.inner_text(".assistant p.note") == "Interrupted."
    assert page.inner_text("#conversations .name") == page.title() == "Keep this"


def test_what_a_model_writes_is_text(page: Any, stub: Stub) -> None:
    attack = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
    stub.answer = lambda body: [attack, "\n\n[go](javascript:window.hit=1) ", attack[:30]]
    ask(page, attack)
    assert attack in answers(page)[0]
    assert questions(page) == [attack]
    page.reload()
    assert attack in answers(page)[0]
    assert page.locator("#messages :is(script, img, a)").count() == 0
    assert page.evaluate("window.hit") is None


@pytest.mark.parametrize("error", [Refusal(429, "too many requests; wait"), BreaksOff()])
@pytest.mark.parametrize("when", ["at once", "later"])
def test_errors_are_shown_and_tried_again(
    browser: Any, stub: Stub, error: BreaksOff | Refusal, when: str
) -> None:
    def answer(body: dict[str, Any]) -> Iterator[str]:
        if when == "later":
            yield "a part"
        raise error

    stub.answer = answer
    with opened(browser, stub.url, ("429", "net::ERR")) as page:
        ask(page, "A question")
        page.wait_for_selector("[role=alert]")
        said = str(error) or "The server cannot be reached, or its answer broke off."
        assert said in page.inner_text("[role=alert]")
        assert answers(page) == ["a part" if when == "later" else ""]
        stub.answer = lambda body: ["the answer"]
        press(page, "Try again")
        assert answers(page) == ["the answer"]
        assert contents(stub.requests[1]) == [("user", "A question")]


def test_a_question_without_an_answer_is_not_sent_again(browser: Any, stub: Stub) -> None:
    def answer(body: dict[str, Any]) -> NoReturn:
        raise Refusal(500, "broken")

    stub.answer = answer
    with opened(browser, stub.url, ("500",)) as page:
        ask(page, "Lost")
        page.wait_for_selector("[role=alert]")
        stub.answer = lambda body: ["fine"]
        ask(page, "Found")
        answers(page)
    assert contents(stub.requests[1]) == [("user", "Found")]


def test_the_key(browser: Any, stub: Stub) -> None:
    stub.key = "secret"
    with opened(browser, stub.url, ("401",)) as page:
        assert "API key" in page.inner_text("#toast")
        ask(page, "Let me in")
        page.wait_for_selector("dialog[open]")
        assert page.evaluate("document.activeElement.id") == "key"
        assert page.get_attribute("#key", "type") == "password"
        page.keyboard.type("secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("option >> text=qwen-tiny-adapter", state="attached")
        assert not page.is_visible("dialog")
        press(page, "Try again")
        assert answers(page) == ["Hi."]
        page.reload()
        page.wait_for_selector("option >> text=qwen-tiny-adapter", state="attached")


def test_settings_are_sent_and_kept(page: Any, stub: Stub) -> None:
    page.click("#open-settings")
    page.fill("[name=temperature]", "0.5")
    page.fill("[name=top_k]", "7")
    page.fill("[name=top_p]", "3")  # not possible: not sent
    page.fill("[name=seed]", "12")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    page.select_option("#model", "qwen-tiny-adapter")
    ask(page, "Hello")
    answers(page)
    page.reload()
    page.click("#new")
    ask(page, "Again")
    answers(page)
    for request in stub.requests:
        assert contents(request)[0] == ("system", "Be brief.")
        del request["messages"]
        sampling = {"temperature": 0.5, "top_k": 7, "seed": 12}
        assert request == {"model": "qwen-tiny-adapter", **STREAMED, **sampling}


def test_an_answer_says_what_it_took(page: Any, stub: Stub) -> None:
    def answer(body: dict[str, Any]) -> Iterator[str]:
        for _ in range(12):
            yield "word "
            threading.Event().wait(0.005)

    stub.answer = answer
    ask(page, "A question of six words, this")
    answers(page)
    said = page.inner_text(".toolbar .note")
    assert re.fullmatch(r"12 tokens, [\d,.]+ a second · 18 of 8,192 of the window", said)
    page.reload()
    assert page.inner_text(".toolbar .note") == said


def test_empty_settings_show_what_is_in_force(page: Any, stub: Stub) -> None:
    page.click("#open-settings")
    shown = lambda name: page.get_attribute(f"[name={name}]", "placeholder")
    assert [shown("temperature"), shown("top_k"), shown("top_p")] == ["0.7", "20", "default"]
    assert [shown("max_tokens"), shown("seed")] == ["all that fit", "random"]
    page.select_option("#language", "zh")
    assert [shown("temperature"), shown("seed")] == ["0.7", "随机"]


@pytest.mark.parametrize(("status", "help"), [(429, "try again in a moment"), (503, "Try again")])
def test_errors_say_what_helps(browser: Any, stub: Stub, status: int, help: str) -> None:
    def answer(body: dict[str, Any]) -> NoReturn:
        raise Refusal(status, "the server's own words;")

    stub.answer = answer
    with opened(browser, stub.url, (str(status),)) as page:
        ask(page, "A question")
        page.wait_for_selector("[role=alert]")
        said = page.inner_text("[role=alert]")
        assert said.startswith("the server's own words; ")
        assert help in said


def test_languages_and_themes(browser: Any, stub: Stub) -> None:
    with opened(browser, stub.url, locale="zh-CN", color_scheme="dark") as page:
        background = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert page.get_attribute("#query", "placeholder") == "输入消息"
        dark = background()
        page.click("#theme")
        assert background() != dark
        page.click("#open-settings")
        page.select_option("#language", "en")
        assert page.inner_text("#settings-title") == "Settings"
        page.select_option("#theme-choice", "")
        assert background() == dark
        page.reload()
        assert page.get_attribute("#query", "placeholder") == "Message"
        assert page.get_attribute("html", "lang") == "en"


def test_keyboard(page: Any, stub: Stub) -> None:
    page.keyboard.type("one")  # the page begins there
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true})"
    page.evaluate(f"document.querySelector('#query').dispatchEvent({composing})")
    assert stub.requests == []
    page.keyboard.press("Enter")
    answers(page)
    assert contents(stub.requests[0]) == [("user", "one\ntwo")]
    page.reload()
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.ariaLabel || document.activeElement.id"))
    assert {"new", "Export", "Delete", "Model", "Settings", "Copy", "Another answer"} <= seen


def test_phone(browser: Any, stub: Stub) -> None:
    stub.answer = lambda body: ["```\n" + "long " * 80 + "\n```\n\n" + "x" * 300]
    screen = {"width": 360, "height": 640}
    with opened(browser, stub.url, viewport=screen, has_touch=True, is_mobile=True) as page:
        page.tap("#query")
        for key in ("a", "Enter", "b"):  # a new line: there is no Shift on a phone
            page.keyboard.press(key)
        page.tap("#send")
        answers(page)
        assert questions(page) == ["a\nb"]
        assert page.evaluate("document.scrollingElement.scrollWidth") == 360
        assert page.evaluate("document.querySelector('#log').scrollWidth") <= 360
        page.tap("#open-sidebar")
        page.tap("#new")
        page.wait_for_function("document.querySelector('#sidebar').inert")
        assert questions(page) == []


def test_models_come_and_go(page: Any, stub: Stub) -> None:
    """The list is what the server has when somebody comes back to the page; the choice stays."""
    page.locator("#model").select_option("qwen-tiny-adapter")
    stub.models = ["qwen-tiny", "another", "qwen-tiny-adapter"]
    page.evaluate("dispatchEvent(new Event('focus'))")
    page.locator("#model option", has_text="another").wait_for(state="attached")
    assert page.locator("#model").input_value() == "qwen-tiny-adapter"
