from pathlib import Path

import pytest

from qwen_jax.evaluate import kept, report

SAID = {"completion": "one\u2028two\x85three", "correct": 1.0}  # separators that end no line


def test_samples_come_back(tmp_path: Path) -> None:
    """In the task's order, after a run that was killed at once and others that were later."""
    for folder in report.FOLDERS:
        (tmp_path / folder).mkdir()
    report.expect_free(tmp_path)
    kept.claim(tmp_path, {"model": "a"})
    for known in range(2):
        with kept.Samples(tmp_path, "task", 2) as samples:
            assert len(samples.known) == known
            samples.add(1 - known, SAID)
    samples.finish()
    with kept.Samples(tmp_path, "task", 2) as samples:
        assert samples.known == {0: SAID, 1: SAID}


def test_damage_is_named(tmp_path: Path) -> None:
    kept.claim(tmp_path, {"model": "a"})
    line = report.sample_lines([SAID])
    done, under_way = tmp_path / "samples/task.jsonl", tmp_path / "progress/other.jsonl"
    for file, damaged in (
        (done, line),
        (done, line * 3),
        (done, line + line[:20]),
        (done, '{"id": "1"}\n' * 2),
        (under_way, "garbage\n"),
        (under_way, '[0, "right"]\n'),
    ):
        file.write_text(damaged, "utf-8")
        with pytest.raises(ValueError, match=rf"{file} is damaged; delete it"):
            kept.Samples(tmp_path, file.stem, 2)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty and holds no evaluation"):
        kept.claim(tmp_path, {"model": "a"})
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match="another evaluation, with another model"):
        kept.claim(tmp_path, {"model": "a"})
