import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pexpect import fdpexpect
from rich.console import Console

import qwen_jax
from qwen_jax.nn.model import Qwen
from serve.cli.client import Answer, Remote, ServerError
from serve.cli.conversation import SETTINGS, Chat
from serve.cli.local import Local
from tests.serve.stub import BreaksOff, Refusal, Stub


class Parrot:
    """A source that repeats what it is asked, word by word."""

    name = "parrot"

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        if changes.get("top_k") == -1:
            raise ValueError("top_k is -1, expected more")
        return dict(changes)

    def answer(
        self,
        query: str,
        history: Sequence[tuple[str, str]],
        system: str | None,
        seed: int,
        changes: Mapping[str, Any],
        begun: str = "",
    ) -> Iterator[Answer]:
        self.asked.append((query, tuple(history), system, seed, dict(changes)))
        if query == "break":
            raise ServerError("it broke")
        text = ""
        for count, word in enumerate(query.split(), 1):
            if word == "interrupt":
                raise KeyboardInterrupt
            text += f"{word} "
            yield Answer(text, count)
        yield Answer(text, count, "length" if "long" in query else "stop")


@pytest.fixture
def talk() -> Callable[..., Any]:
    """talk(*lines) -> (what the source was asked, what the screen shows)"""

    def talk(*lines: Any, **how: Any) -> tuple[list[tuple[Any, ...]], str]:
        said = iter(lines)

        def read() -> str:
            line = next(said, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        source, screen = Parrot(), io.StringIO()
        Chat(source, Console(file=screen, width=80), read, **how).run()
        assert next(said, None) is None or ":q" in lines, "it ended early"
        return source.asked, screen.getvalue()

    return talk


def test_the_conversation_goes_on(talk: Callable[..., Any]) -> None:
    asked, shown = talk("one", " :two ", "long three", system="Be.", seed=7)
    turns = ("one", "one"), (":two", ":two")
    assert asked == [
        ("one", (), "Be.", 7, {}),
        (":two", turns[:1], "Be.", 7, {}),
        ("long three", turns, "Be.", 7, {}),
    ]
    assert "[1 tokens; the first after 0.0" in shown
    assert "[2 tokens, ended by length;" in shown


@pytest.mark.parametrize("name", [":q", ":exit", ":quit"])
def test_exit(talk: Callable[..., Any], name: str) -> None:
    talk(name, "unread") if name == ":q" else talk(name)


def test_an_interruption_ends_the_answer_and_not_the_program(talk: Callable[..., Any]) -> None:
    asked, shown = talk("a b interrupt c", KeyboardInterrupt(), "interrupt", "next")
    assert "stopped; what is shown is kept" in shown
    assert "Ctrl-D" in shown.split("kept")[1]
    assert asked[-1][:2] == ("next", (("a b interrupt c", "a b"),))


def test_errors_leave_the_conversation_as_it_was(talk: Callable[..., Any]) -> None:
    asked, shown = talk("one", "break", "", "  ", "half \ud800", "two")
    assert "error: it broke" in shown
    assert shown.count("error: the message is empty") == 2
    assert "error: the message has half of a character" in shown
    assert asked[-1][:2] == ("two", (("one", "one"),))


def test_settings_have_effect(talk: Callable[..., Any]) -> None:
    asked, shown = talk(
        ":conf temperature=0.5 top_k=3 'stop=[\"a b\"]'", "one", ":seed 5", ":conf", ":seed", "two",
        ":reset-conf", "three",
    )  # fmt: skip
    changes = {"temperature": 0.5, "top_k": 3, "stop": ["a b"]}
    assert [(seed, sampling) for _, _, _, seed, sampling in asked] == [
        (1234, changes),
        (5, changes),
        (5, {}),
    ]
    assert shown.count("seed 5") == 2
    assert re.search(r"temperature +0.5 *\n", shown)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (":conf temperature", "got 'temperature', wanted name=value"),
        (":conf heat=1", "got 'heat=1', wanted name=value with one of temperature,"),
        (":conf top_k=__import__('os')", "wanted a number or a list"),
        (":conf top_k=-1", "top_k is -1"),
        (":conf stop='", "a quotation mark has no second"),
        (":conf top_k=" + "(" * 300, "wanted a number or a list"),
        (":seed x", "got the seed 'x'"),
        (":seed -1", "got the seed '-1', wanted a whole number 0 to 9223372036854775807"),
        (f":seed {2**63}", "wanted a whole number 0 to 9223372036854775807"),
        (":seed " + "9" * 5000, "wanted a whole number 0 to 9223372036854775807"),
        (":clh 3", "got '3' behind :clh, which takes nothing"),
        (":hlp", "there is no command :hlp"),
    ],
)
def test_wrong_commands_are_refused_and_change_nothing(
    talk: Callable[..., Any], line: str, error: str
) -> None:
    asked, shown = talk(line, "one", ":D")
    assert error in " ".join(shown.split())
    assert [one[3:] for one in asked] == [(1234, {})] * 2
    assert asked[1][0] == ":D"  # no command


def test_a_text_that_ends_the_answer(talk: Callable[..., Any]) -> None:
    asked, _ = talk(":conf stop=END", "one")
    assert asked[0][4] == {"stop": ("END",)}


def test_history_and_help(talk: Callable[..., Any]) -> None:
    asked, shown = talk(
        "one", ":his", ":clh", ":history", ":cl", "two", ":h", ":system Be.", "three", ":system -",
        "four",
    )  # fmt: skip
    assert re.search(r"History \(1\).*User\[0\]: one\nQwen\[0\]:\none\n", shown, re.S)
    assert "1 turns forgotten" in shown
    assert "History (0)" in shown
    assert asked[1][1] == ()
    assert [system for _, _, system, _, _ in asked] == [None, None, "Be.", None]
    for name in "help code exit clear clear-history history seed conf reset-conf system".split():
        assert f":{name}" in shown


def test_a_server_behind_it() -> None:
    """What is sent, what is read, and every way in which it goes wrong."""
    with Stub(lambda body: ["a", " b\u2028", "c"]) as stub:
        remote = Remote(stub.url + "/", None)
        changes = {"max_new_tokens": 5, "top_k": 2}
        assert remote.settings(changes) == changes
        for wrong in ({"top_p": 5}, {"max_new_tokens": 0}, {"stop": [1]}, {"temperature": "x"}):
            with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*expected"):
                remote.settings(wrong)
        *_, answer = remote.answer("q", [("x", "y")], "s", 3, changes)
        assert answer == Answer("a b\u2028c", 3, "stop")
        (sent,) = stub.requests
        assert [m["role"] for m in sent["messages"]] == ["system", "user", "assistant", "user"]
        del sent["messages"]
        rest = {"stream": True, "stream_options": {"include_usage": True}}
        assert sent == {"model": "qwen-tiny", "seed": 3, "max_tokens": 5, "top_k": 2, **rest}
        for error, said in [(Refusal(400, "no top_k"), "no top_k"), (BreaksOff(), "disconnected")]:

            def fail(body: dict[str, Any], error: Exception = error) -> NoReturn:
                raise error

            stub.answer = fail
            with pytest.raises(ServerError, match=said):
                list(remote.answer("q", [], None, 0, {}))
        with pytest.raises(ServerError, match="model 'x'"):
            Remote(stub.url, "x")
        stub.key = "secret"
        with pytest.raises(ServerError, match=r"HTTP 401.*QWEN_API_KEY"):
            Remote(stub.url, None)
    with pytest.raises(ServerError, match="onnect"):
        Remote(stub.url, None)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stub() as stub:
        stub.key = "secret"
        monkeypatch.setenv("QWEN_API_KEY", "secret")
        assert Remote(stub.url, "qwen-tiny-adapter").name == "qwen-tiny-adapter"


def test_a_model_behind_it(babbler: Qwen) -> None:
    local = Local(babbler, "random")
    changes = {"temperature": 0, "max_new_tokens": 4}
    settings = local.settings(changes)
    assert set(SETTINGS) <= set(settings)
    assert (settings["temperature"], settings["max_new_tokens"]) == (0, 4)
    *_, answer = local.answer("Hi", [("a", "b")], "s", 1, changes)
    sampling = qwen_jax.Sampling(repetition_penalty=settings["repetition_penalty"], temperature=0)
    how: dict[str, Any] = {"system": "s", "sampling": sampling, "max_new_tokens": 4}
    assert answer.text.strip() == qwen_jax.chat(babbler, "Hi", [("a", "b")], **how)[0]
    assert (answer.tokens, answer.finish_reason) == (4, "length")
    for wrong in ({"top_p": 2}, {"max_new_tokens": 0}, {"max_new_tokens": True}):
        with pytest.raises(ValueError, match="expected"):
            local.settings(wrong)


def test_in_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program as users have it: keys, several lines, Ctrl-C, and its history of inputs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")

    def endless(body: dict[str, Any]) -> Iterator[str]:
        while True:
            yield "more "
            stub.left.wait(0.05)

    with Stub() as stub:
        ours, theirs = pty.openpty()
        command = ["setsid", "--ctty", sys.executable, "-m", "serve.chat", "--url", stub.url]
        program = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        child = fdpexpect.fdspawn(ours, encoding="utf-8", timeout=60)
        child.expect("Ctrl-D exits")
        child.expect("User>")
        child.send("one\ntwo\r")  # \n is Ctrl+J
        child.expect("1 tokens")
        stub.answer = endless
        child.expect("User>")
        child.send("go on\r")
        child.expect("more more more")
        child.send("\x03")
        child.expect("stopped; what is shown is kept")
        assert stub.left.wait(10)
        stub.answer = lambda body: ["done"]
        child.expect("User>")
        child.send("\x03")
        child.expect("ends the conversation")
        child.expect("User>")
        child.send("\x1b[A\r")  # up: the last message again
        child.expect("done")
        child.expect("User>")
        child.send("\x04")
        assert program.wait(30) == 0
        child.close()
    said = [message["content"] for message in stub.requests[-1]["messages"]]
    assert said[0] == "one\ntwo"
    assert said[3].startswith("more more")
    assert said[4] == "go on"
    (history,) = tmp_path.rglob("chat_history")
    assert history.stat().st_mode & 0o077 == 0
