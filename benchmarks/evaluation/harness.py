"""lm-eval with our model class, and with its own `hf`, on the same tasks: make exemplars.

    python -m benchmarks.evaluation.harness

Choices of several tokens, texts without a context in windows, and generation up to a stop string,
on the exemplars that benchmarks.evaluation.exemplars lays out; nothing is downloaded. Float32 on
both sides, the real model's first two layers and then the real model. torch's log_softmax of
151,936 float32 numbers is 3e-5 too high, so likelihoods are compared with those that `hf` finds by
itself and with those of `softmax_dtype=float64`, an option of its own. Writes
benchmarks/results/lm_eval.json.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import tyro

from benchmarks.evaluation import real, recipes, wheel
from benchmarks.evaluation.exemplars import ALLOWED, OUT, shortened
from benchmarks.support import record

WINDOW = 256  # tokens, so that long texts are cut
EXACT = {"softmax_dtype": "float64"}  # of log probabilities; logits stay float32


def documents(data: Path, count: int) -> dict[str, list[dict[str, Any]]]:
    """Task -> what its questions are made of."""
    choices = [
        {"question": prompt.rpartition("Question: ")[2].partition("\nA. ")[0], "answer": answer}
        | {"choices": recipes.choices(prompt)}
        for _, prompt, answer in recipes.mmlu(data)
        if answer in recipes.LETTERS
    ]
    texts = [{"text": prompt} for _, prompt, _ in recipes.bbh(data)]
    spread = lambda rows: rows[:: max(1, len(rows) // count)][:count]
    asked = [{"question": prompt, "answer": answer} for _, prompt, answer in recipes.gsm8k(data)]
    return {"choose": spread(choices), "rolling": spread(texts)[: count // 4], "write": asked}


def task(name: str, file: Path) -> dict[str, Any]:
    """As lm-eval's own YAML files say it."""
    told: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
    }
    if name == "choose":
        answer = "{{['A', 'B', 'C', 'D'].index(answer)}}"
        return told | {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": answer,
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    if name == "rolling":
        return told | {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        }
    return told | {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer.split('#### ')[1]}}",
        "generation_kwargs": {"until": ["\n\n", "Question:"], "max_gen_toks": 96},
        "filter_list": [
            {
                "name": "last",
                "filter": [
                    {"function": "regex", "regex_pattern": "(-?[0-9]+)", "group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match"}],
    }


def evaluated(kind: str, folder: Path, tasks: list[dict[str, Any]], **options: str) -> Any:
    """What lm-eval finds with one of the two classes."""
    from lm_eval import simple_evaluate

    import qwen_jax.evaluate.lm_eval_model  # noqa: F401  # the class registers itself

    arguments = {"pretrained": str(folder), "dtype": "float32"} | options
    found = {}
    for one in tasks:
        window = {"max_length": WINDOW} if one["task"] == "rolling" else {}
        device: dict[str, Any] = {"device": "cpu"} if kind == "hf" else {}
        found[one["task"]] = simple_evaluate(
            kind,
            model_args=arguments | window,
            tasks=[one],
            batch_size=4,
            log_samples=True,
            bootstrap_iters=0,
            **device,
        )
    return found


def compared(name: str, our: Any, their: Any, exact: Any) -> dict[str, Any]:
    """Scores of a task, and how far the answers to its requests are apart."""
    keys = [key for key in our["results"][name] if key.partition(",")[2] and "stderr" not in key]
    row: dict[str, Any] = {
        "questions": len(our["samples"][name]),
        "ours": {key: our["results"][name][key] for key in keys},
        "hf": {key: their["results"][name][key] for key in keys},
    }
    mine, others = answers(name, our), answers(name, their)
    if name == "write":
        return row | {"same_texts": sum(a == b for a, b in zip(mine, others, strict=True))}
    if name == "choose":
        pairs = zip(mine, others, strict=True)
        row["same_greedy"] = sum(a[1] == b[1] for a, b in pairs)
    return row | {
        "log_likelihoods": len(mine),
        "beside_hf": apart(mine, others),
        "beside_hf_softmax_in_float64": apart(mine, answers(name, exact)),
    }


def answers(name: str, found: Any) -> list[Any]:
    """To each request of a task: a text, or a log-likelihood and whether it is greedy's."""
    given = [answer for one in found["samples"][name] for answer in one["resps"]]
    return given if name == "rolling" else [answer[0] for answer in given]


def apart(mine: list[Any], others: list[Any]) -> dict[str, float]:
    pairs = [(float(a[0]), float(b[0])) for a, b in zip(mine, others, strict=True)]
    return {
        "largest_difference": max(abs(a - b) for a, b in pairs),
        "largest_relative_difference": max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs),
    }


def both(native: Path, reference: Path, count: int) -> dict[str, Any]:
    folder, tasks = OUT / f"harness_{count}", []
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in documents(OUT / "data", count).items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        tasks.append(task(name, file))
    our, their = evaluated("qwen_jax", native, tasks), evaluated("hf", reference, tasks)
    scored = [one for one in tasks if one["output_type"] != "generate_until"]
    exact = evaluated("hf", reference, scored, **EXACT)
    return {name: compared(name, our[name], their[name], exact.get(name)) for name in our}


def main(count: int = 24, whole: int = 24) -> None:
    """Compare, and write what is known as soon as it is.

    Args:
        count: Questions of choices for two layers; a quarter as many texts; 0 for none.
        whole: The same, for the whole model.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    wheel.lay_out(OUT / "data")
    models: dict[str, Any] = {}
    if count:
        models["its first 2 layers"] = both(*shortened(2, OUT / "short"), count)
        write(models)
    if whole:
        models["all 24 layers"] = both(real.made(), real.REFERENCE, whole)
        write(models)


def write(models: dict[str, Any]) -> None:
    result = {
        "command": " ".join(["python -m benchmarks.evaluation.harness", *sys.argv[1:]]),
        "what": "lm-eval with our model class and with its own; no score here is a published one",
        "model": "Qwen2.5-Coder-0.5B-Instruct, from a Q4_K_M GGUF; float32",
        "allowed_difference": ALLOWED,
        "machine": record.machine(),
        "versions": record.versions("jax", "jaxlib", "flax", "lm_eval", "torch", "transformers"),
        "models": models,
    }
    record.write("lm_eval", result)
    print(json.dumps(models, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
