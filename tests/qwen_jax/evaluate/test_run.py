import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from qwen_jax import load
from qwen_jax.evaluate import asking, report, scoring
from qwen_jax.evaluate.progress import Bar
from qwen_jax.evaluate.published import SUITES, suite_of
from qwen_jax.evaluate.questions import TASKS, check
from qwen_jax.evaluate.run import evaluate
from qwen_jax.evaluate.tasks.task import Question
from qwen_jax.files.lock import only_writer
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.sharding import make_mesh

ROOT = Path(__file__).parents[3]
CHOSEN = ["mmlu", "gsm8k_chat", "tool_selection"]


@pytest.fixture(scope="module")
def params() -> Qwen:
    return load("demo", make_mesh(devices=jax.devices()[:1]), dtype="float32")


@pytest.fixture(scope="module")
def whole(params: Qwen, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an evaluation that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    evaluate(params, "demo", CHOSEN, data, output)
    return output


def content(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_text("utf-8") for file in files}


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_report_and_samples(whole: Path, data: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    assert [row["task"] for row in report["results"]] == CHOSEN
    assert [row["count"] for row in report["results"]] == [8, 3, 1]
    samples = lines(whole / "samples/mmlu.jsonl")
    assert [sample["id"] for sample in samples[:2]] == ["anatomy/0", "anatomy/1"]
    assert samples[0].keys() == {"id", "prompt", "scores", "answer", "correct"}
    chat = lines(whole / "samples/gsm8k_chat.jsonl")[0]
    assert chat.keys() == {"id", "prompt", "completion", "answer", "correct"}
    row = report["results"][0]
    share = np.mean([sample["correct"] for sample in samples])
    assert row["score"] == pytest.approx(100 * share, abs=1e-3)
    assert row["stderr"] == pytest.approx(100 * (share * (1 - share) / 8) ** 0.5, abs=1e-3)
    assert "| MMLU | accuracy | 5 |" in (whole / "report.md").read_text()
    assert not list((whole / "progress").iterdir())


class Killed(BaseException):
    pass


def test_killed_ten_times_it_ends_with_the_same_report(
    params: Qwen, data: Path, whole: Path, tmp_path: Path
) -> None:
    rng, output = random.Random(0), tmp_path / "out"
    for _ in range(10):
        left = rng.randint(1, 5)

        def tell(task: str, done: int, count: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                for file in (output / "progress").iterdir():  # the last line was being written
                    with file.open("a") as opened:
                        opened.write('[7, {"id": "tor')
                raise Killed

        try:
            evaluate(params, "demo", CHOSEN, data, output, batch=rng.choice([2, 4, 16]), tell=tell)
        except Killed:
            continue
        break
    evaluate(params, "demo", CHOSEN, data, output)
    assert content(output) == content(whole)


def test_the_command_killed_by_the_system(
    params: Qwen, data: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "qwen_jax.evaluate", "demo", "--tasks", ",".join(CHOSEN)]
    command += ["--data", str(data), "--output", str(output), "--dtype", "float32"]
    killed = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while not (output / "samples/mmlu.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not (output / "report.json").exists()
    evaluate(params, "demo", CHOSEN, data, output)
    assert content(output) == content(whole)


def test_a_model_that_knows_scores_everything(
    params: Qwen, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {q.prompt: q.answer for name in ("cmmlu", "ceval") for q in _questions(name, data)}
    _know(right, monkeypatch)
    report = evaluate(params, "demo", ["cmmlu", "ceval"], data, tmp_path / "out", suite="qwen-7b")
    assert [row["score"] for row in report["results"]] == [100.0, 100.0]
    assert [row["difference"] for row in report["results"]] == [37.8, 36.5]
    assert report["results"][1]["classes"] == {"Humanities": 100.0}


def test_a_model_that_knows_them_in_another_order_scores_a_quarter(
    params: Qwen, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, count = tmp_path / "data/mmlu", 200
    shutil.copytree(data / "mmlu/dev", folder / "dev")
    rows = [f"What {number}?,one,two,three,four,{'ABCD'[number % 4]}" for number in range(count)]
    (folder / "test").mkdir()
    (folder / "test/anatomy_test.csv").write_text("\n".join(rows) + "\n")
    prompts, answers = zip(
        *((q.prompt, q.answer) for q in _questions("mmlu", folder.parent)), strict=True
    )
    _know(dict(zip(prompts, random.Random(0).sample(answers, count), strict=True)), monkeypatch)
    (row,) = evaluate(params, "demo", ["mmlu"], folder.parent, tmp_path / "out")["results"]
    assert row["count"] == count
    assert row["score"] == pytest.approx(25.0, abs=3 * row["stderr"])


def _know(answers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the model prefer these letters after these prompts."""
    asked: list[str] = []

    def ids(tokenizer: Any, text: str) -> list[int]:
        asked.append(text)
        return [1]

    def know(params: Any, prompts: Any, ids: Any, *_: Any) -> np.ndarray:
        texts = [text for text in asked if text in answers]
        asked.clear()
        return np.asarray([[float(x == answers[text]) for x in "ABCD"] for text in texts])

    monkeypatch.setattr(asking, "_ids", ids)
    monkeypatch.setattr(scoring, "choices", know)


def _questions(name: str, data: Path) -> Any:
    from qwen_jax.evaluate.tasks.data import Data

    return TASKS[name].read(Data(data))


def test_another_evaluation_is_not_mixed_in(params: Qwen, data: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match="another evaluation, with another limit"):
        evaluate(params, "demo", CHOSEN, data, whole, limit=1)


def test_an_adapter_s_answers_are_not_mixed_in(params: Qwen, data: Path, whole: Path) -> None:
    adapter = whole.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="another evaluation, with another adapter"):
        evaluate(params, "demo", CHOSEN, data, whole, adapter=adapter)


def test_two_at_once_are_told_apart(params: Qwen, data: Path, whole: Path) -> None:
    with (
        only_writer(whole, whole / report.LOCK),
        pytest.raises(BlockingIOError, match="is being written by process"),
    ):
        evaluate(params, "demo", CHOSEN, data, whole)


def test_a_suite_without_all_its_data(params: Qwen, data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/gsm8k").symlink_to(data / "gsm8k")
    made = evaluate(
        params, "demo", [], tmp_path / "data", tmp_path / "out", suite="qwen-7b-chat", limit=1
    )
    assert [row["task"] for row in made["results"]] == ["gsm8k_chat"]
    assert made["results"][0]["published"] == 50.3
    assert "only the first question;" in (tmp_path / "out/report.md").read_text()
    reasons = {row["task"]: row["reason"] for row in made["skipped"]}
    assert "hendrycks" in reasons["mmlu_chat"]
    assert "--run-generated-code" in reasons["interpreter_math"]
    assert reasons.keys() | {"gsm8k_chat"} == SUITES["qwen-7b-chat"].keys()


def test_what_is_refused_before_any_work(params: Qwen, tmp_path: Path) -> None:
    for tasks, suite, message in (
        (["nonsense"], None, "there is no task 'nonsense'"),
        ([], "qwen-3b", "there is no suite 'qwen-3b'"),
        ([], None, "nothing to evaluate"),
        (["humaneval"], None, "give --run-generated-code"),
    ):
        with pytest.raises(ValueError, match=message):
            check(tasks, suite, run_generated_code=False)
    with pytest.raises(ValueError, match=r"mmlu: there is no .*hendrycks"):
        evaluate(params, "demo", ["mmlu"], tmp_path, tmp_path / "out")


def test_a_score_of_all_together_is_no_mean() -> None:
    task = replace(TASKS["gsm8k"], corpus=lambda found, wanted: (len(found) / 8, len(wanted) / 16))
    samples = [{"completion": "a", "correct": 1.0}, {"completion": "b", "correct": 0.0}]
    row = report.row(task, [Question("0", "?", "a"), Question("1", "?", "b")], samples, 20.0, "")
    assert (row["score"], row["stderr"], row["difference"]) == (25.0, 12.5, 5.0)
    assert row["average"] == "of all questions together"


def test_how_far_it_is_is_told_by_what_this_run_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bar, clock = Bar(), iter((100.0, 100.0, 110.0, 120.0, 300.0, 300.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    for task, done, count in (
        ("mmlu", 40, 90_000),  # forty were known before
        ("mmlu", 41, 90_000),
        ("mmlu", 42, 90_000),  # too soon to tell again
        ("mmlu", 60, 90_000),
        ("bbh", 0, 1),
        ("bbh", 1, 1),
    ):
        bar(task, done, count)
    assert capsys.readouterr().err.splitlines() == [
        "mmlu 40/90000 questions",
        "mmlu 60/90000 questions, 1 a second, 24:59:00 left",
        "bbh 0/1 questions",
        "bbh 1/1 questions",
    ]


def test_titles_tell_tasks_apart() -> None:
    assert len({task.title for task in TASKS.values()}) == len(TASKS)


def test_published_rows_name_tasks() -> None:
    assert {task for row in SUITES.values() for task in row} <= TASKS.keys()
    assert suite_of("some/Qwen-1_8B-Chat/") == "qwen-1.8b-chat"
    assert suite_of("demo") is None


@pytest.mark.parametrize("name", ["leval_tpo", "leval_codeu", "vcsum"])
def test_a_document_is_cut_to_the_window(name: str, params: Qwen) -> None:
    task, document = TASKS[name], "first " + "word " * params.config.max_length + "last"
    asked = asking._ask(
        params, task, Question("0", f"Told.\n{document}\nAsked.", "", document=document)
    )
    room = params.config.max_length - len(asked.ids)
    assert room >= asked.max_new_tokens == task.max_new_tokens
    assert room < asked.max_new_tokens + 64
    assert params.assets is not None
    text = params.assets.tokenizer.decode(list(asked.ids))
    assert "Told." in text
    assert "Asked." in text
    assert ("first" in text, "last" in text) == (task.keep != "end", task.keep != "start")
