"""Those who race, each alone in a process.

    python -m benchmarks.support.contestants NAME MODEL DTYPE


It reads one JSON object a line, {"do": method, ...keywords}, and answers each with a line. Every
contestant is used as its users use it, and tells when its first and its last token were there.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

CORES = len(os.sched_getaffinity(0))


class Contestant(Protocol):
    def generate(self, ids: list[int], count: int, **sampling: float) -> dict[str, Any]:
        """{"tokens", "first": seconds to the first token, "last": to the last}."""

    def follow(self, ids: list[int], start: int) -> list[int]:
        """The likeliest next token after each of ids[:start], ids[:start + 1], ..., ids[:-1]."""


class Clock:
    """Seconds since it was made, of the first token and of the last."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.marks: list[float] = []

    def mark(self) -> None:
        self.marks.append(time.perf_counter() - self.began)

    def result(self, tokens: list[int]) -> dict[str, Any]:
        return {"tokens": tokens, "first": self.marks[0], "last": self.marks[-1]}


class Ours:
    packages = ("jax", "jaxlib", "flax")

    def __init__(self, model: str, dtype: str) -> None:
        import qwen_jax

        self.params = qwen_jax.load(model, dtype=None if dtype.startswith("int") else dtype)

    def generate(self, ids: list[int], count: int, **sampling: float) -> dict[str, Any]:
        from qwen_jax import Sampling
        from qwen_jax.decoding.completion import stream_completions

        chosen = Sampling(**({"temperature": 0.0} | sampling))  # type: ignore[arg-type]
        clock = Clock()
        tokens: list[int] = []
        for (answer,) in stream_completions(
            self.params,
            [ids],
            chosen,
            max_new_tokens=count,
            seed=0,
            draft_tokens=0,  # a network of noise repeats itself, and drafts would be right
        ):
            clock.mark()
            tokens = answer.tokens
        return clock.result(tokens)

    def follow(self, ids: list[int], start: int) -> list[int]:
        return [int(token) for token in self._scores(ids, start).argmax(-1)]

    def logits(self, ids: list[int], start: int, out: str) -> None:
        import numpy as np

        np.save(out, self._scores(ids, start))

    def _scores(self, ids: list[int], start: int) -> Any:
        import numpy as np

        import qwen_jax

        return np.asarray(qwen_jax.logits(self.params, ids)[0, start - 1 : -1])

    def gemm(self, size: int, dtype: str) -> float:
        """FLOP/s of one product of square matrices."""
        import jax
        import jax.numpy as jnp

        x = jnp.ones((size, size), dtype)
        product = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.float32))
        return 2 * size**3 / _best(lambda: product(x).block_until_ready())


class Transformers:
    packages = ("torch", "transformers")

    def __init__(self, model: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(CORES)
        load = AutoModelForCausalLM.from_pretrained
        self.model = load(model, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()

    def generate(self, ids: list[int], count: int, **sampling: float) -> dict[str, Any]:
        import torch

        assert not sampling, "greedy only"
        clock, prompt = Clock(), torch.tensor([ids])
        how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        out = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            streamer=Streamer(clock.mark),
            **how,
        )
        clock.mark()
        return clock.result(out[0, len(ids) :].tolist())

    def follow(self, ids: list[int], start: int) -> list[int]:
        return self._scores(ids, start).argmax(-1).tolist()

    def logits(self, ids: list[int], start: int, out: str) -> None:
        import numpy as np

        np.save(out, self._scores(ids, start).numpy())

    def _scores(self, ids: list[int], start: int) -> Any:
        import torch

        with torch.inference_mode():
            kept = self.model(torch.tensor([ids]), logits_to_keep=len(ids) - start + 1)
            return kept.logits[0, :-1].float()

    def gemm(self, size: int, dtype: str) -> float:
        """FLOP/s of one product of square matrices."""
        import torch

        x = torch.ones(size, size, dtype=getattr(torch, dtype))
        return 2 * size**3 / _best(lambda: x @ x)

    def read(self, bytes: int) -> float:
        """Bytes/s of a sum over memory."""
        import torch

        x = torch.ones(bytes // 4)
        return bytes / _best(lambda: x.sum())


class Streamer:
    """Marks every token of transformers' `generate`, which puts the prompt first."""

    def __init__(self, mark: Callable[[], None]) -> None:
        self.mark, self.seen_prompt = mark, False

    def put(self, ids: Any) -> None:
        if self.seen_prompt:
            self.mark()
        self.seen_prompt = True

    def end(self) -> None:
        pass


class LlamaCpp:
    """llama.cpp's server without its socket. dtype is in the file, so the argument is not read."""

    packages = ("xllamacpp", "gguf")

    def __init__(self, model: str, dtype: str) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = model
        params.n_ctx, params.n_parallel = 1024, 1  # room for a prompt and an answer
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = CORES
        self.server = xllamacpp.Server(params)

    def generate(self, ids: list[int], count: int, **sampling: float) -> dict[str, Any]:
        assert not sampling, "greedy only"
        return self._run(ids, count, cache_prompt=False)

    def follow(self, ids: list[int], start: int) -> list[int]:
        ends = range(start, len(ids))
        return [self._run(ids[:end], 1, cache_prompt=True)["tokens"][0] for end in ends]

    def _run(self, ids: list[int], count: int, cache_prompt: bool) -> dict[str, Any]:
        tokens: list[int] = []
        clock = Clock()

        def receive(chunk: dict[str, Any]) -> None:
            if text := chunk["choices"][0]["text"]:
                clock.mark()
                tokens.extend(map(int, text.split("t")[1:]))  # see write_gguf for the names

        request = {"prompt": ids, "max_tokens": count, "temperature": 0.0, "stream": True}
        request |= {"ignore_eos": True, "cache_prompt": cache_prompt}
        self.server.handle_completions(request, receive)
        return clock.result(tokens)

    def build(self) -> str:
        """The instructions it was compiled for, and those this machine has."""
        import xllamacpp

        return str(xllamacpp.get_system_info()).strip()


def _best(run: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times[1:])


KINDS: dict[str, type] = {"qwen_jax": Ours, "transformers": Transformers, "llama.cpp": LlamaCpp}


def serve(kinds: dict[str, type], name: str, model: str, dtype: str) -> None:
    """Answer until the input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contestant = kinds[name](model, dtype)
    print(json.dumps({"ready": True}), file=answers)
    rested = time.process_time()
    for line in sys.stdin:
        request = json.loads(line)
        began, idle = time.process_time(), time.process_time() - rested
        try:
            result = getattr(contestant, request.pop("do"))(**request)
            reply: dict[str, Any] = {"result": result}
        except Exception as error:
            reply = {"error": f"{name}: {type(error).__name__}: {error}"}
        rested = time.process_time()
        # core seconds: of the work itself, and wasted before it while others ran
        print(json.dumps(reply | {"busy": rested - began, "idle": idle}), file=answers)


if __name__ == "__main__":
    serve(KINDS, *sys.argv[1:])
