"""WMT22: prompts, and BLEU of a whole set."""

from pathlib import Path

import pytest

from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.tasks.data import Data, NoData
from qwen_jax.evaluate.tasks.translation import bleu


def test_prompts(data: Path) -> None:
    pytest.importorskip("sacrebleu")
    asked = list(TASKS["wmt22_zh_en"].read(Data(data)))
    assert [question.answer for question in asked] == [
        "This is sentence number 0",
        "This is sentence number 1",
    ]
    examples = (
        f"Chinese: 这是第{i}个句子\nEnglish: This is sentence number {i}\n\n" for i in range(5)
    )
    assert asked[1].prompt == (
        f"Translate from Chinese to English.\n\n{''.join(examples)}Chinese: 这是第1个句子\nEnglish:"
    )
    assert asked[1].prompt.startswith(asked[1].shared)


def test_bleu_is_that_of_all_together() -> None:
    """What sacrebleu's command prints for the same lines; the mean of both is another."""
    sacrebleu = pytest.importorskip("sacrebleu")
    found = ["The cat sat on the mat today.", "A dog."]
    wanted = ["The cat sat on the mat.", "It was a dog that barked."]
    score, error = bleu("en", found, wanted)
    assert 100 * score == pytest.approx(sacrebleu.corpus_bleu(found, [wanted]).score)
    assert 0 < error < 0.5
    assert bleu("zh", ["这是句子"], ["这是句子"])[0] == pytest.approx(1)
    chinese = sacrebleu.corpus_bleu(["这是长句子"], [["这是好句子"]], tokenize="zh").score
    assert 100 * bleu("zh", ["这是长句子"], ["这是好句子"])[0] == pytest.approx(chinese)


def test_what_is_missing_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("wmt22", "wmt21"):
        (tmp_path / folder / "txt").mkdir(parents=True)
        (tmp_path / folder / "txt/sources").symlink_to(data / folder / "txt/sources")
        (tmp_path / folder / "txt/references").mkdir()
        for file in (data / folder / "txt/references").iterdir():
            (tmp_path / folder / "txt/references" / file.name).write_text("one line\n")
    with pytest.raises(ValueError, match=r"has 2 lines, .* has 1"):
        list(TASKS["wmt22_en_zh"].read(Data(tmp_path)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoData, match=r"sacrebleu is not installed; pip .*\[languages\]"):
        list(TASKS["wmt22_en_zh"].read(Data(data)))
