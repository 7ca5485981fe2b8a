"""Those who train in benchmarks.finetune, each alone in a process, used as their users use them.

python -m benchmarks.support.trainers NAME MODEL DTYPE    # see contestants for what it reads
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

from benchmarks.support.contestants import CORES, serve
from qwen_jax.program import huge_pages

RATE = 1e-4
RANK, ALPHA, DROPOUT = 64, 16, 0.05  # of the adapters, as the original


class Ours:
    packages = ("jax", "jaxlib", "flax", "optax")

    def __init__(self, model: str, dtype: str) -> None:
        self.model, self.dtype = model, dtype

    def start(self, method: Literal["lora", "full"], steps: int) -> None:
        import jax.numpy as jnp

        import qwen_jax
        from train.methods import prepare
        from train.settings import TrainConfig
        from train.step import Recipe, Trainer

        settings = TrainConfig(self.model, (), "", method)
        prepared = prepare(qwen_jax.load(self.model, dtype=self.dtype), settings)
        recipe = Recipe(steps, RATE, schedule="constant", warmup=0, remat="none")
        self.trainer = Trainer(prepared.params, prepared.trained, recipe, jnp.dtype(self.dtype))
        self.state = self.trainer.start()

    def step(self, rows: list[list[int]]) -> dict[str, float]:
        import numpy as np

        from qwen_jax.data.examples import IGNORED
        from train.step import Batch

        tokens = np.array(rows, np.int32)[None]
        targets = np.roll(tokens, -1, axis=-1)
        targets[..., -1] = IGNORED
        positions = np.broadcast_to(np.arange(tokens.shape[-1], dtype=np.int32), tokens.shape)
        arrays: list[Any] = [tokens, targets, positions, np.ones_like(tokens)]
        batch = Batch(*arrays)
        began = time.perf_counter()
        self.state, metrics = self.trainer.step(self.state, batch)
        loss = float(metrics.loss)
        return {"loss": loss, "seconds": time.perf_counter() - began}

    def peak(self) -> int:
        return PEAK.bytes


class Transformers:
    packages = ("torch", "transformers", "peft")

    def __init__(self, model: str, dtype: str) -> None:
        self.model, self.dtype = model, dtype

    def start(self, method: str, steps: int) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(CORES)
        load = AutoModelForCausalLM.from_pretrained
        # a full training keeps float32 masters, as ours does
        stored = "float32" if method == "full" else self.dtype
        model = load(self.model, dtype=getattr(torch, stored), attn_implementation="sdpa")
        if method == "lora":
            config = LoraConfig(
                r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear"
            )
            model = get_peft_model(model, config)
        self.network = model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
        self.trained = trained

    def step(self, rows: list[list[int]]) -> dict[str, float]:
        import torch

        tokens = torch.tensor(rows)
        kind = getattr(torch, self.dtype)
        began = time.perf_counter()
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            loss = self.network(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = loss.item()
        return {"loss": value, "seconds": time.perf_counter() - began}

    def peak(self) -> int:
        return PEAK.bytes


class Peak(threading.Thread):
    """The most anonymous memory this process has held: what no file can give back."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        status = Path("/proc/self/status")
        while True:
            held = next(line for line in status.read_text().splitlines() if "RssAnon" in line)
            self.bytes = max(self.bytes, int(held.split()[1]) * 1024)
            time.sleep(0.005)


PEAK = Peak()
KINDS: dict[str, type] = {"qwen_jax": Ours, "transformers + PEFT": Transformers}

if __name__ == "__main__":
    if sys.argv[1] == "qwen_jax":
        huge_pages.ask()  # as its command does
    PEAK.start()
    serve(KINDS, *sys.argv[1:])
