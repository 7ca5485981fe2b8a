"""Bytes that one device holds, from the shapes and places of the product's own arrays."""

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from qwen_jax import memory
from qwen_jax.config import Config
from qwen_jax.nn import quant, sharding
from qwen_jax.nn.heads import Heads
from qwen_jax.nn.tree import INTEGERS
from qwen_jax.plan.chips import CHIPS, SLICES, Remat, Work, parse
from qwen_jax.storage.int4 import bits

CHUNK = 2048  # tokens of a prompt that are computed at once
_RANK = 64  # of an adapter's matrices, as the original trains
PRECISIONS = {"bfloat16": None, "int8": (8, None, False), "int4": (4, 128, True)}


@dataclass(frozen=True)
class Job:
    """What is planned. context and batch: tokens of a row, rows of all devices together."""

    config: Config
    mesh: str
    data: int
    fsdp: int
    tensor: int
    precision: str
    cache_dtype: str
    context: int
    batch: int
    work: Work
    remat: Remat

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def places(self) -> AbstractMesh:
        shape = (self.data, self.fsdp, self.tensor)
        return AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3)

    @property
    def leaves(self) -> tuple[tuple[Any, int], ...]:
        """Every array of the weights, and how many numbers of it one device holds."""
        return _leaves(self.config, self.precision, self.places)

    @property
    def heads(self) -> Heads:
        """As attention and the cache see them."""
        return Heads.of(self.config.kv_heads, self.config.groups, self.places)

    @property
    def rows(self) -> int:
        """Of the batch, on one device."""
        ways = self.data * self.fsdp
        return self.batch // ways if self.batch % ways == 0 else self.batch

    def share(self, count: int) -> float:
        """The part of something that tensor parallelism leaves on one device."""
        return 1 / self.tensor if count % self.tensor == 0 else 1.0


@dataclass(frozen=True)
class Bytes:
    """On each device."""

    weights: int
    cache: int
    activations: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.optimizer


def count(job: Job) -> Bytes:
    """What a device holds at its fullest."""
    if job.work == "generate":
        return Bytes(_weights(job), _cache(job), _prefill(job), 0)
    trained, held = _parameters(job), 0
    if job.work == "lora":
        held, trained = _weights(job), _adapters(job)
    state = 12 * trained  # float32 masters and Adam's two moments
    return Bytes(held, 0, _training(job, trained), state)


@functools.lru_cache(maxsize=16)  # a plan asks again for every context and batch that it tries
def _leaves(config: Config, precision: str, places: AbstractMesh) -> tuple[tuple[Any, int], ...]:
    plan = PRECISIONS[precision]
    formats = quant.plan(config, *plan) if plan else {}
    kinds = {"scales": jnp.float16} | {name: jnp.dtype(name) for name in INTEGERS}
    leaf = lambda shape, axes, kind: jax.ShapeDtypeStruct(shape, kinds.get(kind, jnp.bfloat16))
    arrays = jax.tree.leaves(quant.build(config, formats, leaf))
    shards = jax.tree.leaves(sharding.shardings(config, places, formats))  # type: ignore[arg-type]
    size = lambda array, shard: math.prod(shard.shard_shape(array.shape))
    return tuple((a, size(a, shard)) for a, shard in zip(arrays, shards, strict=True))


def _weights(job: Job) -> int:
    return sum(size * bits(array.dtype) // 8 for array, size in job.leaves)


def _parameters(job: Job) -> int:
    return sum(size for _, size in job.leaves)


def _adapters(job: Job) -> int:
    """Numbers of adapters beside every linear layer of the blocks; they lie as its axes do."""
    c = job.config
    rows = (c.heads + 2 * c.kv_heads) * c.head_dim
    heads, mlp = job.share(c.kv_heads), job.share(c.mlp)
    width = 1 / job.fsdp if c.width % job.fsdp == 0 else 1.0
    inner = c.heads * c.head_dim
    each = (
        (c.width * width + rows * job.share(rows))
        + (inner * heads + c.width * width)
        + 2 * (c.width * width + c.mlp * mlp)
        + (c.mlp * mlp + c.width * width)
    )
    return int(_RANK * each * c.layers)


def _cache(job: Job) -> int:
    head = memory.cache(job.config, job.cache_dtype) // job.config.kv_heads
    return head * job.heads.of_a_device * job.context * job.rows


def _prefill(job: Job) -> int:
    """A chunk's hidden states, and float32 scores of 512 queries; a GPU's kernel has no scores."""
    c, tokens = job.config, min(CHUNK, job.context)
    scores = 8 * job.heads.queries * min(512, tokens) * job.context
    scores *= CHIPS[parse(job.mesh)[0]].tpu
    wide = tokens * (4 * c.width + 2 * c.mlp * job.share(c.mlp)) * 2
    logits = job.rows * 4 * 2 * c.vocab * job.share(c.vocab)
    return int(max(scores, wide) + wide + logits)


def _training(job: Job, trained: int) -> int:
    """What a step keeps for its backward pass, one layer's work, and the gradients."""
    c, tokens = job.config, job.rows * job.context
    mlp = job.share(c.mlp)
    wide = (c.heads + 2 * c.kv_heads) * c.head_dim
    rows = wide * job.share(wide)
    scores = job.rows * job.heads.queries * job.context**2
    inputs = 2 * tokens * c.width
    products = 2 * tokens * (rows + 2 * c.width + 2 * c.mlp * mlp)
    attended = 2 * tokens * c.heads * c.head_dim * job.share(c.heads)
    attended += 2 * tokens * rows * (job.tensor > 1)
    kept = {"full": inputs, "dots": products, "none": products + attended}[job.remat]
    gradients = 4 * trained * (2 if job.work == "lora" else 1)
    layer = (rows * c.width + c.width**2 / job.tensor + 3 * c.width * c.mlp * mlp) * 2
    gathered = layer if job.fsdp > 1 else 0
    cast = 2 * trained if job.work == "full" else 0
    return int(c.layers * kept + 12 * scores + gradients + gathered + cast)


# --- what follows from it -----------------------------------------------------------------------
def limits(job: Job, held: Bytes) -> dict[str, float]:
    """Speeds that no program can pass, by published peaks: tokens a second of all devices."""
    chip = CHIPS[parse(job.mesh)[0]]
    parameters = sum(math.prod(array.shape) for array, _ in job.leaves)
    dense = 2 * (parameters - job.config.vocab * job.config.width * (not job.config.tied))
    compute = chip.flops * job.devices
    if job.work != "generate":
        passes = {"none": 3, "dots": 3, "full": 4}[job.remat] - (job.work == "lora")
        return {"training_tokens_per_second": compute / (dense * passes)}
    return {
        "decode_tokens_per_second": job.batch * chip.bandwidth / (held.weights + held.cache),
        "prefill_tokens_per_second": compute / dense,
    }


def most(job: Job, field: Literal["context", "batch"], step: int) -> int:
    """The largest context, or batch, with which the rest still fits; 0 where none does."""

    def fits(value: int) -> bool:
        return fit(Job(**(vars(job) | {field: value})))

    low, high = 0, step
    while fits(high) and high < 1 << 24:
        low, high = high, high * 2
    while high - low > step:
        middle = (low + high) // 2 // step * step
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fit(job: Job) -> bool:
    return count(job).total <= CHIPS[parse(job.mesh)[0]].memory


def smallest(job: Job) -> str | None:
    """The smallest slice of the same chip that holds the job with the weights split by tensor."""
    chip, _ = parse(job.mesh)
    for size in SLICES[chip]:
        mesh = f"{chip}:{size}"
        fsdp = job.fsdp > 1
        axes = (1, parse(mesh)[1], 1) if fsdp else (1, 1, parse(mesh)[1])
        changed = {"mesh": mesh, **dict(zip(("data", "fsdp", "tensor"), axes, strict=True))}
        if fit(Job(**(vars(job) | changed))):
            return mesh
    return None


def undivided(job: Job) -> list[str]:
    """What does not divide by the tensor axis, and what comes of it."""
    c, found = job.config, []
    cached = f"the cache has {job.heads.places}, with copies and zeros, and more is sent"
    for name, size, result in (
        ("key/value heads", c.kv_heads, cached),
        ("mlp", c.mlp, "whole on every device"),
        ("vocabulary", c.vocab, "whole on every device"),
    ):
        if size % job.tensor:
            works = [n for n in range(1, 257) if size % n == 0]
            found.append(
                f"{size} {name} do not divide by tensor {job.tensor}: {result}; "
                f"these do: {', '.join(map(str, works[:12]))}"
            )
    return found


def as_json(job: Job) -> dict[str, Any]:
    held = count(job)
    memory_bytes = CHIPS[parse(job.mesh)[0]].memory
    return asdict(held) | {
        "total": held.total,
        "memory": int(memory_bytes),
        "devices": job.devices,
        "mesh": {"data": job.data, "fsdp": job.fsdp, "tensor": job.tensor},
        "fits": held.total <= memory_bytes,
        "limits": {name: round(value, 1) for name, value in limits(job, held).items()},
        "undivided": undivided(job),
        "most_context": most(job, "context", 256),
        "most_batch": most(job, "batch", max(1, job.data * job.fsdp)),
        "smallest": smallest(job),
    }
