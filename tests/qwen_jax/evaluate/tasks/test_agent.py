"""Hugging Face's agent: what it is asked, and what each of its three scores counts."""

import json
from pathlib import Path

import pytest

from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.tasks import agent
from qwen_jax.evaluate.tasks.agent_program import evaluate
from qwen_jax.evaluate.tasks.data import Data
from qwen_jax.text.tokenizer import Tokenizer


def scores(mode: str, number: int, reply: str, data: Path, tokenizer: Tokenizer) -> list[float]:
    found = []
    for metric in agent.METRICS:
        task = TASKS[f"agent_{mode}_{metric}"]
        assert task.judge is not None
        found.append(task.judge(list(task.read(Data(data)))[number], reply, tokenizer))
    return found


def test_questions(data: Path) -> None:
    run = list(TASKS["agent_run_code"].read(Data(data)))
    assert [question.id for question in run] == ["0/0", "0/1", "1/0"]
    listed = run[1].prompt.split("\n")[1:15]
    assert (listed[0], listed[-1]) == (
        "- document_qa: Does document_qa.",
        "- video_generator: Does video_generator.",
    )
    assert run[1].prompt.endswith("\nTask: Say what is on `image`.\n\nI will use the following")
    chat = list(TASKS["agent_chat_code"].read(Data(data)))
    assert [question.id for question in chat] == ["0/0/1", "0/0/2", "0/1/1", "0/1/2"]
    assert chat[3].prompt.startswith("_HUMAN_: Hi.\n")
    assert chat[3].prompt.endswith("\n=====\n_HUMAN_: Short.\n\n_ASSISTANT_: ")
    assert agent.turn(chat[3], "", "Yes.=====") == (
        "Yes.\n\n_HUMAN_: _HUMAN_: aloud!\n\n_ASSISTANT_: ",
        True,
    )
    assert not agent.turn(chat[2], "", "Yes.")[1]


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (" `image_qa`\nAnswer:\ntext_reader(image_qa(imag, 'What?'))", [0.75, 1.0, 1.0]),
        ("\nAnswer:\nx = text_reader(image_captioner(image))\n1 + 1", [0.5, 1.0, 1.0]),
        ("\nAnswer:\n{'a': text_reader(image_captioner(image))}", [0.5, 1.0, 0.75]),
        ("\nAnswer:\n```\ntext_reader(image)\n```", [0.5, 0.75, 0.3]),
        ("\nAnswer:\n```\nnot Python at all\n```", [0.5, 0.5, 0.3]),  # as in their evaluation
        ("\nAnswer:\nfor i in range(10**9):\n    x = i", [0.5, 0.5, 0.3]),
        ("\nAnswer:\nAnswer:", [0.5, 0.5, 0.0]),
        ("no code", [0.5, 0.5, 0.0]),
    ],
)
def test_run_mode(
    reply: str,
    wanted: list[float],
    data: Path,
    small: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "10**9" in reply:
        monkeypatch.setattr(agent, "_SECONDS", 1)
    assert scores("run", 0, reply, data, small) == wanted


def test_chat_mode(data: Path, small: Tokenizer) -> None:
    """The state of the first step is there in the second, and what the second needs of it."""
    second = "\n\n_HUMAN_: Read it.\n\n_ASSISTANT_: "
    good, bad = "```py\ns = summarizer(text)\n```", "```py\ns = 1\n```"
    ending = "With `text_reader`:\n```\ntext_reader(s)\n```\nDone."
    assert scores("chat", 1, f"{good}{second}{ending}", data, small) == [1.0, 1.0, 1.0]
    assert scores("chat", 1, f"{bad}{second}{ending}", data, small) == [1.0, 1.0, 0.3]
    assert scores("chat", 1, f"{good}{second}Hm.", data, small) == [0.75, 0.75, 0.0]
    assert scores("chat", 1, good, data, small) == [0.75, 0.75, 0.0]  # the window was full


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("x = 2\nif x >= 2:\n    y = 'a'\nelse:\n    y = 'b'", "a"),
        ("if 1 < 2 < 3:\n    x = 1", None),
        ("a = {'key': [1, 2]}\na['kei'][1]", 2),
        ("f'{name} and {nam}'", "it and it"),
        ("x = 1\nimport os\nx = 2", 1),  # up to what is refused
        ("x.y = 1", None),
        ("(1).real", None),
        ("summarizer()", None),
        ("s = str(5)\nprint(s)", "5"),
    ],
)
def test_their_python(code: str, value: object) -> None:
    assert evaluate(code, {"name": "it"}) == value


def test_files_of_another_version(data: Path, tmp_path: Path) -> None:
    (tmp_path / "hfagent").symlink_to(data / "hfagent")
    other = tmp_path / "other/hfagent"
    other.mkdir(parents=True)
    for entry in (data / "hfagent").iterdir():
        (other / entry.name).symlink_to(entry)
    (other / "text-to-video").unlink()
    (other / "text-to-video").mkdir()
    told = json.dumps({"name": "animator", "description": "Does."})
    (other / "text-to-video/tool_config.json").write_text(told)
    with pytest.raises(ValueError, match=r"animator.*expected.*video_generator"):
        list(TASKS["agent_run_code"].read(Data(tmp_path / "other")))
    (other / "tools").unlink()
    (other / "tools").mkdir()
    (other / "tools/evaluate_agent.py").write_text("EVALUATION_TASKS = [Problem(task=name)]\n")
    (other / "tools/base.py").symlink_to(data / "hfagent/tools/base.py")
    with pytest.raises(ValueError):
        list(TASKS["agent_run_code"].read(Data(tmp_path / "other")))
