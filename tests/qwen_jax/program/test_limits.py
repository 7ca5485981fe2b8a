"""Options that cannot be right are refused in a line, by processes that could not import JAX."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPT = """
import io, json, sys
sys.modules["jax"] = None
from qwen_jax import cli
sys.stdin = io.StringIO("")
for line in json.load(open(sys.argv[1])):
    word, *rest = line
    try:
        ended = repr(cli.load(word).command(rest, prog=word))
    except (Exception, SystemExit) as error:
        ended = f"{type(error).__name__}: {error}"
    print(json.dumps(ended))
"""
MESH = ("--mesh-data 0", "--mesh-fsdp -1", "--mesh-tensor 0")
RUN = ("--coordinator here:1", "--processes 2", "--process 0")  # each without the others
BAD = {  # a line that is right up to here, and what is wrong behind it
    "generate demo hi": (
        *("--draft-tokens -1", "--draft-tokens 16", "--seed -1", f"--seed {2**63}", *MESH, *RUN),
        *("--max-new-tokens 0", "--temperature -1", "--temperature nan", "--temperature 101"),
        *("--top-p 0", "--top-p 5", "--top-p nan", "--top-k -1", "--repetition-penalty 0"),
        *("--adapter nowhere", "--adapter .", "--stop=", "--temperature 0 --top-k 5"),
    ),
    "chat --model demo": (
        *("--draft-tokens 16", "--seed -1", "--max-new-tokens 0", "--temperature -1", "--top-p 5"),
        *("--url localhost:8000", "--url ftp://x", "--url http://x --dtype float32"),
    ),
    "serve": (
        *("--draft-tokens -1", "--port 70000", "--port -1", "--slots 0", "--max-length 0", *MESH),
        *("--chunk 100", "--queue 0", "--step-tokens 0", "--adapter x", "--adapter x=nowhere"),
        *("--cache-memory lots", "--api-keys nowhere", "--tls-key nowhere", "--idle-seconds nan"),
        *("--adapter-folder nowhere", "--max-body 1", "--memory-bytes -1", "--cors x", *RUN),
    ),
    "train --model demo --data README.md --out build/x": (
        *("--seed -1", f"--seed {2**32}", "--rank 0", "--alpha nan", "--learning-rate 0", *MESH),
        *("--epochs 0", "--steps 0", "--batch-size 0", "--warmup 2", "--max-length 1", "--clip 0"),
        *("--dropout 1", "--save-every 0", "--keep 0", "--adapter nowhere", "--data nowhere"),
        *("--eval-data nowhere", "--extra-vocab-file nowhere", "--beta2 1", *RUN),
    ),
    "evaluate demo --tasks mmlu": (
        *("--limit 0", "--batch 3", "--batch 0", "--adapter nowhere", "--tasks nonsense", *MESH),
        *("--suite nonsense", "--data nowhere", "--output README.md", "--output docs", *RUN),
    ),
    "profile demo": (
        *("--lengths 0", "--lengths 1,", "--batches -1", "--cache-dtypes int7", *MESH, *RUN),
        "--output README.md",
    ),
    "plan --model demo --mesh v5e": (
        *("--context 0", "--batch 0", "--mesh v5e:0", "--mesh x9", "--mesh-data 3", *MESH[:2]),
        *("--model nonsense", "--model docs"),
    ),
    "warm demo": ("--prompt-tokens 0", "--max-new-tokens 0", *MESH),
    "convert --hf demo --out build/x": (
        *(
            "--quantize int4 --group-size 0",
            "--group-size 0",
            "--shard-size 5GB",
            "--verify --out .",
        ),
        *("--calibration nowhere", "--quantize int8 --calibration nowhere", "--out docs"),
        *("--extra-vocab-file nowhere", "--hf nowhere", "--hf README.md", "--revision x"),
        *("--quantize gptq", "--quantize int8 --verify", "--to-hf demo"),
    ),
    "convert --to-hf demo --out build/x": (
        *("--shard-size 0", "--shard-size lots", "--adapter nowhere", "--to-hf nowhere"),
        *("--to-hf docs", "--out docs", "--dtype float32"),
    ),
    "bench --url http://localhost:1 --rate 1": (
        *("--rate 0", "--rate nan", "--requests 0", "--concurrency 0", "--input-length 0"),
        *("--output-length -1", "--spread 1", "--spread nan", "--temperature -1", "--warmup -1"),
        *("--timeout 0", "--seed -1", "--file nowhere", "--out docs", "--url localhost:8000"),
    ),
}
TITLE = "these settings cannot be used:\n"
KINDS = ("ValueError", "FileNotFoundError", "FileExistsError", "NotADirectoryError")
WHOLE = {  # lines that are wrong as they are, and what is said
    "generate demo": "the prompt is empty",
    "chat": "give --model NAME, or --url",
    "plan --model demo --mesh v5e --compile --work lora": "--compile is for generation",
    "convert --hf= --out build/x": "no folder of an empty name",
    **{
        f"{word} {folder}{rest}": said
        for folder, said in (("nowhere", "no folder nowhere"), ("docs", "docs is no checkpoint"))
        for word, rest in (
            *(("generate", " hi"), ("warm", ""), ("profile", ""), ("serve --model", "")),
            ("train --data README.md --out build/x --model", ""),
        )
    },
}


def test_what_cannot_be_right(tmp_path: Path) -> None:
    lines = [[*good.split(), *bad.split()] for good, every in BAD.items() for bad in every]
    lines += [line.split() for line in WHOLE]
    told = tmp_path / "lines.json"
    told.write_text(json.dumps(lines), "utf-8")
    asked = [sys.executable, "-c", SCRIPT, str(told)]
    run = subprocess.run(asked, cwd=ROOT, check=True, capture_output=True, text=True)
    accepted = []
    for line, ended in zip(lines, map(json.loads, run.stdout.splitlines()), strict=True):
        kind, _, words = ended.partition(": ")
        named = [WHOLE[" ".join(line)]] if " ".join(line) in WHOLE else line[-2:]
        named = [word.lstrip("-").partition("=")[0] for word in named]
        named += [word.replace("-", "_") for word in named]
        one_line = words.removeprefix(TITLE).count("\n") == 0
        if kind not in KINDS or not one_line or not any(name in words for name in named):
            accepted.append((" ".join(line), ended))
    assert not accepted
