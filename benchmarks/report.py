"""The numbers of the documentation, written from benchmarks/results: python -m benchmarks.report.

In docs/benchmarks.md, README.md and README.zh.md it writes what stands between <!-- NAME --> and
<!-- /NAME -->; a NAME is a file of results, or headline. Run it after a benchmark; a test compares.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import perplexity, speed, startup
from benchmarks.support import evaluations, tables
from benchmarks.support.record import RESULTS
from benchmarks.support.tables import Result

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "README.zh.md", "docs/benchmarks.md")
MARKED = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)
SHOWN: dict[str, tuple[str, Callable[[Result], str]]] = {  # results: command, its tables
    "speed_cpu": ("python -m benchmarks.speed", lambda result: speed.table(result["models"])),
    "speed_512_cpu": (
        "python -m benchmarks.speed --prompt 512",
        lambda result: speed.table(result["models"]),
    ),
    "speed_avx2_cpu": (
        "python -m benchmarks.speed --avx2",
        lambda result: speed.table(result["models"]),
    ),
    "startup_cpu": (
        "python -m benchmarks.startup",
        lambda result: startup.table(result["medians"]),
    ),
    "startup_7b_cpu": (
        "python -m benchmarks.startup --seven-billion TOKENIZER",
        tables.beyond_reading,
    ),
    "load": ("python -m benchmarks.load", tables.loading),
    "finetune_cpu": ("python -m benchmarks.finetune", tables.training),
    "finetune_avx2_cpu": ("python -m benchmarks.finetune --avx2", tables.training),
    "demo_lora": ("python -m benchmarks.demo_lora", tables.recital),
    "serving_cpu": ("python -m benchmarks.serving", tables.serving),
    "engine_cpu": ("make engine", tables.engine),
    "serve_load": ("python -m benchmarks.serve_load", tables.load_test),
    "clients": ("make clients", tables.clients),
    "replicas": ("make replicas", tables.replicas),
    "simulation": ("python -m benchmarks.simulation", tables.simulation),
    "perplexity": (
        "python -m benchmarks.perplexity",
        lambda result: perplexity.table(result["models"]),
    ),
    "exemplars": ("make exemplars", evaluations.exemplars),
    "lm_eval": ("make exemplars", evaluations.lm_eval),
    "long_texts": ("make long-texts", evaluations.long_texts),
    "aot_gpu": ("make aot", tables.decoding_plans),
    "aot_tpu": ("make aot", tables.decoding_plans),
    "plans_gpu": ("make plans", tables.training_plans),
    "plans_tpu": ("make plans", tables.training_plans),
}
HEADS = (("", "rival", "qwen_jax", "rival", "ratio"), ("", "对手", "qwen_jax", "对手", "比值"))
TITLES = (
    (
        "decode, float32, tokens/s",
        "decode, bf16, tokens/s",
        "decode, bf16, tokens/s",
        "prefill, bf16, tokens/s",
        "server, 16 requests at once, bf16, tokens/s",
        "LoRA step, float32, seconds (less is better)",
    ),
    (
        "解码，float32，token/s",
        "解码，bf16，token/s",
        "解码，bf16，token/s",
        "预填充，bf16，token/s",
        "服务器，16 个并发请求，bf16，token/s",
        "LoRA 单步，float32，秒（越少越好）",
    ),
)
RACES = (  # what, of which dtype, beside whom
    ("decode", "float32", "transformers float32"),
    ("decode", "bfloat16", "transformers bfloat16"),
    ("decode", "bfloat16", "llama.cpp F16"),
    ("prefill", "bfloat16", "transformers bfloat16"),
)


def read(name: str) -> Result:
    """A file of results."""
    result: Result = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return result


def section(name: str) -> str:
    """The tables of a file of results, and where they come from."""
    command, show = SHOWN[name]
    result = read(name)
    return f"{show(result).strip()}\n\n*{'; '.join(origin(name, command, result))}*\n"


def origin(name: str, command: str, result: Result) -> list[str]:
    """The command and the file; the day, machine and versions as far as the result says them."""
    said = [f"`{command}`", f"`benchmarks/results/{name}.json`"]
    if "date" in result:
        said.append(result["date"])
    if machine := result.get("machine"):
        memory = machine.get("memory_gigabytes")
        parts = [machine["processor"], f"{machine['cores']} cores"]
        said.append(", ".join([*parts, *([f"{memory} GB"] if memory else [])]))
    said.append(
        ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    )
    return said


def headline(titles: tuple[str, ...], head: tuple[str, ...]) -> str:
    """The READMEs' table: six numbers beside a rival's, those where the rival wins too."""
    models = read("speed_cpu")["models"]["qwen2"]
    served, trained = read("serving_cpu"), read("finetune_cpu")["cases"][0]
    rows: list[tuple[str, float, float, float]] = []
    for what, dtype, rival in RACES:
        ours = f"qwen_jax {dtype}"
        speeds = (models["medians"][name][what] for name in (ours, rival))
        rows.append((rival, *speeds, models["ratios"][f"{ours} / {rival}"][what]["median"]))
    rates = (served["medians"][f"{name}, 16"]["output_throughput"] for name in tables.SERVERS)
    ratio = served["ratios"]["qwen_jax / llama.cpp, output_throughput at 16"]["median"]
    rows.append(("llama.cpp F16", *rates, ratio))
    seconds = (trained["seconds"][name] for name in tables.TRAINERS)
    rows.append((tables.TRAINERS[1], *seconds, trained["time_ratio"]["median"]))
    cells = [
        (title, rival, f"{ours:.3g}", f"{theirs:.3g}", f"{ratio:.2f}")
        for title, (rival, ours, theirs, ratio) in zip(titles, rows, strict=True)
    ]
    return tables.table(head, cells) + "\n"


def part(name: str) -> str:
    """What belongs between the marks of this name."""
    if name.startswith("headline"):
        language = ("headline", "headline_zh").index(name)
        return headline(TITLES[language], HEADS[language])
    return section(name)


def written(page: str) -> str:
    """A page with its numbers as the results have them."""
    fill = lambda mark: f"<!-- {mark[1]} -->\n\n{part(mark[1])}\n<!-- /{mark[1]} -->"
    return MARKED.sub(fill, (ROOT / page).read_text("utf-8"))


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(written(page), "utf-8")
