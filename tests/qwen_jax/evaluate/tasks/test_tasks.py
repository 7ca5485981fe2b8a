"""Every task on a few questions: what a model is asked, and that the right answer is right."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_jax.bundled import CHECKPOINT
from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.tasks import agent, latex, tools, worked
from qwen_jax.evaluate.tasks.agent_program import TOOLS
from qwen_jax.evaluate.tasks.code import body
from qwen_jax.evaluate.tasks.data import Data, NoData
from qwen_jax.evaluate.tasks.task import Question
from qwen_jax.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.load(CHECKPOINT)
    assert found is not None
    return found


def questions(task: str, data: Path) -> list[Question]:
    for name, package in (("wmt22", "sacrebleu"), ("vcsum", "jieba")):
        if task.startswith(name):
            pytest.importorskip(package)
    return list(TASKS[task].read(Data(data)))


def test_mmlu_prompt(data: Path) -> None:
    asked = questions("mmlu", data)
    assert [question.id for question in asked[:2]] == ["anatomy/0", "anatomy/1"]
    assert asked[-1].prompt.startswith(
        "The following are multiple choice questions (with answers) about formal logic.\n\n"
        'Question: Which, 0?\nA. one\nB. None\nC. a "2"\nD. more\nAnswer: A\n\nQuestion: Which, 1?'
    )
    assert asked[-1].prompt.endswith(
        'Question: What, 3?\nA. one\nB. None\nC. a "2"\nD. more\nAnswer:'
    )
    assert asked[-1].prompt.count("Answer:") == 6
    assert asked[-1].prompt.startswith(asked[-1].shared)


def test_ceval_prompt(data: Path) -> None:
    first = questions("ceval", data)[0]
    assert first.prompt.startswith("问题：什么, 0?\nA. one\n")
    assert "\nD. more\n答案：A\n\n问题：" in first.prompt
    assert first.prompt.endswith("\nD. more\n答案：")
    assert TASKS["ceval"].labels == ("A", "B", "C", "D")
    assert TASKS["mmlu"].labels == (" A", " B", " C", " D")


def test_chat_prompts(data: Path) -> None:
    assert (
        questions("ceval_chat", data)[0].prompt
        == '哪个, 0?\n\nA. one\nB. None\nC. a "2"\nD. more\n'
    )
    assert questions("mmlu_chat", data)[0].prompt.endswith(
        'the answer to this question.\n\nWhat, 0?\nA. one\nB. None\nC. a "2"\nD. more\n'
    )
    assert questions("humaneval_chat", data)[0].prompt == (
        "Write a Python function `one(x: int) -> int` to solve the following problem:\n"
        'Give\nx.\ndef one(x: int) -> int:\n    """Give\n    x."""\n'
    )


def test_gsm8k_and_bbh_prompts(data: Path) -> None:
    assert questions("gsm8k", data)[0].prompt == (
        "Question: 1 + 1?\nIt is 2.\nThe answer is 2\n"
        "\nQuestion: What is 2 + 3?\nLet's think step by step\n"
    )
    assert questions("bbh", data)[0].prompt == (
        "Follow the given examples and answer the question.\nTell.\n\n"
        "Q: Where?\nA: So the answer is (B).\n\nQ: Where, 0?\nA: "
    )
    assert [question.id for question in questions("math", data)] == ["algebra/9", "algebra/10"]


def recite(question: Question, reply: str | None = None) -> str:
    """What an agent says and codes, step by step."""
    said = ""
    for _, (right, *_) in question.facts["steps"]:
        named = ", ".join(f"`{name}`" for name in TOOLS if name in right)
        knows = f" {named}.\n\nAnswer:\n```py\n{right}\n```"
        said, _ = agent.turn(question, said, knows if reply is None else reply)
    return said


RIGHT: dict[str, Any] = {
    "mmlu_chat": lambda q: f"The answer is {q.answer}.",
    "ceval_chat": lambda q: f"答案是{q.answer}。",
    "gsm8k": lambda q: q.answer.split("#### ")[1].replace(",", ""),
    "gsm8k_chat": lambda q: "So it is " + q.answer.split("#### ")[1],
    "math": lambda q: f"Hm.\nFinal Answer: The final answer is ${q.answer}$. I hope it is correct.",
    "bbh": lambda q: f"Thinking. So the answer is {q.answer}.",
    "humaneval": lambda q: "    return x\n",
    "humaneval_chat": lambda q: "Here:\n```python\ndef one(x):\n    return x\n```",
    "mbpp": lambda q: f"def f():\n    return {q.id}\n[DONE]",
    "tool_selection": lambda q: q.answer,
    "tool_input": lambda q: q.answer,
    "interpreter_math": lambda q: f"I see.\nFinal Answer: It is {q.answer.split('#### ')[1]}.",
    **dict.fromkeys(
        [f"interpreter_{tag}_runs" for tag in ("math", "visualization", "general")],
        lambda q: "Thought: So.\nAction: code_interpreter\nAction Input: `x = 1`\n",
    ),
    **{f"agent_{mode}_{one}": recite for mode in ("run", "chat") for one in agent.METRICS},
    **dict.fromkeys(("wmt22_zh_en", "wmt22_en_zh"), lambda q: f" {q.answer}"),
    "vcsum": lambda q: q.answer,
    "leval_coursera": lambda q: q.answer,
    "leval_gsm": lambda q: f"So many. The answer is {q.answer}.",
    "leval_quality": lambda q: q.answer,
    "leval_tpo": lambda q: f"{q.answer}. Indeed.",
    "leval_codeu": lambda q: f"I think the final output is {q.answer} and no more.",
    "leval_sci_fi": lambda q: f"It is {q.answer}.",
    "tool_false_positive": lambda q: "Thought: I look.\nAction: search\nAction Input: {}",
}


@pytest.mark.parametrize("task", RIGHT)
def test_recited_answers_are_right_and_others_are_not(
    task: str, data: Path, tokenizer: Tokenizer
) -> None:
    judge = TASKS[task].judge
    assert judge is not None
    for question in questions(task, data):
        recited = RIGHT[task](question)
        if task == "gsm8k" and question.answer.endswith("-3"):
            recited, wanted = "-3", 0.0  # the original reads no sign
        else:
            wanted = 1.0
        assert judge(question, recited, tokenizer) == pytest.approx(wanted), question.id
        wrong = "Sorry, 7 times no: F."
        if task in ("mmlu_chat", "ceval_chat"):  # any reply becomes a letter, as in the original
            other = "BCDA"["ABCD".index(question.answer)]
            wrong = RIGHT[task](dataclasses.replace(question, answer=other))
        if task.startswith("agent_"):  # a few tools too many or too few cost a part only
            every = "".join(f"`{name}` " for name in TOOLS)
            used = task.endswith("used")
            wrong = recite(question, f"Answer:\n```\n{every}\n```" if used else every)
        assert judge(question, wrong, tokenizer) == 0.0


def test_every_judge_is_tried() -> None:
    assert RIGHT.keys() == {name for name, task in TASKS.items() if task.judge is not None}


@pytest.mark.parametrize(
    ("completion", "right"),
    [("the answer is 20,800", False), ("20800", True), ("020800", False), ("20800.0", False)],
)
def test_the_last_digits(completion: str, right: bool, tokenizer: Tokenizer) -> None:
    question = Question("", "", "#### 20,800")
    assert worked.judge_last_digits(question, completion, tokenizer) == right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("so 20,800.", True),
        ("$20,800.00", True),
        ("20800 of 1", False),
        ("none", False),
        ("-20,800", False),
        ("+20800", True),
    ],
)
def test_the_last_number(reply: str, right: bool, tokenizer: Tokenizer) -> None:
    question = Question("", "", "#### 20,800")
    assert worked.judge_last_number(question, reply, tokenizer) == right


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("1/2", r"\frac{1}{2}"),
        ("1,000", "1000"),
        (r"\left( 3, 4 \right)", "(3,4)"),
        (r"\text{even}", "even"),
        ("x = 5", "5"),
        (".5", "0.5"),
        (r"90^\circ", "90"),
        (r"\sqrt2", r"\sqrt{2}"),
        (r"10\text{ cents}", "10"),
    ],
)
def test_equal_answers_in_latex(one: str, other: str) -> None:
    assert latex.same(one, other)


def test_boxed() -> None:
    assert latex.boxed(r"\boxed{1} and \boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert latex.boxed(r"\boxed{open") is None
    assert latex.boxed("none") is None
    assert latex.final(r"The final answer is $\pi$. Yes.") == r"\pi"


def test_bodies_of_functions() -> None:
    fenced = (
        "Sure:\n```python\nimport re\ndef other():\n    pass\n\ndef f(x):\n    return x\n```\nDone"
    )
    assert body(fenced, "f") == "    return x"
    assert (
        body("def f(x):\n    y = x\n\n    return y\nand more", "f") == "    y = x\n\n    return y"
    )
    assert body("return x", "f") == "    return x"


def test_rouge() -> None:
    assert tools.rouge_l("a b c".split(), "a c".split()) == pytest.approx(0.8)
    assert tools.rouge_l([], ["a"]) == 0.0
    assert tools.call("Thought\nAction: F\nAction Input: {'a': 1,}\n").input == '{"a": 1}'
    assert tools.call("no call").input == ""


def test_what_is_missing_is_named(data: Path, tmp_path: Path) -> None:
    for name, task in TASKS.items():
        if name.startswith("humaneval"):  # an installed package may bring it
            continue
        with pytest.raises(NoData, match=r"there is no .*get it from http"):
            list(task.read(Data(tmp_path)))
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps({"question": 1}) + "\n{")
    with pytest.raises(ValueError, match="'answer' is None"):
        list(TASKS["gsm8k_chat"].read(Data(tmp_path)))


def test_only_line_breaks_end_lines(data: Path, tmp_path: Path) -> None:
    """Other separators of Unicode stand in texts."""
    odd = "one\u2028two\x85three\x1cfour"
    (tmp_path / "gsm8k").mkdir()
    row = json.dumps({"question": odd, "answer": "#### 1"}, ensure_ascii=False)
    (tmp_path / "gsm8k/test.jsonl").write_text(f"{row}\r\n\n{row}\n", "utf-8")
    found = list(TASKS["gsm8k_chat"].read(Data(tmp_path)))
    assert [question.prompt for question in found] == [odd, odd]
    (tmp_path / "mmlu/test").mkdir(parents=True)
    file = tmp_path / "mmlu/test/anatomy_test.csv"
    file.write_bytes(f'{odd},a,b,"c\r\nc",d,A\r\n'.encode())
    (question,) = TASKS["mmlu_chat"].read(Data(tmp_path))
    assert f"{odd}\nA. a\nB. b\nC. c\r\nc\nD. d\n" in question.prompt
