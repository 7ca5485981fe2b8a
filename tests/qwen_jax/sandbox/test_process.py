"""Strangers' templates and expressions end, whatever they ask for, and spoil nothing for others."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from qwen_jax.sandbox.process import Processes, ask


@pytest.fixture(scope="module")
def hasty() -> Iterator[Processes]:
    """Which give up after a quarter of a second."""
    made = Processes(seconds=0.25)
    yield made
    made.close()


def greet(processes: Processes) -> None:
    assert processes.ask("render", "hi {{ name }}", {"name": "you"}) == ["hi you", ["name"]]


TEMPLATES = {
    "loops": "{% for a in range(9**5) %}{% for b in range(9**5) %}{% endfor %}{% endfor %}",
    "silent loops": "{% set n = namespace(x=1) %}"
    + "{% for a in range(99999) %}" * 3
    + "{% set n.x = a %}"
    + "{% endfor %}" * 3,
    "a format": "{{ '%999999999d' % 1 }}",
    "another": "{{ '{:>9999999999}'.format(1) }}",
    "a wide word": "{{ 'x'.center(10**9) }}",
    "a wide filter": "{{ 'x'|center(10**9) }}",
    "a product": "{{ 'a' * 10**9 }}",
    "a product of names": "{{ name * 10**10 }}",
    "a list": "{{ ([1] * 10**9)|length }}",
    "a power": "{{ (9 ** (9 ** 9)) % 7 }}",
    "a sum that doubles": "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x|length }}",
    "laughs": "{% set n = namespace(x=['lol']) %}{% for i in range(40) %}"
    "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "a join": "{{ (['a' * 9999] * 99999)|join('b' * 9999) }}",
    "an indent": "{{ name|tojson(indent=10**9) }}{{ [name]|tojson(indent=10**9) }}",
    "words": "{{ lipsum(n=10**7) }}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(90) }}",
    "a call without an end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "another file": "{% include '/etc/passwd' %}",
    "depth": "{{ " + "(" * 99999 + ")" * 99999 + " }}",
    "a rest that is long": "{{ 'x' * 70000000 }}",
}


@pytest.mark.parametrize("what", TEMPLATES)
def test_a_template_ends(hasty: Processes, what: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        hasty.ask("render", TEMPLATES[what], {"name": "x"})
    greet(hasty)


@pytest.mark.parametrize("expression", [".*" * 13 + "!", "(a+)+!", "(a|a)*!", "(?:a?){40}a{40}!"])
def test_an_expression_ends(hasty: Processes, expression: str) -> None:
    with pytest.raises(ValueError, match="it takes too much time"):
        hasty.ask("first_matches", [expression], ["a" * 60 + "b"] * 500, "fullmatch")


def test_long_conversations_have_longer() -> None:
    """A megabyte is rendered, in whatever letters."""
    text = "<你>" * 300_000
    source = "{% for m in messages %}{{ m.content|trim ~ (m|tojson) }}{% endfor %}"
    messages = [{"content": text}]
    rendered, reads = ask("render", source, {"messages": messages})
    assert rendered == text + '{"content": "' + text + '"}'
    assert reads == ["messages"]


def test_one_that_is_busy_delays_nobody() -> None:
    processes, said = Processes(seconds=1.0), []

    def endless() -> None:
        with pytest.raises(ValueError) as caught:
            processes.ask("render", TEMPLATES["loops"], {})
        said.append(str(caught.value))

    busy = threading.Thread(target=endless)
    busy.start()
    while not psutil.Process().children():
        time.sleep(0.01)
    greet(processes)
    assert busy.is_alive()
    busy.join()
    assert said == ["it takes too much time"]
    processes.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_ended_is_replaced(how: signal.Signals) -> None:
    processes = Processes()
    greet(processes)
    (idle,) = processes._idle
    os.kill(idle.pid, how)
    if how == signal.SIGKILL:
        idle.wait()
    greet(processes)
    assert (processes._idle == [idle]) == (how == signal.SIGINT)  # Ctrl-C is not for it
    processes.close()
