"""Which native folder a user means: the one home of what may be given as a model."""

import difflib
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

from qwen_jax.program import rendezvous
from qwen_jax.storage.native_layout import MANIFEST

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def find(model: str | Path) -> Path:
    """The folder of a model; "demo" is the bundled one, whatever lies here under that name.

    Raises what `expect` does.
    """
    expect(model)
    if model != "demo":
        return Path(model)
    if Path("demo").exists():
        warnings.warn("demo is the bundled model; give ./demo for the folder", stacklevel=3)
    from qwen_jax import bundled  # which imports JAX

    return bundled.native_folder()


def expect(model: str | Path) -> None:
    """Raise FileNotFoundError or ValueError if no native folder is meant, with what to type.

    What else can be given is a checkpoint of Hugging Face's: an id on the hub, or a folder.
    """
    folder = Path(model)
    if model == "demo" or (folder / MANIFEST).is_file():
        return
    if folder.is_dir():
        foreign = any(folder.glob("*.safetensors")) or (folder / "config.json").is_file()
        if foreign and folder.suffix != ".partial":
            raise ValueError(f"{folder} is a Hugging Face checkpoint; {_advice(folder)}")
        if folder.suffix == ".partial":
            raise ValueError(f"{folder} was interrupted while it was written; convert it again")
        raise ValueError(f"{folder} is no checkpoint: it has no {MANIFEST}; give a native folder")
    if folder.is_file():
        raise ValueError(f"{folder} is a file; give a native folder")
    if not folder.exists():
        if HUB_ID.fullmatch(str(model)) and not folder.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {model}, a hub id; {_advice(folder)}")
        raise FileNotFoundError(f"there is no folder {folder}; {_near(folder)}")


def begin_reading(model: str | Path, *run: Any) -> None:
    """Bring a native folder's arrays into memory while this process does something else.

    run: what `rendezvous.found` is given; of several processes each reads its part, and later.
    """
    if model != "demo" and rendezvous.found(*run) is None:
        from qwen_jax.storage import early  # late: not every program that knows a folder reads it

        early.begin(Path(model))


def default_out(hf: str | Path) -> Path:
    """Where a checkpoint is converted to: Qwen/Qwen-14B-Chat to qwen-14b-chat."""
    return Path("demo" if hf == "demo" else Path(hf).resolve().name.lower())


def _advice(hf: Path) -> str:
    """What to type, with the names filled in."""
    out = default_out(hf)
    if (out / MANIFEST).is_file():
        return f"it is converted already: give {shlex.quote(str(out))}"
    if out.exists():
        out = Path(f"{out}-native")
    command = f"qwen-jax convert --hf {shlex.quote(str(hf))} --out {shlex.quote(str(out))}"
    return f"convert it first: {command} and then give {shlex.quote(str(out))}"


def _near(folder: Path) -> str:
    """Native folders beside it with a name like that, or how to make one."""
    beside = [file.parent.name for file in folder.parent.glob(f"*/{MANIFEST}")]
    beside += ["demo"] if folder.parent == Path() else []
    if near := difflib.get_close_matches(folder.name, beside, n=1):
        return f"did you mean {folder.with_name(near[0])}?"
    return f"make one: qwen-jax convert --hf MODEL --out {shlex.quote(str(folder))}"
