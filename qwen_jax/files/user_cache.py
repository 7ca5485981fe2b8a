"""Where what can be made again is kept for one user."""

import os
from pathlib import Path


def folder() -> Path:
    """~/.cache/qwen_jax, or below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen_jax"
