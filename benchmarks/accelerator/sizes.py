"""How much is measured: everything that is worth knowing of a device, or next to nothing."""

from dataclasses import dataclass

from qwen_jax.config import Config
from qwen_jax.plan import models


@dataclass(frozen=True)
class Size:
    models: dict[str, Config]  # the first is served and trained
    precisions: tuple[str, ...]  # of weights
    caches: tuple[str, ...]  # dtypes of keys and values
    batches: tuple[int, ...]
    lengths: tuple[int, ...]  # tokens of a slot, and of a prompt
    steps: int  # tokens that a timed call decodes
    repeats: int  # of what is timed, after a first call that is not
    same: int  # times a kernel must give the same bits
    heads: int  # of a kernel's call
    blocks: int  # pages of a row in it
    calls: tuple[str, ...]  # of kernels.CALLS
    concurrency: tuple[int, ...]
    answer: int  # tokens of a served one
    rows: int  # of a training step
    read: int  # bytes that are read for the ceiling
    product: int  # rows and columns of the matrices for the ceiling


_TINY_MODEL = Config(
    **vars(models.config("Qwen1.5-0.5B"))
    | {"vocab": 1024, "width": 128, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 64}
    | {"mlp": 128, "max_length": 512, "tied": False}
)
SIZES = {
    "full": Size(
        models={name: models.config(f"Qwen1.5-{name}") for name in ("7B", "14B")},
        precisions=("bfloat16", "int8", "int4"),
        caches=("bfloat16", "int8"),
        batches=(1, 8, 64),
        lengths=(2048, 8192),
        steps=64,
        repeats=3,
        same=100,
        heads=8,
        blocks=32,
        calls=(
            *("bfloat16, one token", "bfloat16, groups of 7, 4 tokens"),
            *("int8 cache, one token", "int8 cache, groups of 4"),
        ),
        concurrency=(1, 16, 64),
        answer=256,
        rows=8,
        read=4 << 30,
        product=8192,
    ),
    "tiny": Size(
        models={"tiny": _TINY_MODEL},
        precisions=("int4",),
        caches=("bfloat16",),
        batches=(2,),
        lengths=(64,),
        steps=2,
        repeats=1,
        same=2,
        heads=1,
        blocks=2,
        calls=("int8 cache, groups of 4",),
        concurrency=(1, 2),
        answer=4,
        rows=2,
        read=1 << 20,
        product=128,
    ),
}
