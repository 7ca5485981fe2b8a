"""Tables of the evaluations of a real model, beside transformers and lm-eval."""

from benchmarks.support.tables import Result, table


def exemplars(result: Result) -> str:
    """Scores of both sides, and how far their answers are apart."""
    rows = []
    for model, tasks in result["models"].items():
        for task, row in tasks.items():
            apart = row.get("largest_difference")
            same = row.get("same_completions")
            likelihoods = "" if apart is None else f"{row['log_likelihoods']}, {apart:.1e}"
            counts = str(row["questions"]), "" if same is None else str(same)
            rows.append((f"{task}, {model}", *counts, likelihoods))
    head = ("", "questions", "the same completions", "log-likelihoods, largest difference")
    return table(head, rows)


def lm_eval(result: Result) -> str:
    """How far our class is from lm-eval's own."""
    rows = []
    for model, tasks in result["models"].items():
        for task, row in tasks.items():
            texts = str(row.get("same_texts", ""))
            cells = [
                f"{row[name]['largest_difference']:.1e}" if name in row else ""
                for name in ("beside_hf", "beside_hf_softmax_in_float64")
            ]
            rows.append((f"{task}, {model}", str(row["questions"]), texts, *cells))
    head = ("", "questions", "the same texts", "beside `hf`", "its softmax in float64")
    return table(head, rows)


def long_texts(result: Result) -> str:
    """Perplexity by length on both sides, and the needles that were found."""
    grid = result["needles"]["grid"]
    rows = []
    for size, found in result["perplexity"].items():
        cells = grid.get(size, {})
        needles = f"{sum(cells.values())} of {len(cells)}" if cells else ""
        rows.append((size, f"{found['ours']:.6f}", f"{found['transformers']:.6f}", needles))
    return table(("tokens", "qwen_jax", "transformers", "needles found"), rows)
