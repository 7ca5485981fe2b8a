"""The code interpreter: what a model is asked, what of its replies is run, and what that says."""

import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pytest

from qwen_jax import load
from qwen_jax.decoding.completion import Completion
from qwen_jax.evaluate import asking
from qwen_jax.evaluate.answering import Asked
from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.run import evaluate
from qwen_jax.evaluate.tasks import interpreter
from qwen_jax.evaluate.tasks.data import Data, NoData
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh
from qwen_jax.sandbox.program import missing
from qwen_jax.sandbox.program_guard import MACHINES
from qwen_jax.text.tokenizer import Tokenizer

RUNS = [f"interpreter_{tag}_runs" for tag in ("math", "visualization", "general")]
walls = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MACHINES or bool(missing()),
    reason="this system does not give all walls",
)


def call(code: str) -> str:
    return f"Thought: I compute.\nAction: code_interpreter\nAction Input:\n```py\n{code}\n```\n"


@pytest.fixture(scope="module")
def params() -> Qwen:
    return load("demo", make_mesh(devices=jax.devices()[:1]), dtype="float32")


def test_prompts_are_the_original_s_word_for_word(data: Path) -> None:
    """Hashes of what its own classes make."""
    turns = (
        "u<|im_end|>\n<|im_start|>assistant\nThought: x\nAction: code_interpreter\nAction Input:\n"
        "```py\nprint(1)\n```\nObservation: ok\nThought: done.<|im_end|>\n<|im_start|>user\nnow"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    for query, start in (
        ("How many? \n", "bd007169"),
        ("[上传文件b.csv, c.csv]画图", "4d4a5893"),
        ("[Upload file x.csv]plot", "dd379611"),
        (turns, "cb8138ac"),
    ):
        made = interpreter.prompt(query)
        assert hashlib.sha256(made.encode()).hexdigest().startswith(start)
    (asked,) = TASKS["interpreter_general_runs"].read(Data(data))
    assert (
        "\nQuestion: [Upload file table.csv]How many rows?<|im_end|>\n<|im_start|>" in asked.prompt
    )


def test_which_calls_count() -> None:
    two = call("x = 1") + "Observation: 1\nThought: more" + call("x = 2")[9:]
    assert interpreter.codes(two, first=True) == "# concat\nx = 1\n\n"
    assert interpreter.codes(two, first=False).count("# concat") == 2
    assert interpreter.codes("Final Answer: 1", first=True) == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 1234.5.", 1234.5),
        ("It is 20,800.", 20.0),  # to the comma
        ("It is $7", 7.0),
        ("stdout:\n\n```\n42\n```", None),  # behind a line break it is none
        ("3 of 4 apples\n5", 4.0),
        ("-3 or -4", -4.0),
        ("12.50 euros", None),  # no last zero behind the point
        ("a . b", None),
    ],
)
def test_last_number(text: str, number: float | None) -> None:
    assert interpreter.last_number(text) == number


@walls
@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (call("print(open('table.csv').read())"), 1.0),
        (call("def solution():\n    return open('none')"), 0.0),  # it is called
        (call("if __name__ == '__main__':\n    1 / 0"), 1.0),
        (call("x = 1") + "Observation:" + call("1 / 0"), 1.0),  # the first alone counts
        (call("open('table.csv', 'w')"), 0.0),
        (call("while True: pass"), 0.0),
        (call("raise SystemExit"), 0.0),
        ("Final Answer: none", 0.0),
    ],
)
def test_code_that_runs(
    reply: str, score: float, data: Path, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "_STARTS", 1)
    (question,) = TASKS["interpreter_general_runs"].read(Data(data))
    seconds = 1 if "while" in reply else 20
    found = interpreter.judge_runs(question, reply, small, first=True, seconds=seconds)
    assert found == score
    assert (data / "code_interpreter/upload_file_clean/table.csv").read_text() == "a,b\n1,2\n"


@walls
def test_what_a_conversation_has_run_already(data: Path, small: Tokenizer) -> None:
    (question,) = TASKS["interpreter_visualization_runs"].read(Data(data))
    judge = TASKS["interpreter_visualization_runs"].judge
    assert judge is not None
    assert judge(question, call("assert rows == 3"), small) == 1.0
    assert judge(question, call("assert rows == 4"), small) == 0.0


@walls
def test_a_model_that_recites_scores_everything_and_a_hostile_one_nothing(
    params: Qwen, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole evaluation; of the model only its words are made up."""
    hostile = f"import os\nos.kill({os.getpid()}, 9)\nopen('{tmp_path}/evil', 'w')"
    numbers = {"2 + 3": "5", "20,000 + 800": "20,800", "1 - 4": "-3"}
    prompts: list[str] = []
    encode = asking._ids

    def ids(tokenizer: Tokenizer, text: str) -> list[int]:
        prompts.append(text)
        return encode(tokenizer, text)

    def answers(
        code: str, model: Any, asked: Sequence[Asked], batch: int
    ) -> Iterator[tuple[int, Completion]]:
        texts = prompts[-len(asked) :]
        for place, text in reversed(list(enumerate(texts))):
            question = text.rsplit("Question: ", 1)[1]
            number = next((n for words, n in numbers.items() if words in question), "0")
            seen = "\nObservation:" in text.rsplit("assistant", 1)[1]
            said = f" I see.\nFinal Answer: it is {number}." if seen else call(code or number)
            yield place, Completion([1], said, "stop")

    monkeypatch.setattr(asking, "_ids", ids)
    for code, scores in (("", [100.0] * 4), (hostile, [0.0] * 4)):
        monkeypatch.setattr(asking, "answers", partial(answers, code))
        report = evaluate(
            params,
            "demo",
            ["interpreter_math", *RUNS],
            data,
            tmp_path / f"out{len(code)}",
            run_generated_code=True,
        )
        assert [row["score"] for row in report["results"]] == scores
        assert {row["protocol"] for row in report["results"]} == {"comparable"}
    assert not (tmp_path / "evil").exists()


def test_what_is_missing_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "_PACKAGES", ("seaborn_of_no_kind",))
    for name in ("interpreter_math", *RUNS):
        with pytest.raises(NoData, match=r"seaborn_of_no_kind is not installed.*\[interpreter\]"):
            list(TASKS[name].read(Data(data)))
