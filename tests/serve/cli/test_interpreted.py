"""Answers with code on the way, in the terminal."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from rich.console import Console

from qwen_jax.conversation import chat_prompt
from qwen_jax.decoding.completion import Completion, text_tokenizer
from qwen_jax.nn.model import Qwen
from serve.cli.client import Answer, Remote
from serve.cli.conversation import Chat
from serve.cli.interpreted import Interpreted
from serve.cli.local import Local
from tests.serve.stub import Stub

CALL = "Thought: So.\nAction: code_interpreter\nAction Input:\n```py\n{}\n```\n"


class Reciter:
    """Computes with code, and knows the answer once it has seen what that shows."""

    name = "reciter"

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        return dict(changes)

    def answer(self, *asked: Any) -> Iterator[Answer]:
        self.asked.append(asked)
        begun = asked[5]
        if not begun:
            yield Answer(CALL.format("x = 7 ** 7"), 5, "stop")
        elif "823543" not in begun:
            yield Answer(CALL.format("print(x)"), 6, "stop")
        else:
            yield Answer(" I know.\nFinal Answer: 823543", 7, "stop")


def test_code_on_the_way() -> None:
    source = Reciter()
    *_, answer = Interpreted(source).answer("7**7?", [("a", "b")], "s", 1, {"stop": ["x"]})
    shown = "stdout:\n\n```\n823543\n\n```"
    assert answer.text.endswith(f"{shown}\nThought: I know.\nFinal Answer: 823543")
    assert (answer.tokens, answer.finish_reason) == (18, "stop")
    assert [asked[5].count("\nObservation:") for asked in source.asked] == [0, 1, 2]
    query, history, system, seed, changes, _ = source.asked[2]
    assert (history, system, seed) == ([("a", "b")], "s", 1)
    assert query.endswith("Begin!\n\nQuestion: 7**7?")
    assert changes == {"stop": ("x", "Observation:")}


def test_code_that_never_ends_is_run_eight_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_jax.sandbox.interpreter.observe", lambda *_: "again")
    source = Reciter()
    list(Interpreted(source).answer("?", [], None, 1, {}))
    assert len(source.asked) == 8


@pytest.mark.parametrize("consent", [True, False])
def test_the_command(consent: bool) -> None:
    lines, screen, source = iter([":code 7**7?", ":code", ":q"]), io.StringIO(), Reciter()
    interpreter = Interpreted(source) if consent else None
    console = Console(file=screen, width=80)
    talk = Chat(source, console, lambda: next(lines), interpreter=interpreter)
    talk.run()
    told = " ".join(screen.getvalue().split())
    if consent:
        assert "Final Answer: 823543" in told
        assert "error: the question is empty" in told
        assert [query for query, _ in talk.history] == ["7**7?"]
    else:
        assert "start with --run-generated-code" in told
        assert not source.asked


def test_an_answer_goes_on_where_it_was(babbler: Qwen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the text that it has begun with, here and at a server."""
    asked: list[Any] = []

    def answers(params: Qwen, prompts: Any, *_: Any, **how: Any) -> Iterator[list[Completion]]:
        asked.extend(prompts)
        yield [Completion(text="!")]

    monkeypatch.setattr("serve.cli.local.answers", answers)
    list(Local(babbler, "random").answer("q", [], None, 1, {}, "so far"))
    ids, _ = chat_prompt(babbler, "q")
    assert asked == [[*ids, *text_tokenizer(babbler).encode("so far")]]
    with Stub() as stub:
        list(Remote(stub.url, None).answer("q", [], None, 3, {}, "so far"))
        (sent,) = stub.requests
    assert sent["messages"][-1] == {"role": "assistant", "content": "so far"}
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
