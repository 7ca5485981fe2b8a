"""Load and save checkpoints in the native format; `native` says what lies on the disk."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, SingleDeviceSharding
from jax.typing import DTypeLike

from qwen_jax import model_folder
from qwen_jax.adapters import attach, peft
from qwen_jax.assets import Assets
from qwen_jax.config import Config
from qwen_jax.decoding.generation_config import Defaults
from qwen_jax.files import atomic, strict_json
from qwen_jax.files.problems import Problems
from qwen_jax.nn.cpu.kinds import available
from qwen_jax.nn.model import Qwen
from qwen_jax.nn.quant import (
    FIELDS,
    Format,
    abstract_leaves,
    arrange_leaves,
    at_rest,
    build,
    formats_of,
    rest,
)
from qwen_jax.nn.sharding import make_mesh, shardings
from qwen_jax.nn.tree import named_leaves
from qwen_jax.program import compiled, progress
from qwen_jax.storage import hf_config, native, pooling_config
from qwen_jax.storage.hashed_arrays import digest_file
from qwen_jax.storage.native import Manifest
from qwen_jax.storage.origin import Origin
from qwen_jax.text import vocabulary_file
from qwen_jax.text.tokenizer import Tokenizer
from qwen_jax.text.vocabulary import EXTRA


class Examined(NamedTuple):
    """All of a checkpoint but its arrays."""

    manifest: Manifest
    config: Config
    assets: Assets


def load(
    folder: str | Path | Examined,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
    adapter: str | Path | None = None,
    extra_vocab_file: str | Path | None = None,
    before_reading: Callable[[Qwen], object] | None = None,
) -> Qwen:
    """The parameters in a native checkpoint, each array restored straight to its shards.

    folder: what `python -m convert` or `save` wrote; "demo" is the bundled checkpoint; or what
        `examine` gave for one.
    mesh: default, one over all devices of all processes. In a run of several processes all call
        this alike, and each reads its own shards.
    dtype: of every parameter that is not quantised; default, as stored.
    adapter: a folder in PEFT's format, whose matrices are kept beside the layers they adapt.
    extra_vocab_file: more tokens for an original Qwen, where none were given at its conversion.
    before_reading: called with parameters that are ShapeDtypeStructs, once all else is known, to
        start what needs no numbers; not where there is an adapter.
    Raises FileNotFoundError, or ValueError with everything that is wrong.
    """
    compiled.keep()
    if not isinstance(folder, Examined):
        folder = examine(folder, extra_vocab_file)
    elif extra_vocab_file is not None:
        raise ValueError("extra_vocab_file is for `examine`, where that was called before")
    manifest, config, assets = folder
    added = None if adapter is None else peft.read(adapter)
    if added is not None:
        attach.check(added, config, assets.model_type)
    wanted, made = _layout(manifest, config, assets, mesh, dtype)
    (first, *_) = wanted["embed"].sharding.device_set
    if first.platform == "cpu":
        available()  # a switch that says nothing is refused before there is any work
    if before_reading is not None and added is None:
        before_reading(_arranged(wanted, made))
    arrays: dict[str, jax.Array] = {}
    for piece, leaves in native.by_piece(wanted).items():
        read = native.read_piece(assets.folder, piece, leaves, manifest.pieces[piece])
        arrange_leaves(read, first.platform)  # before there is more to hold
        jax.block_until_ready(arrays)  # while the next ones are read the last ones travel
        arrays |= read
        progress.advance(native.size(leaves))
    return made(arrays) if added is None else attach.add(made(arrays), added)


def shapes(folder: str | Path, mesh: Mesh | None = None, dtype: DTypeLike | None = None) -> Qwen:
    """What `load` would give, as ShapeDtypeStructs with shardings; no array is read."""
    return _arranged(*_layout(*examine(folder), mesh, dtype))


_Made = Callable[[dict[str, Any]], Qwen]  # from leaves by name


def _layout(
    manifest: Manifest, config: Config, assets: Assets, mesh: Mesh | None, dtype: DTypeLike | None
) -> tuple[dict[str, jax.ShapeDtypeStruct], _Made]:
    """Every array as it will be restored, and what makes parameters of them."""
    places = _places(config, mesh, formats_of(manifest.leaves))
    where = named_leaves(places)
    kept = lambda name, leaf: (
        leaf.dtype if name.rpartition(".")[2] in FIELDS else dtype or leaf.dtype
    )
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, kept(name, leaf), sharding=where[name])
        for name, leaf in manifest.leaves.items()
    }
    made = lambda leaves: dataclasses.replace(
        jax.tree.unflatten(jax.tree.structure(places), [leaves.pop(name) for name in where]),
        assets=assets,
    )
    return wanted, made


def _arranged(wanted: Mapping[str, jax.ShapeDtypeStruct], made: _Made) -> Qwen:
    (first, *_) = wanted["embed"].sharding.device_set
    leaves: dict[str, Any] = dict(wanted)
    arrange_leaves(leaves, first.platform)
    return made(leaves)


def examine(folder: str | Path, extra_vocab_file: str | Path | None = None) -> Examined:
    """Raises what `load` does before it reads an array."""
    folder = model_folder.find(folder)
    manifest = Manifest.read(folder)
    extra = None if extra_vocab_file is None else Path(extra_vocab_file)
    return Examined(manifest, *_read_assets(folder, manifest, extra))


def outline(config: Config, assets: Assets) -> Qwen:
    """A checkpoint that is examined, without its arrays: enough to make prompts for it."""
    return dataclasses.replace(build(config, {}, lambda shape, axes, kind: 0), assets=assets)


def _read_assets(folder: Path, manifest: Manifest, extra: Path | None) -> tuple[Config, Assets]:
    """The other files; every fault of the folder is found before an array is read."""
    config = Config.from_hf(strict_json.read(folder / "config.json"))
    problems = Problems(manifest.problems(folder, config))
    tokenizer, defaults, pooling = None, Defaults(), None
    with problems.catch():
        tokenizer = _tokenizer(folder, manifest, extra)
    with problems.catch():
        defaults = read_defaults(folder)
    with problems.catch():
        pooling = pooling_config.read(folder)
    problems.add(*vocabulary_problems(tokenizer, config))
    problems.stop(f"{folder} cannot be loaded")
    return config, Assets(folder, manifest.model_type, tokenizer, defaults, pooling, extra)


def _tokenizer(folder: Path, manifest: Manifest, extra: Path | None) -> Tokenizer | None:
    """From the file that loads at once; a folder that was not converted may hold others."""
    if extra is not None or vocabulary_file.NAME not in manifest.files:
        return Tokenizer.load(folder, extra)
    return Tokenizer(vocabulary_file.unpack((folder / vocabulary_file.NAME).read_bytes()))


def read_defaults(folder: Path) -> Defaults:
    """What generation_config.json says, and config.json; a checkpoint may do without the first."""
    file = folder / "generation_config.json"
    config = strict_json.read(folder / "config.json")
    return Defaults.from_hf(strict_json.read(file) if file.is_file() else {}, config)


def vocabulary_problems(tokenizer: Tokenizer | None, config: Config) -> list[str]:
    if tokenizer is None or tokenizer.encoding.max_token_value < config.vocab:
        return []
    last = tokenizer.encoding.max_token_value
    return [
        f"the tokenizer's ids reach {last}, the embedding has {config.vocab} rows; "
        "the tokenizer belongs to another checkpoint"
    ]


def _places(config: Config, mesh: Mesh | None, quantised: dict[str, Format]) -> Qwen:
    """The tree with a sharding at every leaf: its shards on a mesh, or the only device."""
    if mesh is None and jax.device_count() == 1:
        only = SingleDeviceSharding(jax.devices()[0])
        return build(config, quantised, lambda shape, axes, kind: only)
    return shardings(config, mesh or make_mesh(), quantised)


def save(params: Qwen, folder: str | Path) -> None:
    """Write parameters where `load` finds them, with the files that came with them if any did.

    Every process of a run calls this; the folder is one they all see. It must not exist: it is
    written as `<folder>.partial` and renamed when it is whole.
    """
    folder = Path(folder).absolute()
    atomic.expect_free(folder)
    leaves = named_leaves(jax.eval_shape(at_rest, params))
    wanted = abstract_leaves(params.config, formats_of(leaves))
    shapes = lambda leaves: {name: leaf.shape for name, leaf in leaves.items()}
    problems = Problems(native.mismatches(shapes(wanted), shapes(leaves)))
    problems.stop("only whole networks are saved (fuse adapters first)")
    first, need = jax.process_index() == 0, native.on_disk(native.size(leaves))
    meet = multihost_utils.sync_global_devices
    with atomic.new_folder(folder, need, first=first, meet=meet) as partial:
        manifest = _write_files(params, leaves, partial) if first else None
        for piece in native.by_piece(leaves):
            native.write_piece(partial, piece, _arrays(params, piece))
        if manifest is not None:
            manifest.seal(partial)


def _arrays(params: Qwen, piece: str) -> dict[str, jax.Array]:
    """The leaves of a piece as they lie on the disk."""
    part: Any = params
    for word in piece.split("."):
        part = part[int(word)] if word.isdigit() else getattr(part, word)
    leaves = named_leaves(rest(part))
    return {f"{piece}.{name}" if name else piece: leaf for name, leaf in leaves.items()}


def _write_files(params: Qwen, leaves: dict[str, jax.ShapeDtypeStruct], partial: Path) -> Manifest:
    """Everything but the arrays: copied from where `load` found it, or made from the Config."""
    if params.assets is None:
        config = hf_config.to_hf(params.config)
        (partial / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
        files = {"config.json": digest_file(partial / "config.json")}
        return Manifest(config["model_type"], leaves, files)
    source = Manifest.read(params.assets.folder)
    files = {name: hash for name, hash in source.files.items() if name != Origin.FILE}
    extra = params.assets.extra if isinstance(params.assets, Assets) else None
    if extra is not None:
        files.pop(vocabulary_file.NAME, None)  # which does not have these tokens
        shutil.copyfile(extra, partial / EXTRA)
    for name in files:
        atomic.copy_file(params.assets.folder / name, partial / name)
    if extra is not None:
        files[EXTRA] = digest_file(partial / EXTRA)
    return dataclasses.replace(source, leaves=leaves, files=files)
