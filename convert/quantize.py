"""Make a quantised checkpoint: a block at a time, each on what the blocks before it really give."""

import functools
import itertools
import json
import math
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from convert import gptq
from convert.calibration import Sheet, read_sheets
from convert.huggingface import Checkpoint
from qwen_jax.config import Config
from qwen_jax.files import atomic, strict_json
from qwen_jax.nn import model, quant
from qwen_jax.nn.kv_cache import NoCache
from qwen_jax.nn.model import Block, Linear
from qwen_jax.nn.quant import Format, QuantLinear, abstract_leaves, dequantize, quantize
from qwen_jax.nn.rope import Where
from qwen_jax.nn.sums import matmul
from qwen_jax.nn.tree import INTEGERS
from qwen_jax.text.tokenizer import Tokenizer

REPORT = "quantization.json"
# layers of a block that see the same inputs, in the order in which those are known
STAGES = (("attn.qkv",), ("attn.out",), ("mlp.gate", "mlp.up"), ("mlp.down",))  # see _stage_inputs


@dataclass(frozen=True)
class QuantizeOptions:
    """method: "int8" and "int4" round to nearest, "gptq" is 4 bits calibrated.

    group: inputs that share a scale; None: all of an output's. head: int8 for it too.
    """

    method: str
    group: int | None
    symmetric: bool
    head: bool

    @property
    def bits(self) -> int:
        return 8 if self.method == "int8" else 4

    def formats(self, config: Config) -> dict[str, Format]:
        """Raises ValueError where groups do not divide a layer's inputs."""
        made = quant.plan(config, self.bits, self.group, not self.symmetric)
        if self.head and config.tied:
            raise ValueError("the head is the embedding itself, which is not quantised")
        return made | ({"head": Format(8, 1, False, False)} if self.head else {})


class Quantizer:
    """Quantises the pieces of a checkpoint in their order; `report` says what it cost.

    work: a folder that keeps what an interrupted conversion needs to go on.
    """

    def __init__(
        self, checkpoint: Checkpoint, settings: QuantizeOptions, texts: Path | None, work: Path
    ):
        self.checkpoint, self.settings, self.work = checkpoint, settings, work
        self.config = checkpoint.config
        self.formats = settings.formats(self.config)
        self.structure = jax.tree.structure(model.build(self.config, lambda *_: 0).blocks[0])
        self.sheets: dict[str, list[Sheet]] = {}
        if texts is not None:
            seen, held = read_sheets(texts, Tokenizer.load(checkpoint.folder))
            self.sheets = {"calibration": seen, "held": held, "exact": held}
        elif settings.method == "gptq":
            raise ValueError("gptq needs texts of the model's kind; give --calibration FILE")

    def leaves(self, plain: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the checkpoint to be made, from those of the source."""
        made = abstract_leaves(self.config, self.formats)
        scale = jax.ShapeDtypeStruct
        floats = lambda name, leaf: plain[name].dtype if name in plain else np.dtype(np.float16)
        return {
            name: leaf if leaf.dtype.name in INTEGERS else scale(leaf.shape, floats(name, leaf))
            for name, leaf in made.items()
        }

    def piece(self, piece: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A piece's leaves from those of the source."""
        if piece == "head" and piece in self.formats:
            head = quantize(Linear(jnp.asarray(arrays["head.kernel"]), None), 8, None, True)
            return _leaves({"head": head}, arrays)
        if not piece.startswith("blocks."):
            return arrays
        layer = int(piece.removeprefix("blocks."))
        block = self._block(arrays)
        self._pass(layer, block, "exact")
        made = {f"{piece}.{n}": x for n, x in self._layers(layer, block).items()}
        self._pass(layer, block, "calibration", "held")
        return _leaves(made, arrays)

    def done(self, piece: str) -> None:
        """The piece is on the disk: what went into it is not needed again."""
        if piece.startswith("blocks."):
            for file in self.work.glob(f"{piece.removeprefix('blocks.')}-*.npy"):
                file.unlink()

    def identity(self) -> dict[str, Any]:
        """What a conversion that is taken up again must agree in, as JSON."""
        texts = {
            name: [zlib.crc32(s.ids.tobytes()) for s in part] for name, part in self.sheets.items()
        }
        return {"settings": asdict(self.settings), "texts": texts}

    # --- one block ----------------------------------------------------------------------------
    def _block(self, arrays: dict[str, np.ndarray]) -> Block:
        return jax.tree.unflatten(
            self.structure, [jnp.asarray(a, jnp.float32) for a in arrays.values()]
        )

    def _layers(self, layer: int, block: Block) -> dict[str, QuantLinear]:
        """Quantise a block's layers; in `block` their float twins take their places."""
        how, made, errors = self.settings, {}, {}
        for number, stage in enumerate(STAGES):
            moments = None
            for x, lengths in self._inputs(layer, "calibration"):
                seen = _moments(block, x, lengths, number, self.config)
                moments = seen if moments is None else moments + seen
            for name in stage:
                linear = _get(block, name)
                nearest = made[name] = quantize(linear, how.bits, how.group, how.symmetric)
                lost = {"nearest": float(_lost(linear.kernel, nearest.kernel, moments))}
                if how.method == "gptq":
                    assert moments is not None
                    made[name] = gptq.solve(linear, moments, how.bits, how.group, how.symmetric)
                    lost["gptq"] = float(_lost(linear.kernel, made[name].kernel, moments))
                errors[f"blocks.{layer}.{name}"] = lost
            for name in stage:
                _set(block, name, dequantize(made[name]))
        self._note({"layers": errors})
        return made

    # --- what goes from block to block, and the report ------------------------------------------
    def _inputs(self, layer: int, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What a block gets, [B T D] and lengths [B], a sheet at a time.

        name: "calibration" and "held", as quantised blocks give it; "exact", as the source's do.
        """
        table = self.checkpoint.tensor(self.checkpoint.leaves["embed"][0].tensor)
        for number, sheet in enumerate(self.sheets.get(name, ())):
            if layer == 0:
                yield np.asarray(table[sheet.ids], np.float32), sheet.lengths
            else:
                yield np.load(self._file(layer, name, number)), sheet.lengths

    def _pass(self, layer: int, block: Block, *names: str) -> None:
        """Keep what a block makes of its inputs: the next one's."""
        for name in names:
            for number, (x, lengths) in enumerate(self._inputs(layer, name)):
                self.work.mkdir(exist_ok=True)
                np.save(self._file(layer + 1, name, number), _run(block, x, lengths, self.config))

    def _file(self, layer: int, name: str, number: int) -> Path:
        return self.work / f"{layer}-{name}-{number}.npy"

    def _note(self, facts: dict[str, Any]) -> None:
        report = self.report()
        report["layers"] |= facts.pop("layers", {})
        self.work.mkdir(exist_ok=True)
        atomic.write_text(self.work / REPORT, json.dumps(report | facts, indent=1))

    def report(self) -> dict[str, Any]:
        """Each layer's share of its output's energy that is lost, and the perplexities."""
        if (self.work / REPORT).is_file():
            return strict_json.read(self.work / REPORT)
        return asdict(self.settings) | {"bits": self.settings.bits, "layers": {}}

    def finish(self, folder: Path) -> None:
        """All pieces are made: write the whole report into the folder and print its gist."""
        if self.sheets:
            judged = sum(int(sheet.judged[:, 1:].sum()) for sheet in self.sheets["held"])
            seen = sum(int(sheet.lengths.sum()) for sheet in self.sheets["calibration"])
            found = {"before": self._loss("exact"), "after": self._loss("held")}
            self._note(
                {
                    "perplexity": {name: math.exp(x / judged) for name, x in found.items()},
                    "tokens": {"calibration": seen, "judged": judged},
                }
            )
        report = self.report()
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        shutil.rmtree(self.work)
        print(summary(report))

    def _loss(self, name: str) -> float:
        """Of all tokens that judge, from what the last block gives; the head is the source's."""
        leaf = lambda name: jnp.asarray(
            self.checkpoint.tensor(self.checkpoint.leaves[name][0].tensor), jnp.float32
        )
        norm = model.RMSNorm(leaf("norm.scale"), self.config.norm_eps)
        head = leaf("embed" if self.config.tied else "head.kernel")
        inputs = zip(self._inputs(self.config.layers, name), self.sheets[name], strict=True)
        return sum(float(_loss(norm, head, x, s.ids, s.judged)) for (x, _), s in inputs)


def summary(report: dict[str, Any]) -> str:
    """One line for each kind of layer, its mean over the blocks, and the perplexities."""
    kinds: dict[str, list[dict[str, float]]] = {}
    for name, errors in report["layers"].items():
        kinds.setdefault(name.split(".", 2)[2], []).append(errors)
    of = "outputs' energy" if "tokens" in report else "weights' energy (no calibration)"
    lines = [f"share of the {of} that is lost:"]
    for kind, errors in kinds.items():
        means = {how: np.mean([e[how] for e in errors]) for how in errors[0]}
        lines.append(f"  {kind:9s}" + "".join(f" {how} {x:.2e}" for how, x in means.items()))
    if found := report.get("perplexity"):
        tokens, before, after = report["tokens"]["judged"], found["before"], found["after"]
        lines.append(f"perplexity of {tokens} held-out tokens: {before:.4f}, now {after:.4f}")
    return "\n".join(lines)


def _leaves(layers: dict[str, QuantLinear], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The source's leaves with quantised ones in the kernels' places; a bias is as it was."""
    made = {n: a for n, a in arrays.items() if n.removesuffix(".kernel") not in layers}
    for name, layer in layers.items():
        fields = {field: getattr(layer, field) for field in quant.FIELDS}
        made |= {f"{name}.{f}": np.asarray(a) for f, a in fields.items() if a is not None}
    return made


# --- arithmetic -------------------------------------------------------------------------------
def _setting(x: Array, lengths: Array, config: Config) -> tuple[Where, NoCache, int, Config]:
    """What a block is called with beside a sheet; nothing attends to what is padded behind."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
    return Where.of(config, positions, lengths), NoCache(), 0, config


@functools.partial(jax.jit, static_argnames="config")
def _run(block: Block, x: Array, lengths: Array, config: Config) -> Array:
    """A block's output for a sheet [B T D]."""
    return block(x, *_setting(x, lengths, config))[0]


@functools.partial(jax.jit, static_argnames=("stage", "config"))
def _moments(block: Block, x: Array, lengths: Array, stage: int, config: Config) -> Array:
    """The sum of x xᵀ over what the layers of a stage get, float32 [in in]."""
    inputs = _stage_inputs(block, x, _setting(x, lengths, config))
    seen = next(itertools.islice(inputs, stage, None))
    real = jnp.arange(x.shape[1]) < lengths[:, None]
    seen = jnp.where(real[..., None], seen, 0).reshape(-1, seen.shape[-1])
    return jnp.matmul(seen.T, seen, precision="highest")


def _stage_inputs(
    block: Block, x: Array, setting: tuple[Where, NoCache, int, Config]
) -> Iterator[Array]:
    """What the layers of each stage get when a block is called."""
    attn, mlp = block.attn, block.mlp
    y = block.attn_norm(x)
    yield y
    y, _ = attn.mix(attn.qkv(y), *setting)
    yield y
    y = block.mlp_norm(x + attn.out(y))
    yield y
    yield mlp.hidden(y)


@jax.jit
def _lost(kernel: Array, made: Array, moments: Array | None) -> Array:
    """The share of the outputs' energy that is lost; of the weights' without calibration."""
    onto = lambda w: w if moments is None else jnp.matmul(w, moments, precision="highest")
    energy = lambda w: jnp.sum(onto(w) * w)
    return energy(kernel - made) / jnp.maximum(energy(kernel), 1e-30)


@jax.jit
def _loss(norm: model.RMSNorm, head: Array, x: Array, ids: Array, judged: Array) -> Array:
    """The sum of -log p over the tokens of a sheet that are judged, a row at a time."""

    def row(one: tuple[Array, Array, Array]) -> Array:
        x, ids, judged = one
        scores = jax.nn.log_softmax(matmul(norm(x), head)[:-1])
        found = jnp.take_along_axis(scores, ids[1:, None], axis=1)[:, 0]
        return -jnp.sum(jnp.where(judged[1:], found, 0))

    return jax.lax.map(row, (x, ids, judged)).sum()


def _get(block: Block, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), block)


def _set(block: Block, name: str, layer: Any) -> None:
    parent, _, field = name.rpartition(".")
    setattr(_get(block, parent), field, layer)
