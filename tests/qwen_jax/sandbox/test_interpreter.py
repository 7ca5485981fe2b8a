"""What of a model's words is code, and what stands behind it when it has run."""

import pytest

from qwen_jax.sandbox.interpreter import code_of, turn


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("```py\nx = 1\n```", "x = 1\n"),
        ("so `x = 1`", "x = 1"),
        ("{'code': 'x = 1',}", "x = 1"),
        ("x = 1", "x = 1"),
        ("[1]", "[1]"),
        ("```py\n```", ""),  # nothing in three, so what is in the first two
        ("no ```fence", ""),
        ("`" * 2**16, ""),
    ],
)
def test_code_of_a_call(given: str, code: str) -> None:
    assert code_of(given) == code


def test_turns() -> None:
    reply = "Thought: So.\nAction: code_interpreter\nAction Input:\n```py\n{}\n```\n".format
    first = turn("", reply("x = 5\nprint('once')"), 9)
    assert first.text.endswith("```\nObservation: stdout:\n\n```\nonce\n\n```\nThought:")
    second = turn(first.text, reply("x"), 9)
    assert (second.shown, second.runs) == ("execute_result:\n\n```\n5\n```", 2)
    assert second.text.endswith(f"\nObservation: {second.shown}\nThought:")
    answer = " I know.\nFinal Answer: 5"
    assert turn(second.text, answer, 9) == (second.text + answer, None, 2)
    empty = turn(second.text, reply("").replace("```py", "").replace("```", ""), 9)
    assert empty.runs == 3  # so that a model which calls nothing comes to an end, too
    assert turn(empty.text, reply("x"), 9).runs == 4
    assert "ZeroDivisionError" in str(turn("", reply("1 / 0"), 9).shown)
