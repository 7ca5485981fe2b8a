"""Compile the product's own step, prefill and attention for an H200 and TPUs that are not there.

    python -m benchmarks.aot gpu      # needs jax-cuda13-plugin and NVIDIA's wheels, no GPU
    python -m benchmarks.aot tpu      # needs libtpu, no TPU
    python -m benchmarks.aot all      # both, each in a process of its own

Nothing is allocated: weights and state are shapes with places. Each result says what a device
would hold, what one step runs and communicates, and which bounds it keeps; a result that
breaks one makes the command fail. They go to benchmarks/results/aot_{gpu,tpu}.json. What XLA
emits is exact but for the GPU's autotuning; how long it takes only a device can tell.
"""

import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.support import chips, prompt_attention
from benchmarks.support.chips import HBM, MIB, MODELS, local
from benchmarks.support.hlo import Module
from qwen_jax.nn.attention import PAGE
from qwen_jax.nn.quant import QuantLinear
from qwen_jax.nn.tree import named_layers

COUNT = 64  # tokens of one call of the step
# bounds of a decode step: bytes on each device, on TPUs for 8 slots
TEMPORARIES = {"gpu": 64 * MIB, "tpu": 80 * MIB}
PREFILL = {"gpu": 256 * MIB, "tpu": 160 * MIB}  # of a prompt of 2048 tokens
# what it launches in a layer, and around all of them (embedding, head, sampling)
LAUNCHES = {"gpu": (12, 64), "tpu": (40, 128)}
FETCHES = ("copy-start", "slice-start")  # among them: a TPU moves weights and the like early
AROUND = 16  # collectives around the two of every layer
# bounds of a layer's attention for a chunk of a prompt, by the length of the text
ATTENTION = {
    "gpu": {2048: 32 * MIB, 8192: 192 * MIB},
    "tpu": {2048: 4 * MIB, 8192: 4 * MIB},
}
ENVIRONMENT = chips.ENVIRONMENT


@dataclass(frozen=True)
class Case:
    model: str
    chip: str
    topology: str
    mesh: dict[str, int]  # of make_mesh; empty: one device
    work: str  # "step", "prefill" or "attention": a layer's, of a prompt that is stored
    slots: int
    cache_dtype: str
    length: int = 2048  # of the cache, tokens; a prefill computes as many, attention the last 2048
    precision: str = (
        "bfloat16"  # of weights; or "int8" per channel, or "int4" in groups of 128 with zeros
    )
    paged: bool = False  # a step whose slots share pages, as a server's do

    def __str__(self) -> str:
        mesh = " x ".join(f"{axis} {n}" for axis, n in self.mesh.items()) or "one device"
        name = self.model if self.precision == "bfloat16" else f"{self.model} {self.precision}"
        pages = " in pages" if self.paged else ""
        pages += f" of {self.length}" if self.work == "attention" else ""
        return f"{name} {self.work} bs {self.slots} {self.cache_dtype}{pages}, {self.chip} {mesh}"


def _cases(platform: str) -> list[Case]:
    if platform == "gpu":
        where: tuple[str, str, dict[str, int]] = ("h200", "h200", {})
    else:
        where = ("v5e", "v5e:2x2", {"tensor": 4})
    cases = [
        Case("Qwen-7B", *where, "step", slots, dtype)
        for slots in (1, 8)
        for dtype in ("bfloat16", "int8")
    ]
    cases.append(Case("Qwen2.5-7B", *where, "step", 8, "bfloat16"))
    for dtype, slots in (("bfloat16", 8), ("int8", 8), ("bfloat16", 64)):
        cases.append(Case("Qwen-7B", *where, "step", slots, dtype, 1024, paged=True))
    cases.append(Case("Qwen-7B", *where, "prefill", 1, "bfloat16"))
    if platform == "tpu":  # rows shared out: XLA's form of attention
        both = {"data": 2, "tensor": 2}
        cases.append(Case("Qwen-7B", "v5e", "v5e:2x2", both, "prefill", 2, "bfloat16"))
    cases += _prompts(*where)
    for precision in ("int8", "int4"):
        if (platform, precision) == ("tpu", "int4"):  # 4 devices do not divide mlp.down's 86 groups
            cases.append(Case("Qwen-7B", *where, "step", 8, "bfloat16", precision=precision))
            where = ("v5e", "v5e:2x2", {"data": 2, "tensor": 2})
        for slots in (1, 8, 64):  # rows of a product
            short = 2048 if slots < 64 else 128
            cases.append(
                Case("Qwen-7B", *where, "step", slots, "bfloat16", short, precision=precision)
            )
        cases.append(Case("Qwen-7B", *where, "prefill", 1, "bfloat16", precision=precision))
    if platform == "tpu":
        for chip, topology, four in (("v5p", "v5p:2x2x1", {"tensor": 4}), ("v6e", "v6e:2x2", {})):
            for dtype in ("bfloat16", "int8"):
                cases.append(Case("Qwen-7B", chip, topology, four, "step", 8, dtype))
            cases += _prompts(chip, topology, four)
        for slots in (1, 8):
            one: tuple[str, str, dict[str, int]] = ("v6e", "v6e:2x2", {})
            cases.append(Case("Qwen-7B", *one, "step", slots, "bfloat16", precision="int4"))
        forty = {"tensor": 16}  # devices that do not divide 40 heads
        cases.append(Case("Qwen-14B", "v5e", "v5e:4x4", forty, "step", 8, "bfloat16"))
        for mesh in ({"tensor": 64}, {"data": 4, "tensor": 16}):
            cases.append(Case("Qwen-72B", "v5p", "v5p:4x4x4", mesh, "step", 8, "bfloat16"))
    return cases


def _prompts(chip: str, topology: str, mesh: dict[str, int]) -> list[Case]:
    return [
        Case(model, chip, topology, mesh, "attention", 1, dtype, length, paged=paged)
        for model in ("Qwen-7B", "Qwen2.5-7B")
        for length in (2048, 8192)
        for dtype, paged in (("bfloat16", False), ("int8", True))
    ]


def _lower(case: Case) -> tuple[Any, Any, Any]:
    """What the product compiles for this case, and the weights and cache it compiles it for."""
    import jax.numpy as jnp

    from qwen_jax.config import Config
    from qwen_jax.decoding import aot
    from qwen_jax.nn import quant, sharding

    config = Config(**MODELS[case.model])
    devices = chips.devices(case.topology)
    where = sharding.make_mesh(**case.mesh, devices=devices) if case.mesh else devices[0]
    plans = {"int8": (8, None, False), "int4": (4, 128, True)}
    formats = quant.plan(config, *plans[case.precision]) if case.precision in plans else None
    params = aot.params(config, jnp.bfloat16, where, formats)
    blocks = case.length // PAGE
    pages = case.slots * blocks if case.paged else None
    state = aot.state(params, case.slots, case.length, case.cache_dtype, pages)
    with chips.around(where):
        if case.work == "step":
            return (
                aot.step(params, state, COUNT, blocks if case.paged else None).lower(),
                params,
                state,
            )
        if case.work == "attention":
            return prompt_attention.lower(config, state.cache), params, state
        return aot.prefill(params, state, case.length).lower(), params, state


def measure(case: Case) -> dict[str, Any]:
    """Compile one case and look at it. Sizes are bytes on each device."""
    started = time.perf_counter()
    lowered, params, state = _lower(case)
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    seconds = {"lower": lowered_at - started, "compile": time.perf_counter() - lowered_at}
    sizes = chips.sizes(compiled)
    module, model = Module(compiled.as_text()), MODELS[case.model]
    result: dict[str, Any] = {
        "case": str(case),
        **dataclasses.asdict(case),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "bytes": sizes,
        "weights": sum(x.bytes for x in local(params)),
        "cache": sum(x.bytes for x in local(state.cache)),
    }
    checks = {"fits": sizes["peak"] <= HBM[case.chip]}
    platform = "gpu" if case.chip == "h200" else "tpu"
    if case.work == "step":
        slots = case.slots if platform == "tpu" else 1
        bound = TEMPORARIES[platform] * max(1, slots // 8)
        if platform == "tpu" and case.precision == "int4":  # kernels take scales as int16 bits,
            found = named_layers(params, QuantLinear).values()  # made once for a call's tokens
            bound += sum(x.bytes for x in local([layer.scales for layer in found]))
        if platform == "tpu" and case.paged:  # a call lays out scales anew, in rows of 128
            bound += sum(2 * x.bytes for x in local(state.cache) if len(x.shape) == 3)
        checks |= {"temporaries": sizes["temp"] <= bound}
        result |= _step(module, case, params, state)
        checks |= {"no copies": not result["copies"]}
        layer, around = LAUNCHES[platform]
        checks |= {"launches": result["kernels"] <= layer * model["layers"] + around}
        cut = [model["kv_heads"]] + [model["mlp"] // 128] * (case.precision == "int4")
        if all(count % case.mesh.get("tensor", 1) == 0 for count in cut):  # else more is exchanged
            sent = sum(kind["count"] for kind in result["collectives"].values())
            checks |= {"collectives": sent <= 2 * model["layers"] + AROUND}
        checks |= {"attention": result["attention_kernels_per_layer"] <= 2}
    else:
        result |= {"collectives": module.collectives(module.entry)}
        if "data" not in case.mesh:  # else rows are shared out, and no kernel takes that
            layers = model["layers"] if case.work == "prefill" else 1
            checks |= {"attention": module.named(module.entry, "/prefill") >= layers}
        if case.work == "attention":
            checks |= {"temporaries": sizes["temp"] <= ATTENTION[platform][case.length]}
        else:
            checks |= {"temporaries": sizes["temp"] <= PREFILL[platform]}
    return result | {"checks": checks, "passed": all(checks.values())}


def _step(module: Module, case: Case, params: Any, state: Any) -> dict[str, Any]:
    """One pass of the decode loop: its kernels, its copies, its communication."""
    loop, model = module.loop(), MODELS[case.model]
    # half of a bfloat16 matrix, or an integer one with a byte for each number
    matrices = [
        math.prod(x.shape)
        for x in local(params)
        if len(x.shape) > 1 and x.dtype != "f16" and x.bytes > MIB
    ]
    stores = [x.bytes for x in local(state.cache) if len(x.shape) == 4]
    rows = {case.slots, case.slots // case.mesh.get("data", 1), 8}  # 8: of one go of sampling
    logits = {n * width for n in rows for width in range(model["vocab"], model["vocab"] + 256)}
    copies = [
        f"{array} {array.bytes / MIB:.1f} MiB by {instruction}"
        for instruction, array in module.large(loop, min(matrices + stores))
        if math.prod(array.shape) not in logits
    ]
    return {
        "copy_threshold": min(matrices + stores),
        "copies": copies,
        "kernels": (kernels := module.kernels(loop)),
        "kernels_per_layer": round(kernels / model["layers"], 1),  # head and sampling included
        "prefetches": sum(i.op in FETCHES for i in module.walk(loop, branches=False)),
        "attention": state.cache.backend.name,
        "attention_kernels_per_layer": module.named(loop, "/decode") / model["layers"],
        "collectives": module.collectives(loop),
        "estimated_cycles": module.cycles(loop) or None,
    }


def _line(result: dict[str, Any]) -> str:
    sent = " ".join(
        f"{kind} {c['count']} ({c['bytes'] / MIB:.2f} MiB)"
        for kind, c in result["collectives"].items()
    )
    columns = (
        "ok  " if result["passed"] else "FAIL",
        f"{result['case']:53s}",
        f"temp {result['bytes']['temp'] / MIB:7.1f} MiB",
        f"peak {result['bytes']['peak'] / 1e9:6.2f} GB",
        f"copies {len(result['copies'])}" if "copies" in result else "",
        f"kernels/layer {result['kernels_per_layer']}" if "kernels" in result else "",
        f"compile {result['seconds']['compile']:.0f} s",
        sent,
    )
    return "  ".join(column for column in columns if column)


def compile_platform(platform: str) -> bool:
    """Every case of a platform, in this process; True when all keep their bounds."""
    results = []
    for case in _cases(platform):
        results.append(measure(case))
        print(_line(results[-1]), flush=True)
    chips.write("aot", platform, ENVIRONMENT[platform], results, tokens_per_call=COUNT)
    return all(result["passed"] for result in results)


if __name__ == "__main__":
    sys.exit(chips.command("benchmarks.aot", ENVIRONMENT, compile_platform, sys.argv[1:]))
