"""lm-eval's command, on tasks of its own beside this file; nothing is downloaded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import qwen_jax
from benchmarks.support.server import ROOT

TASKS = Path(__file__).parent / "tasks"
ROWS = 48


@pytest.fixture
def evaluate(server: Any, tmp_path: Path) -> Any:
    """evaluate("choose", "completions") -> the task's results, and its samples."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}

    def run(task: Any, kind: Any, *options: Any) -> Any:
        how = {
            "base_url": f"{server.url}/v1/{kind.replace('-', '/')}",
            "model": "demo",
            "num_concurrent": 4,
            "max_retries": 1,
            "auth_token": server.key,
        }
        command = [sys.executable, "-m", "lm_eval", "--model", f"local-{kind}", *options]
        command += ["--model_args", ",".join(f"{name}={how[name]}" for name in how)]
        command += ["--tasks", task, "--include_path", TASKS, "--limit", str(ROWS)]
        command += ["--log_samples", "--output_path", tmp_path / "out"]
        environment = os.environ | offline | {"OPENAI_API_KEY": server.key}
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        (results,) = tmp_path.glob("out/*/results_*.json")
        (samples,) = tmp_path.glob(f"out/*/samples_{task}_*.jsonl")
        lines = samples.read_text("utf-8").splitlines()
        return json.loads(results.read_text())["results"][task], [json.loads(x) for x in lines]

    return run


@pytest.fixture(scope="module")
def logprob() -> Any:
    """logprob(text) -> of each of its tokens after the first, by this package without a server."""
    params: Any = qwen_jax.load("demo")

    def compute(text: Any) -> Any:
        encode = params.assets.tokenizer.encode
        ids = [*encode("<|endoftext|>", specials=True), *encode(text, specials=True)]
        scores = jax.nn.log_softmax(qwen_jax.logits(params, [ids])[0])
        return np.asarray(scores)[np.arange(len(ids) - 1), ids[1:]]

    return compute


def test_chat_completions(evaluate: Any) -> None:
    """The model recites what it was trained on."""
    results, samples = evaluate("recite", "chat-completions", "--apply_chat_template")
    assert results["exact_match,none"] > 0.95
    assert len(samples) == ROWS


def test_completions_choose(evaluate: Any) -> None:
    results, samples = evaluate("choose", "completions")
    assert results["acc,none"] > 0.95
    (right, _), (wrong, _) = (answer[0] for answer in samples[0]["resps"])
    assert float(right) > float(wrong) + 10


def test_completions_generate(evaluate: Any) -> None:
    results, _ = evaluate("recite_completion", "completions")
    assert results["exact_match,none"] > 0.95


def test_completions_score(evaluate: Any, logprob: Any) -> None:
    """Running text, as likely as without a server."""
    results, samples = evaluate("perplexity", "completions")
    texts = [sample["doc"]["messages"][1]["content"] for sample in samples]
    scores = [float(sample["filtered_resps"][0]) for sample in samples]
    np.testing.assert_allclose(scores, [logprob(text).sum() for text in texts], rtol=2e-2)
    bits = -sum(scores) / sum(len(text.encode()) for text in texts) / np.log(2)
    assert results["bits_per_byte,none"] == pytest.approx(bits, rel=1e-4)
