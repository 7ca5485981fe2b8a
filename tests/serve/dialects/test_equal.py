"""One conversation, three dialects: the same prompt and the same answer, streamed or not."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from serve.engine.operations import Prefill
from tests.serve.conftest import Running, Serve
from tests.serve.dialects.events import sent
from tests.serve.dialects.spoken import CHAT, DIALECTS
from tests.serve.dialects.test_responses import ANSWER
from tests.serve.text.test_thinking import HYBRID
from tests.serve.text.test_tools import TIME

# tells apart whatever a template can, but for the ids of calls, which are new in every answer
TEMPLATE = HYBRID.replace("{{ m.content }}", "{{ m.reasoning_content }}|{{ m.content }}").replace(
    "{{ m.tool_calls | tojson }}",
    "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}",
)
words = st.sampled_from(["hi", "a b", "the dog\n", "你好", "<|im_end|>", "{}"])
called = st.sampled_from([("weather", {"city": "Rome"}), ("time", {})])
# an assistant's turn: what it thought, said and called; what is called is answered
turn = st.tuples(words, st.none() | words, words, st.lists(called, max_size=2))
silent = st.tuples(words, st.none() | words, st.just(""), st.lists(called, min_size=1, max_size=2))
CONVERSATION = st.fixed_dictionaries(
    {
        "system": st.just("") | words,
        "turns": st.lists(turn | silent, max_size=2),
        "last": words,
        "parts": st.booleans(),
        "tools": st.booleans(),
        "choice": st.sampled_from([None, "auto", "none", "required", "weather"]),
        "parallel": st.booleans(),
        "thinking": st.sampled_from(["usual", "off", "none", "high"]),
        "schema": st.sampled_from([None, None, False, True]),  # whether it is strict
        "stop": st.sampled_from([[], [], ["see"], ["So", "}"]]),
        "sampling": st.sampled_from([{}, {"temperature": 0.5, "top_p": 0.9, "top_k": 7}]),
    }
)


@pytest.fixture(scope="module")
def server(scripted: Serve) -> Iterator[Running]:
    with scripted(ANSWER, TEMPLATE, length=2048, chunk=2048) as running:
        yield running


def asked(running: Running) -> tuple[list[int], list[float]]:
    """The ids that the device was last given, from the beginning, and how to choose the next."""
    *_, last = (op.pieces[-1] for op in running.script.log if isinstance(op, Prefill))
    heard = running.script.state[last.slot].heard[: last.prompt_length]
    how = last.settings
    return list(heard), [float(one[0]) for one in (how.temperature, how.top_p, how.top_k)]


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(CONVERSATION)
def test_dialects_are_equal(server: Running, said: Any) -> None:
    """Also where the conversation goes on with what each has answered."""
    bodies = [dialect.body(said) for dialect in DIALECTS]
    for question in ("and", None):
        found, answers = [], []
        for dialect, body in zip(DIALECTS, bodies, strict=True):
            answer = server.http.post(dialect.path, json=body)
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())
            found.append((asked(server), dialect.read(answers[-1])))
            usage = {"stream_options": {"include_usage": True}} if dialect is CHAT else {}
            events = sent(server.url + dialect.path, body | usage)
            streamed = dialect.whole([event for _, event in events])
            found.append((asked(server), dialect.read(streamed)))
        assert all(one == found[0] for one in found), found
        if any("INVALID_JSON" in arguments for _, arguments in found[0][1][2]):
            break  # what was cut is under a name of its own there
        if question is not None:
            bodies = [
                dialect.further(body, answer, question)
                for dialect, body, answer in zip(DIALECTS, bodies, answers, strict=True)
            ]


COMPLETE, RESPONSES, MESSAGES = (dialect.path for dialect in DIALECTS)
TEXT, GENERATE = "/v1/completions", "/generate"
SAY: Any = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
BAD: Any = {"type": "object", "properties": {"n": {"enum": ["x" * 70_000]}}}
FORM = {"type": "json_schema", "name": "x", "schema": BAD, "strict": True}
PATTERN = {"type": "object", "properties": {"n": {"type": "string", "pattern": "("}}}
CALL = {"name": "f", "parameters": PATTERN, "strict": True}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": BAD, "strict": True}}
FAULTS: list[tuple[str, Any, str]] = [
    (TEXT, {"response_format": SCHEMA}, "response_format"),
    (TEXT, {"response_format": {"type": "ebnf", "grammar": "root ::= ("}}, "response_format"),
    (TEXT, {"regex": "("}, "regex"),
    (TEXT, {"ebnf": "root ::= ("}, "ebnf"),
    (TEXT, {"grammar": "root ::= ("}, "grammar"),
    (TEXT, {"json_schema": "{"}, "json_schema"),
    (TEXT, {"guided_regex": "("}, "guided_regex"),
    (TEXT, {"guided_json": "[]"}, "guided_json"),
    (TEXT, {"guided_grammar": "root ::= ("}, "guided_grammar"),
    (TEXT, {"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    (TEXT, {"structured_outputs": {"json": "1"}}, "structured_outputs.json"),
    (TEXT, {"regex": "a", "ebnf": "b"}, "regex and ebnf"),
    (COMPLETE, {"guided_regex": "("}, "guided_regex"),
    (COMPLETE, {"tools": [{"type": "function", "function": TIME}], "regex": "("}, "regex"),
    (COMPLETE, {"functions": [CALL]}, "functions"),
    (RESPONSES, {"tools": [{"type": "function", **CALL}]}, "tools"),
    (RESPONSES, {"text": {"format": FORM}}, "text.format"),
    (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": BAD}}}, "output_co"),
    (MESSAGES, {"output_format": {"type": "json_schema", "schema": BAD}}, "output_format"),
    (GENERATE, {"grammar": {"type": "regex", "value": "("}}, "parameters.grammar"),
    (GENERATE, {"stop_token_ids": [9999]}, "parameters.stop_token_ids"),
]


@pytest.mark.parametrize(("path", "asked", "field"), FAULTS)
def test_a_fault_names_what_the_client_sent(
    server: Running, path: str, asked: Any, field: str
) -> None:
    usual: Any = {TEXT: {"prompt": "hi"}, RESPONSES: {"input": "hi"}, GENERATE: {"inputs": "hi"}}
    body = {"parameters": asked} if path == GENERATE else asked
    answer = server.http.post(path, json=usual.get(path, SAY) | body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    message = error if path == GENERATE else error["message"]
    assert message.removeprefix("the body: ").startswith(field), message
    assert path in (GENERATE, MESSAGES) or error["param"] in (field, None)
