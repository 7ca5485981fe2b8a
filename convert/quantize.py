"""Make a quantised checkpoint: a block at a time, each on what the blocks before it really give."""

import functools
import json
import math
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert import awq, gptq
from convert.block import STAGES, get, judge, lost, moments, put, run
from convert.calibration import Sheet, read_sheets
from convert.huggingface import Checkpoint
from qwen_jax.config import Config
from qwen_jax.files import atomic, strict_json
from qwen_jax.nn import model, quant
from qwen_jax.nn.model import Block, Linear
from qwen_jax.nn.quant import Format, QuantLinear, abstract_leaves, dequantize, quantize
from qwen_jax.nn.tree import INTEGERS
from qwen_jax.text.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]  # leaves by name
REPORT = "quantization.json"


@dataclass(frozen=True)
class QuantizeOptions:
    """method: "int8" and "int4" round to nearest, "gptq" and "awq" are calibrated.

    group: inputs that share a scale; None: all of an output's. head: int8 for it too. act_order:
    groups of "gptq" by the inputs' energy. calibrated_bits: of "gptq" and "awq", 4 or 8.
    """

    method: str
    group: int | None
    symmetric: bool
    head: bool
    act_order: bool = False
    calibrated_bits: int = 4

    @property
    def bits(self) -> int:
        return {"int8": 8, "int4": 4}.get(self.method, self.calibrated_bits)

    def formats(self, config: Config) -> dict[str, Format]:
        """Raises ValueError where groups do not divide a layer's inputs."""
        made = quant.plan(config, self.bits, self.group, not self.symmetric)
        if self.act_order:
            made = {name: replace(format, order=True) for name, format in made.items()}
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
        elif settings.method in ("gptq", "awq"):
            raise ValueError(
                f"{settings.method} needs texts of the model's kind; give --calibration FILE"
            )

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
        plain: dict[str, float] = {}
        if self.settings.method == "awq":
            plain, arrays = self._fold(layer, block, arrays)
        made = {f"{piece}.{n}": x for n, x in self._layers(layer, block, plain).items()}
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

    def _fold(self, layer: int, block: Block, arrays: Arrays) -> tuple[dict[str, float], Arrays]:
        """What plain rounding would lose, and the leaves with their channels scaled."""
        how, dtype = self.settings, arrays[f"blocks.{layer}.attn_norm.scale"].dtype
        seen = functools.partial(self._moments, layer, block)
        plain = awq.fold(block, self.config, dtype, seen, how.bits, how.group, how.symmetric)
        made = zip(arrays.items(), jax.tree.leaves(block), strict=True)
        return plain, {name: np.asarray(leaf, old.dtype) for (name, old), leaf in made}

    def _layers(self, layer: int, block: Block, plain: dict[str, float]) -> dict[str, QuantLinear]:
        """Quantise a block's layers; in `block` their float twins take their places.

        plain: what rounding would lose, where the block was made so that it loses less.
        """
        how, made, errors = self.settings, {}, {}
        numbers = how.bits, how.group, how.symmetric
        for number, stage in enumerate(STAGES):
            seen = self._moments(layer, block, number)
            for name in stage:
                linear = get(block, name)
                found = made[name] = quantize(linear, *numbers)
                shares = {"nearest": float(lost(linear.kernel, found.kernel, seen))}
                if how.method == "gptq":
                    assert seen is not None
                    found = made[name] = gptq.solve(linear, seen, *numbers, how.act_order)
                    shares["gptq"] = float(lost(linear.kernel, found.kernel, seen))
                if name in plain:
                    shares = {"nearest": plain[name], "awq": shares["nearest"]}
                errors[f"blocks.{layer}.{name}"] = shares
            for name in stage:
                put(block, name, dequantize(made[name]))
        self._note({"layers": errors})
        return made

    def _moments(self, layer: int, block: Block, stage: int) -> Any:
        """float32 [in in] of what the layers of a stage get; None without calibration."""
        sheets = self._inputs(layer, "calibration")
        parts = (moments(block, x, lengths, stage, self.config) for x, lengths in sheets)
        return functools.reduce(jnp.add, parts) if self.sheets else None

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
                np.save(self._file(layer + 1, name, number), run(block, x, lengths, self.config))

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
        return sum(float(judge(norm, head, x, s.ids, s.judged)) for (x, _), s in inputs)


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
