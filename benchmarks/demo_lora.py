"""LoRA on a CPU takes the bundled model from random weights to reciting its conversations.

    python -m benchmarks.demo_lora

The command that is run stands in the result, benchmarks/results/demo_lora.json; its loss curve is
docs/images/demo_lora.png.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.support import record
from tools.make_demo import CHATS, random_start

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "images" / "demo_lora.png"
STEPS = 900
OPTIONS = (  # the embedding and the head are random, too: they are trained whole
    "--method lora --rank 64 --alpha 64 --dropout 0 --modules-to-save wte lm_head --dtype float32 "
    f"--learning-rate 3e-3 --warmup 0.05 --steps {STEPS} --max-length 256 --batch-size 4 "
    "--micro-batch 4 --remat none"
)


def main() -> None:
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    import convert
    import qwen_jax
    from tools.recite import recited
    from train.report.plot import read_log

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        random_start(root / "start")
        model, run = convert.to_native(root / "start", root / "random"), root / "run"
        data = CHATS.relative_to(ROOT)
        files = ["--model", str(model), "--data", str(data), "--out", str(run)]
        began = time.monotonic()
        command = [sys.executable, "-m", "train", *files, *OPTIONS.split()]
        subprocess.run(command, cwd=ROOT, check=True)
        seconds = time.monotonic() - began
        log = read_log(run / "log.jsonl")
        before, after = qwen_jax.load(model), qwen_jax.load(model, adapter=run / "adapter")
        result = {
            "command": f"python -m train --model random --data {data} --out run {OPTIONS}",
            "machine": record.machine() | {"load_after": record.load_average()},
            "versions": record.versions("jax", "jaxlib", "flax", "optax"),
            "steps": log[-1]["step"],
            "seconds": round(seconds),
            "first_loss": round(log[0]["loss"], 4),
            "final_loss": round(log[-1]["loss"], 4),
            "recited_before": round(recited(before), 4),
            "recited": round(recited(after), 4),
        }
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / "loss.png", PICTURE)
    print(result)
    record.write("demo_lora", result)


if __name__ == "__main__":
    main()
