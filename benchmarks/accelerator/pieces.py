"""What is measured, in pieces that each take minutes."""

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.accelerator.kept import Case
from benchmarks.accelerator.sizes import Size

Cases = Callable[[], Mapping[str, Case]]


def pieces(size: Size, folder: Path) -> dict[str, Cases]:
    """By name, in their order; nothing runs, and JAX is imported, where one is called."""

    def late(module: str, function: str, *arguments: object) -> Cases:
        def cases() -> Mapping[str, Case]:
            import importlib

            found = importlib.import_module(f"benchmarks.accelerator.{module}")
            return getattr(found, function)(size, *arguments)

        return cases

    decoding = {
        f"decode-{model}-{precision}-{batch}": late("speed", "decoding", model, precision, batch)
        for model in size.models
        for precision in size.precisions
        for batch in size.batches
    }
    return {
        "ceilings": late("exact", "ceilings"),
        "goldens": late("exact", "goldens"),
        "kernels": late("kernels", "kernels"),
        **decoding,
        **{f"prefill-{model}": late("speed", "prefill", model) for model in size.models},
        "load": late("whole", "loading", folder),
        "server": late("whole", "serving", folder),
        "lora": late("whole", "training"),
        "transformers": late("rivals", "transformers"),
    }
