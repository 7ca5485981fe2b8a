"""Compiled programs are kept for the next process, where the user has not said otherwise."""

import os
import sys

from qwen_jax.files import user_cache

DIRECTORY, SECONDS = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


def keep() -> None:
    """Tell JAX, imported already or not; to be called before it compiles for the first time."""
    jax = sys.modules.get("jax")
    if DIRECTORY.upper() in os.environ or (jax and jax.config.jax_compilation_cache_dir):
        return
    settings = {DIRECTORY: str(user_cache.folder() / "xla"), SECONDS: 0.1}
    for name, value in settings.items():
        if name.upper() in os.environ:
            continue
        if jax:
            jax.config.update(name, value)
        else:
            os.environ[name.upper()] = str(value)


def keep_executables() -> None:
    """Have a program's decode functions kept whole, so that the next one does not trace either."""
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() not in ("false", "0"):
        os.environ.setdefault("QWEN_JAX_PROGRAMS", str(user_cache.folder() / "programs"))
        os.environ.setdefault("QWEN_JAX_MACHINE_CODE", str(user_cache.folder() / "machine_code"))
