"""VCSUM: its prompt, and Rouge-L as LongBench has it."""

import json
from pathlib import Path

import pytest

from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.tasks import summaries
from qwen_jax.evaluate.tasks.data import Data, NoData


@pytest.mark.parametrize(
    ("found", "wanted", "score"),
    [  # of the library `rouge` 1.0.1, whose words LongBench gives in one text
        ("a b c", "a c", 0.8),
        ("a a a b", "a b b", 1.0),  # each word once
        ("b a", "a b", 0.5),
        ("a b . c d", "c d . a b", 1.0),  # sentences in any order
        ("a 3.5 b", "a 3.5", 0.8571),
        ("", "a", 0.0),
        ("x", "a", 0.0),
    ],
)
def test_rouge(found: str, wanted: str, score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spaces:
        def cut(self, text: str, cut_all: bool) -> list[str]:
            return text.split(" ")

    monkeypatch.setattr(summaries, "_jieba", Spaces)
    judged = summaries.rouge_l(summaries.sentences(found), summaries.sentences(wanted))
    assert judged == pytest.approx(score, abs=1e-4)


def test_words_and_prompt(
    data: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jieba")
    (asked,) = TASKS["vcsum"].read(Data(data))
    assert asked.prompt == (
        "下面有一段会议记录，请你阅读后，写一段总结，总结会议的内容。\n"
        "会议记录：\n甲：我们开会。\n\n会议总结："
    )
    assert summaries.sentences("会议讨论了预算3.5亿元。") == [
        ["会议", "讨论", "了", "预算", "3"],
        ["5", "亿元", "。"],
    ]


def test_what_is_missing_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jieba")
    (tmp_path / "longbench").mkdir()
    row = {"context": "x", "answers": ["a", "b"]}
    (tmp_path / "longbench/vcsum.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="expected one"):
        list(TASKS["vcsum"].read(Data(tmp_path)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoData, match=r"jieba is not installed; pip .*\[languages\]"):
        list(TASKS["vcsum"].read(Data(data)))
