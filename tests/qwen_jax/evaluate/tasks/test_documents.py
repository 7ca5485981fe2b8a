from pathlib import Path

import pytest

from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.tasks import documents
from qwen_jax.evaluate.tasks.data import Data
from qwen_jax.evaluate.tasks.task import Question
from qwen_jax.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("task", "answer", "reply", "score"),
    [
        ("quality", "(B) Not.", "Because of B", 1.0),  # of the capitals in it, B is the first
        ("quality", "(A) So.", "nothing", 1.0),  # no letter counts as A
        ("tpo", "C", "D, not C", 0.0),
        ("coursera", "BD", "DB", 1.0),
        ("coursera", "BD", "B. b\nD. d", 1.0),
        ("coursera", "BD", "B", 0.25),
        ("coursera", "BD", "ABD", 0.0),
        ("coursera", "B", "B. b\nQuestion 2. C. d", 1.0),  # what it goes on to ask does not count
        ("gsm", "18", "The answer is $18.50", 1.0),
        ("gsm", "18", "It costs 18 dollars.\n\nNow 7.", 1.0),
        ("gsm", "18", "The answer is -18.", 1.0),  # no sign is read
        ("gsm", "18", "Eighteen", 0.0),
        ("codeu", "5.0", "the result of the code is 5", 1.0),
        ("codeu", "[1, 2]", "first [1, 2], but then one two three four [3]", 0.0),
        ("sci_fi", "False", "That is false; it would be true elsewhere", 1.0),
        ("sci_fi", "True", "Yes", 0.0),
    ],
)
def test_judges(task: str, answer: str, reply: str, score: float, small: Tokenizer) -> None:
    judge = TASKS[f"leval_{task}"].judge
    assert judge is not None
    assert judge(Question("0", "?", answer), reply, small) == score


def test_a_statement_of_a_story_is_asked_twice(data: Path) -> None:
    story, world = TASKS["leval_sci_fi"].read(Data(data))
    assert (story.answer, world.answer) == ("True", "False")
    assert story.document == "Long ago."
    assert "Long ago." in story.prompt
    assert "Long ago." not in world.prompt
    assert world.prompt.endswith("True? Based on the real world.")


def test_files_are_checked(tmp_path: Path) -> None:
    (tmp_path / "leval").mkdir()
    (tmp_path / "leval/tpo.jsonl").write_text(
        '{"input": "x", "instructions": [], "outputs": ["A"]}'
    )
    with pytest.raises(ValueError, match="0 instructions, 1 outputs"):
        list(TASKS["leval_tpo"].read(Data(tmp_path)))
    assert documents.chosen("") == "A"
