"""Tasks written for lm-eval; what lm-eval makes of them is skipped where there is no lm-eval."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from qwen_jax import load
from qwen_jax.evaluate import lm_eval_tasks
from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.run import evaluate
from qwen_jax.evaluate.tasks.data import Data
from qwen_jax.evaluate.tasks.task import Task
from qwen_jax.nn.sharding import make_mesh

ROOT = Path(__file__).parents[3]
ASKED = ["mmlu", "ceval", "bbh", "gsm8k_chat", "humaneval"]


@pytest.fixture(scope="module")
def written(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "tasks"
    missing = lm_eval_tasks.write([], data, folder)
    assert {*missing} <= {"wmt22_zh_en", "wmt22_en_zh"}  # where there is no sacrebleu
    return folder


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    lines = (folder / f"qwen_{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def reply(task: Task, right: bool, answer: str) -> Any:
    """What lm-eval hands over: likelihoods of the labels, or a text."""
    if task.kind != "choice":
        return [f" The answer is {answer if right else 'unknown'}.\n"]
    return [(-float((label.strip() == answer) != right), False) for label in task.labels]


@pytest.mark.parametrize("name", ["mmlu", "cmmlu", "gsm8k", "gsm8k_chat", "math", "bbh"])
def test_prompts_and_judges_are_our_own(name: str, data: Path, written: Path) -> None:
    task, found = TASKS[name], rows(written, name)
    asked = list(task.read(Data(data)))
    assert [row["prompt"] for row in found] == [question.prompt for question in asked]
    for right in (True, False):
        answers = [row["answer"].rpartition("#### ")[2] for row in found]
        results = [reply(task, right, answer) for answer in answers]
        pairs = zip(found, results, strict=True)
        judged = [lm_eval_tasks.judged(row, result)[task.metric] for row, result in pairs]
        read = 1 / 3 if name == "gsm8k" else 1.0  # neither 20,800 nor -3 is
        assert lm_eval_tasks.score(judged) == pytest.approx(read * right, abs=1e-5)


def test_what_is_refused(data: Path, tmp_path: Path) -> None:
    for tasks, folder, message in (
        (["vcsum"], tmp_path / "new", "'vcsum' is no task for lm-eval; there are mmlu,"),
        (["mmlu"], data, "is no empty folder"),
    ):
        with pytest.raises(ValueError, match=message):
            lm_eval_tasks.write(tasks, data, folder)
    with pytest.raises(ValueError, match=r"mmlu: there is no .*hendrycks"):
        lm_eval_tasks.write(["mmlu"], tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command(data: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "qwen_jax.evaluate.lm_eval_tasks", "--tasks", "mmlu,humaneval"]
    line += ["--data", str(data), "--output", str(tmp_path / "tasks")]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("qwen_humaneval, qwen_mmlu in ")
    assert "unsafe_code: true" in (tmp_path / "tasks/qwen_humaneval.yaml").read_text()


def test_lm_eval_finds_what_our_evaluation_finds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By lm-eval's own requests: the same words asked and answered, the same scores."""
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from qwen_jax.evaluate.lm_eval_model import QwenLM

    monkeypatch.setitem(os.environ, "HF_DATASETS_OFFLINE", "1")
    monkeypatch.setitem(os.environ, "HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # fewer programs, and sooner compiled
    for name in ASKED:
        short = replace(TASKS[name], max_new_tokens=12)
        for known in (TASKS, lm_eval_tasks.TASKS):
            monkeypatch.setitem(known, name, short)
    lm_eval_tasks.write(ASKED, data, tmp_path / "tasks")
    model = QwenLM("demo", dtype="float32")
    params = load("demo", make_mesh(devices=jax.devices()[:1]), dtype="float32")
    report = evaluate(params, "demo", ASKED, data, tmp_path / "out", run_generated_code=True)
    for row in report["results"]:
        name = row["task"]
        ours = (tmp_path / f"out/samples/{name}.jsonl").read_text("utf-8").splitlines()
        found: Any = simple_evaluate(
            model,
            tasks=[f"qwen_{name}"],
            task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
            apply_chat_template=TASKS[name].kind == "chat",
            confirm_run_unsafe_code=True,
            bootstrap_iters=0,
        )
        samples = found["samples"][f"qwen_{name}"]
        for own, sample in zip(map(json.loads, ours), samples, strict=True):
            judged = sample[row["metric"]]
            assert (own["prompt"], own["correct"]) == (sample["doc"]["prompt"], judged["correct"])
            if "completion" in own:
                assert own["completion"] == judged["completion"]
            else:
                totals = [answer[0][0] for answer in sample["resps"]]
                assert totals == pytest.approx([*own["scores"].values()], abs=1e-4)
        score = found["results"][f"qwen_{name}"][f"{row['metric']},none"]
        assert 100 * score == pytest.approx(row["score"])
