"""From a Hugging Face checkpoint to a native folder, one piece of the network at a time."""

import dataclasses
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import jax
import numpy as np

from convert import huggingface
from convert.huggingface import Checkpoint, is_same
from convert.progress import Progress
from convert.quantize import QuantizeOptions, Quantizer
from convert.source import INDEX, QUANTISED, SIDE_FILES, locate
from qwen_jax import memory
from qwen_jax.files import atomic, sizes
from qwen_jax.files.lock import only_writer
from qwen_jax.files.problems import Problems
from qwen_jax.model_folder import default_out
from qwen_jax.nn.quant import FIELDS, abstract_leaves
from qwen_jax.nn.tree import FLOATS, INTEGERS
from qwen_jax.storage import native, native_layout
from qwen_jax.storage.hashed_arrays import digest, digest_file
from qwen_jax.storage.hf_names import is_harmless
from qwen_jax.storage.native import Manifest
from qwen_jax.storage.origin import Origin
from qwen_jax.storage.safetensors_file import NAMES
from qwen_jax.text import vocabulary_file
from qwen_jax.text.vocabulary import EXTRA

STATE = "conversion.json"  # in an unfinished folder: what it is made from
WORK = "quantising"  # in an unfinished folder: what the next block needs


def to_native(
    hf: str | Path,
    out: str | Path | None = None,
    source: str = "huggingface",
    dtype: str | None = None,
    verify: bool = False,
    quantize: QuantizeOptions | None = None,
    calibration: str | Path | None = None,
    revision: str | None = None,
    extra_vocab_file: str | Path | None = None,
) -> Path:
    """Convert a checkpoint and return its native folder, ready for `qwen_jax.load`.

    hf: a hub id, a folder in Hugging Face's layout, or "demo", the bundled checkpoint.
    out: default, the model's name in lower case. It must not exist, except to be verified; an
        interrupted conversion is taken up again.
    source: the hub of the id, "huggingface" or "modelscope".
    dtype: "float32", "bfloat16" or "float16" for all parameters that are not quantised; default,
        as stored.
    verify: read the result back and compare every bit with the source.
    quantize: how to quantise the linear layers; calibration: texts for it, which also judge it.
    revision: a branch, tag or commit of the hub, where GPTQ's variants are branches of one id.
    extra_vocab_file: more tokens for v1, as for the original's tokenizer; a copy is kept.
    Raises ValueError with everything that is wrong with the checkpoint, or OSError.
    """
    out = default_out(hf) if out is None else Path(out)
    is_there = out.exists()
    if is_there and not (verify and (out / native_layout.MANIFEST).is_file()):
        raise FileExistsError(
            f"{out} exists; choose another folder with --out or delete it "
            "(--verify compares a native folder with its source)"
        )
    if quantize is not None and verify:
        raise ValueError(
            "a quantised checkpoint differs from its source; convert it without verify"
        )
    if calibration is not None and quantize is None:
        raise ValueError("calibration texts are for quantising; say how")
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(FLOATS)}")
    extra = None if extra_vocab_file is None else Path(extra_vocab_file)
    with nullcontext() if is_there else only_writer(out):
        folder = locate(hf, source, revision)
        checkpoint = huggingface.read(folder, dtype is not None, extra)
        for notice in checkpoint.notices:
            print(notice)
        manifest = _manifest(checkpoint, dtype)
        if is_there:
            _verify(checkpoint, manifest, out, f"verifying {out}")
            return out
        quantizer = None
        if quantize is not None:
            if checkpoint.formats:
                raise ValueError(f"{folder} is quantised already")
            texts = None if calibration is None else Path(calibration)
            quantizer = Quantizer(checkpoint, quantize, texts, atomic.aside(out) / WORK)
        origin = Origin.of(str(hf), folder, source, revision)
        _write(checkpoint, manifest, out, verify, quantizer, origin)
    return out


def _manifest(checkpoint: Checkpoint, dtype: str | None) -> Manifest:
    leaves = {}
    for name, leaf in abstract_leaves(checkpoint.config, checkpoint.formats).items():
        kind = name.rpartition(".")[2]
        stored = checkpoint.stored(checkpoint.leaves[name][0].tensor).dtype
        made = np.dtype(dtype) if dtype and kind not in FIELDS else stored
        made = leaf.dtype if leaf.dtype.name in INTEGERS else made
        leaves[name] = jax.ShapeDtypeStruct(leaf.shape, made)
    shards = {
        file: {
            "metadata": shard.metadata,
            "tensors": {
                name: NAMES[tensor.dtype]
                for name, tensor in shard.tensors.items()
                if not is_harmless(name)
            },
        }
        for file, shard in checkpoint.shards.items()
    }
    hashes = {name: digest_file(file) for name, file in _side_files(checkpoint).items()}
    if checkpoint.vocabulary is not None:
        hashes[vocabulary_file.NAME] = digest(vocabulary_file.pack(checkpoint.vocabulary))
    return Manifest(checkpoint.model_type, leaves, hashes, shards)


def _side_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """What lies beside the weights, by its name in the native folder."""
    found = {name: checkpoint.folder / name for name in (*SIDE_FILES, INDEX, *QUANTISED)}
    found |= {} if checkpoint.extra is None else {EXTRA: checkpoint.extra}
    return {name: file for name, file in found.items() if file.is_file()}


# --- writing ----------------------------------------------------------------------------------
def _write(
    checkpoint: Checkpoint,
    source: Manifest,
    out: Path,
    verify: bool,
    quantizer: Quantizer | None,
    origin: Origin,
) -> None:
    """Everything goes to `<out>.partial`, which is renamed when it is whole."""
    manifest = source
    if quantizer is not None:  # of other tensors than those in the source's shards
        manifest = dataclasses.replace(source, leaves=quantizer.leaves(source.leaves), shards={})
    state = _state(checkpoint, manifest, quantizer)
    need = native.on_disk(native.size(manifest.leaves))
    atomic.check_room(out, need - _keep(atomic.aside(out), state))
    pieces, total = native.by_piece(source.leaves), native.size(manifest.leaves)
    with (
        atomic.new_folder(out, need, resume=True, locked=True) as partial,
        Progress(f"writing {out}", total, len(pieces)) as progress,
    ):
        (partial / STATE).write_text(state, "utf-8")
        before = sizes.on_disk(partial)
        origin.write(partial)
        hashes = manifest.files | {origin.FILE: digest_file(partial / origin.FILE)}
        manifest = dataclasses.replace(manifest, files=hashes)
        for name, file in _side_files(checkpoint).items():
            atomic.copy_file(file, partial / name)
        if checkpoint.vocabulary is not None:
            packed = vocabulary_file.pack(checkpoint.vocabulary)
            (partial / vocabulary_file.NAME).write_bytes(packed)
        for piece, leaves in pieces.items():
            if (there := native_layout.piece_file(partial, piece)).exists():
                progress.skip(there.stat().st_size)
                continue
            arrays = {
                name: checkpoint.leaf(name, leaf.shape, leaf.dtype) for name, leaf in leaves.items()
            }
            if quantizer is not None:
                arrays = quantizer.piece(piece, arrays)
            native.write_piece(partial, piece, arrays)
            if quantizer is not None:
                quantizer.done(piece)
            progress.advance(sizes.on_disk(partial / native_layout.WEIGHTS / piece))
        if quantizer is not None:
            quantizer.finish(partial)
        manifest.seal(partial)
        progress.finish(written=sizes.on_disk(partial) - before)
        held = memory.by_dtype(manifest.leaves.values())
        stored = manifest.leaves["embed"].dtype.name  # a CPU caches in float32
        print(memory.summary(held, memory.caches(checkpoint.config, stored, "float32")))
        if verify:
            _verify(checkpoint, manifest, partial, f"verifying {out}")
        (partial / STATE).unlink()


def _state(checkpoint: Checkpoint, manifest: Manifest, quantizer: Quantizer | None) -> str:
    """What a conversion that is taken up again must agree in."""
    files = {name: (checkpoint.folder / name).stat() for name in checkpoint.shards}
    source = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()}
    how = None if quantizer is None else quantizer.identity()
    return json.dumps({"source": source, "manifest": manifest.to_json(), "how": how})


def _keep(partial: Path, state: str) -> int:
    """Leave only the whole pieces of a conversion in this state; their bytes."""
    if (partial / STATE).is_file() and (partial / STATE).read_text("utf-8") == state:
        for rest in (partial / native_layout.WEIGHTS).glob("*.partial"):
            rest.unlink()
    elif partial.exists():
        shutil.rmtree(partial)
    return sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())


# --- checking ---------------------------------------------------------------------------------
def _verify(checkpoint: Checkpoint, expected: Manifest, folder: Path, title: str) -> None:
    """Read every piece back as a stranger would, and compare it with the source."""
    manifest = Manifest.read(folder)
    problems = Problems(manifest.problems(folder, checkpoint.config))
    own = {Origin.FILE: ""}  # says where the source was at the time
    if manifest.files | own != expected.files | own:
        problems.add("config, generation or tokenizer files differ")
    pieces = native.by_piece(manifest.leaves) if not problems else {}
    with Progress(title, native.size(manifest.leaves), len(pieces)) as progress:
        for piece, leaves in pieces.items():
            read = native.read_piece(folder, piece, leaves, manifest.pieces[piece])
            problems.add(*_differences(read, checkpoint))
            del read  # before the next one
            progress.advance(native.size(leaves))
        problems.stop(f"{folder} is not {checkpoint.folder}")
        dtypes = {leaf.dtype.name for leaf in manifest.leaves.values()}
        same = "identical to the source, bit for bit"
        if manifest.leaves != expected.leaves:
            same = f"the source rounded to {', '.join(sorted(dtypes))}, bit for bit"
        progress.finish(f": {len(manifest.leaves)} arrays, {same}")


def _differences(leaves: dict[str, np.ndarray], checkpoint: Checkpoint) -> list[str]:
    """In a function, so that one piece is forgotten before the next is read."""
    return [
        f"{name} differs from {part.tensor}"
        for name, leaf in leaves.items()
        for part in checkpoint.leaves[name]
        if not is_same(*part.views(leaf, checkpoint.tensor(part.tensor)))
    ]
