"""transformers on the same device: eager, and compiled over a static cache."""

import functools
import time
from typing import Any

from benchmarks.accelerator.kept import Case, SkippedError
from benchmarks.accelerator.sizes import Size
from benchmarks.accelerator.speed import multiplied
from qwen_jax import memory
from qwen_jax.config import Config
from qwen_jax.storage import hf_config

WAYS = ("eager", "compiled")


def transformers(size: Size) -> dict[str, Case]:
    """Decoding alone, behind a prompt that half fills the shortest length."""
    return {
        f"{model}, {batch} at once, {way}": functools.partial(_decode, size, model, batch, way)
        for model in size.models
        for batch in size.batches
        for way in WAYS
    }


def _decode(size: Size, model: str, batch: int, way: str) -> dict[str, Any]:
    torch, device = _torch(), "cpu"
    if torch.cuda.is_available():
        device = "cuda"
        torch.cuda.reset_peak_memory_stats()
    elif size.steps > 2:
        raise SkippedError("torch finds no GPU")
    network = _network(size.models[model], device)
    prompt = torch.zeros(batch, min(size.lengths) // 2, dtype=torch.long, device=device)
    cache = {"cache_implementation": "static"} if way == "compiled" else {}
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0} | cache

    def run(count: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            network.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=count,
                max_new_tokens=count,
                **how,
            )
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for count in (1 + size.steps, 1):  # compiles, and makes kernels
        run(count)
    taken = [run(1 + size.steps) - run(1) for _ in range(size.repeats)]
    best = max(min(taken), 1e-9)
    config, tokens = size.models[model], batch * (prompt.shape[1] + size.steps // 2)
    flops = 2 * multiplied(config, head=True)
    return {
        "steps": size.steps,
        "bytes_a_step": flops + memory.cache(config, "bfloat16") * tokens,  # two of a weight
        "flops_a_step": batch * flops,
        "tokens_a_second": round(batch * size.steps / best, 2),
        "seconds": [round(each, 6) for each in taken],
        "device": device,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
    }


def _torch() -> Any:
    try:
        import torch
        import transformers as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise SkippedError(
            f"{error.name} is not installed: pip install torch transformers"
        ) from error
    return torch


@functools.lru_cache(maxsize=1)
def _network(config: Config, device: str) -> Any:
    """Random bfloat16 weights, made where they stay."""
    import torch
    import transformers

    content = hf_config.to_hf(config)
    theirs = transformers.AutoConfig.for_model(content.pop("model_type"), **content)
    with torch.device(device):
        made = transformers.AutoModelForCausalLM.from_config(theirs, dtype=torch.bfloat16)
    return made.eval()
