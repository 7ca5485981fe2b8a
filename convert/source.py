"""Where a checkpoint comes from: the hub, ModelScope, a folder, or the package itself."""

import importlib
from pathlib import Path
from typing import Any

from qwen_jax import bundled
from qwen_jax.model_folder import HUB_ID
from qwen_jax.program.arguments import install
from qwen_jax.storage import pooling_config
from qwen_jax.text.vocabulary import FILES

SIDE_FILES = (
    "config.json",
    "generation_config.json",
    *FILES,
    "special_tokens_map.json",
    *pooling_config.FILES,
)
INDEX = "model.safetensors.index.json"
QUANTISED = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # AutoGPTQ's, AutoAWQ's
# never pickles, never code
PATTERNS = [*SIDE_FILES, INDEX, *QUANTISED, "model*.safetensors"]


def locate(hf: str | Path, source: str = "huggingface", revision: str | None = None) -> Path:
    """The folder of a checkpoint in Hugging Face's layout, downloaded if `hf` is a hub id."""
    folder = expect(hf, source, revision)
    return download(str(hf), source, revision) if folder is None else folder


def expect(hf: str | Path, source: str, revision: str | None) -> Path | None:
    """The folder that is meant, None for a hub id; raises OSError or ValueError for neither."""
    folder = bundled.CHECKPOINT if hf == "demo" else Path(hf)
    if folder.is_dir() and str(hf):
        if revision is not None:
            raise ValueError(f"{hf} is a folder here; a revision is of a model on the hub")
        return folder
    if folder.exists() and str(hf):
        raise NotADirectoryError(f"{hf} is a file; give the folder that holds config.json")
    if not HUB_ID.fullmatch(str(hf)):
        given = str(hf) or "of an empty name"
        raise FileNotFoundError(f"there is no folder {given}, and a hub id looks like Qwen/Qwen-7B")
    _hub(source)
    return None


def download(model: str, source: str, revision: str | None = None) -> Path:
    """The files of a model that matter; what an earlier call brought is not fetched again."""
    hub = _hub(source)
    try:
        of = {} if revision is None else {"revision": revision}
        return Path(hub.snapshot_download(model, allow_patterns=PATTERNS, **of))
    except Exception as error:  # whatever the hub's HTTP client may raise
        what = model if revision is None else f"{model} at {revision}"
        raise OSError(f"cannot download {what} from {source}: {error}") from error


def _hub(source: str) -> Any:
    """The package that downloads from it."""
    package = {"huggingface": "huggingface_hub", "modelscope": "modelscope"}.get(source)
    if package is None:
        raise ValueError(f"source is {source!r}, expected 'huggingface' or 'modelscope'")
    try:
        return importlib.import_module(package)
    except ImportError:
        extra = "hub" if source == "huggingface" else "modelscope"
        raise ValueError(
            f"downloading from {source} needs {package}, which is not installed; {install(extra)}"
        ) from None
