"""Replies and the letter the original's rules read in them, its oddities among them."""

import pytest

from qwen_jax.evaluate.tasks import letters

ENGLISH = {"A": "the red car", "B": "a red car.", "C": "None", "D": "42"}
CHINESE = {"A": "不保证可靠", "B": "既不保证可靠", "C": "红色", "D": "四十二。"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The answer is B.", "B"),
        ("The correct answer would be: C", "C"),
        ("I choose D", "D"),
        ("The answer is not A, it is B", "A"),  # "not" stands behind "is": read as a choice
        ("The answer isn't A. B is right", "B"),
        ("C is correct", "C"),
        ("B isn't correct, D is right.", "D"),
        ("A", "A"),
        ("A. because", "A"),
        ("Well, (D) then", "D"),
        ("I think it is 42", "D"),  # the choice's text becomes its letter
        ("a RED car", "B"),  # without its full stop, in any capitals
        ("The red car and none", "A"),
        ("A red car is what the red car is", "B"),
        ("forty-two or so, i.e. 4 2", "D"),  # no letter at all: the text most like it
        ("", "A"),
    ],
)
def test_english(reply: str, letter: str) -> None:
    assert letters.english(reply, ENGLISH) == letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("答案是C。", "C"),
        ("应该选B选项", "B"),
        (
            "答案不是A，而是D。",
            "A",
        ),  # the rule that heeds 不 finds nothing, the first letter stands
        ("A选项不正确，B项符合题意", "B"),
        ("（D）", "D"),
        ("我认为 C", "C"),
        ("既不保证可靠", "B"),  # the longest choice first
        ("传输层的面向连接服务的特性是四十二", "D"),  # the question's words, then the choice
        ("没有", "A"),
    ],
)
def test_chinese(reply: str, letter: str) -> None:
    question = "传输层的面向连接服务的特性是____。"
    assert letters.chinese(reply, question, CHINESE) == letter
