"""MMLU, BBH, GSM8K and MBPP on the exemplars in lm-eval's wheel, beside transformers.

    python -m benchmarks.evaluation.exemplars [--limit 30] [--whole mmlu] [--short ""]

Machinery is checked, no published score is reproduced: what the wheel ships is laid out as the
tasks' authors publish their data (see wheel.py), `qwen_jax.evaluate` answers it in float32, and
transformers the same questions by prompts that are put together anew (recipes.py). Each choice's
log-likelihood must agree within 1e-4, each completion in every character. Answers have at most 160
tokens. The model is first the real one's first two layers, which a small machine asks every
question in minutes, and then the real one, which takes it hours. Both sides go on where they were.
Writes benchmarks/results/exemplars.json.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.evaluation import real, recipes, wheel
from benchmarks.evaluation.theirs import PACKAGES, Theirs
from benchmarks.support import record
from qwen_jax.evaluate.questions import TASKS
from qwen_jax.evaluate.run import evaluate
from qwen_jax.evaluate.tasks.data import Data

OUT = real.HOME.parent / "exemplars"
MOST = 160  # tokens of an answer
MOST_PROMPT = 2047  # tokens of MMLU's prompts, of which the last are kept
SLOTS = 8
ALLOWED = 1e-4  # of a log-likelihood

Samples = list[dict[str, Any]]


def shortened(layers: int, folder: Path) -> tuple[Path, Path]:
    """The real model's first layers, as native and Hugging Face's folder."""
    from safetensors.numpy import load_file, save_file

    import convert

    native, reference = folder / "native", folder / "hf"
    if not native.exists():
        shutil.copytree(real.REFERENCE, reference, dirs_exist_ok=True)
        config = json.loads((reference / "config.json").read_text())
        config |= {"num_hidden_layers": layers}
        (reference / "config.json").write_text(json.dumps(config))
        inside = lambda name: (
            not name.startswith("model.layers.") or (int(name.split(".")[2]) < layers)
        )
        weights = load_file(reference / "model.safetensors")
        kept = {name: weight for name, weight in weights.items() if inside(name)}
        save_file(kept, reference / "model.safetensors", metadata={"format": "pt"})
        convert.to_native(reference, native)
    return native, reference


def ours(
    tasks: Sequence[str], native: Path, data: Path, out: Path, limit: int | None
) -> Iterator[tuple[str, Samples]]:
    """Each task and its samples, as soon as they are there."""
    from qwen_jax import load
    from qwen_jax.evaluate.progress import Bar

    params = load(native, dtype="float32")
    for name in tasks:
        if TASKS[name].kind != "choice":
            TASKS[name] = replace(TASKS[name], max_new_tokens=MOST)
        batch = 1 if TASKS[name].kind == "choice" else SLOTS  # five questions have a beginning each
        asked: dict[str, Any] = {"run_generated_code": True, "batch": batch, "tell": Bar()}
        evaluate(params, native.name, [name], data, out / name, limit=limit, **asked)
        yield name, lines(out / f"{name}/samples/{name}.jsonl")


def lines(file: Path) -> Samples:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def theirs(model: Theirs, task: str, data: Path, samples: Samples, kept: Path) -> Samples:
    """Samples by transformers, of which those in `kept` are not asked for again.

    Of our samples only the completions are used, as a guess that spares time where it is right.
    """
    found = lines(kept) if kept.exists() else []
    asked = list(recipes.RECIPES[task](data))[len(found) : len(samples)]
    made = _choose(model, asked) if task == "mmlu" else _write(model, task, asked, samples)
    with kept.open("a", encoding="utf-8") as file:
        for sample in made:
            found.append(sample)
            file.write(json.dumps(sample) + "\n")
            file.flush()
            print(f"transformers: {task} {len(found)}/{len(samples)}", file=sys.stderr)
    return found


def _choose(model: Theirs, asked: list[recipes.Asked]) -> Iterator[dict[str, Any]]:
    letters = [model.ids(f" {letter}") for letter in recipes.LETTERS]
    assert all(len(ids) == 1 for ids in letters)
    for id, prompt, answer in asked:
        ids = model.ids(prompt)[-MOST_PROMPT:]
        found = model.logits_after(ids).double().log_softmax(-1)
        scores = {x: float(found[one]) for x, (one,) in zip(recipes.LETTERS, letters, strict=True)}
        right = max(scores, key=lambda letter: scores[letter]) == answer
        yield {"id": id, "prompt": prompt, "scores": scores, "correct": float(right)}


def _write(
    model: Theirs, task: str, asked: list[recipes.Asked], samples: Samples
) -> Iterator[dict[str, Any]]:
    judge: Any = TASKS[task].judge
    questions = {one.id: one for one in TASKS[task].read(Data(OUT / "data"))}
    guesses = {sample["id"]: sample["completion"] for sample in samples}
    chat, stop = task.endswith("chat"), recipes.STOPS.get(task, ())
    for id, prompt, _ in asked:
        ids = (model.chat_ids if chat else model.ids)(prompt)
        text = model.greedy_after(ids, guesses[id], MOST, stop)
        text = text.strip() if chat else text
        right = judge(questions[id], text, None)
        yield {"id": id, "prompt": prompt, "completion": text, "correct": right}


def compared(our: Samples, their: Samples) -> dict[str, Any]:
    pairs = list(zip(our, their, strict=True))
    same = lambda name: sum(a[name] == b[name] for a, b in pairs)
    score = lambda rows: round(100 * sum(row["correct"] for row in rows) / len(rows), 4)
    row: dict[str, Any] = {
        "questions": len(pairs),
        "same_prompts": same("prompt"),
        "same_judgements": same("correct"),
        "ours": score(our),
        "transformers": score(their),
    }
    if "completion" in our[0]:
        others = [a["id"] for a, b in pairs if a["completion"] != b["completion"]]
        return row | {"same_completions": same("completion"), "others": others}
    apart = [abs(a["scores"][x] - b["scores"][x]) for a, b in pairs for x in a["scores"]]
    return row | {"log_likelihoods": len(apart), "largest_difference": max(apart)}


def asked_both(
    tasks: Sequence[str], native: Path, reference: Path, limit: int | None, out: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each task and what the two sides have in common, as soon as it is known."""
    data, model = OUT / "data", Theirs(reference)
    for task, rows in ours(tasks, native, data, out / "ours", limit):
        answered = theirs(model, task, data, rows, out / f"transformers_{task}.jsonl")
        found = compared(rows, answered)
        print(json.dumps({task: found}), flush=True)
        yield task, found


def main(
    limit: int | None = None,
    whole: str = ",".join(recipes.RECIPES),
    short: str = ",".join(recipes.RECIPES),
) -> None:
    """Compare; of tasks that are not asked for, what was found before stays.

    Args:
        limit: Questions of each task that the whole model is asked, from the first on.
        whole: Tasks that the whole model is asked, with a comma between them.
        short: Tasks that its first two layers are asked.
    """
    file, names = record.RESULTS / "exemplars.json", lambda said: said.split(",") if said else []
    models = json.loads(file.read_text())["models"] if file.exists() else {}
    counts = wheel.lay_out(OUT / "data")
    few, all_ = OUT / "short", OUT / f"whole_{limit or 'all'}"
    asked: list[tuple[str, Any]] = []
    if short:
        rows = asked_both(names(short), *shortened(2, few), None, few)
        asked.append(("its first 2 layers", rows))
    if whole:
        rows = asked_both(names(whole), real.made(), real.REFERENCE, limit, all_)
        asked.append(("all 24 layers", rows))
    for model, found in asked:
        for task, row in found:
            models[model] = models.get(model, {}) | {task: row}
            write(models, counts)
    print(json.dumps(models, indent=1))


def write(models: dict[str, Any], counts: dict[str, int]) -> None:
    result = {
        "command": " ".join(["python -m benchmarks.evaluation.exemplars", *sys.argv[1:]]),
        "what": "a check of the machinery on exemplars; no score here is a published one",
        "model": "Qwen2.5-Coder-0.5B-Instruct, from a Q4_K_M GGUF; float32",
        "allowed_difference": ALLOWED,
        "tokens_of_an_answer": MOST,
        "machine": record.machine(),
        "versions": record.versions("jax", "jaxlib", "flax", "lm_eval", *PACKAGES),
        "questions": counts,
        "models": models,
    }
    record.write("exemplars", result)


if __name__ == "__main__":
    tyro.cli(main)
