"""The command line: --hf MODEL --out FOLDER, and back: --to-hf FOLDER --out BACK."""

import logging
import os
import sys
from typing import Literal

import tyro


def main(
    hf: str | None = None,
    to_hf: str | None = None,
    out: str | None = None,
    source: Literal["huggingface", "modelscope"] = "huggingface",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    verify: bool = False,
    packing: Literal["gptq", "awq"] | None = None,
) -> None:
    """Convert a Qwen checkpoint from Hugging Face's format to qwen_jax's, or back.

    Args:
        hf: A model to convert: a hub id such as Qwen/Qwen-14B-Chat, a folder, or "demo".
        to_hf: A native folder to write back as a Hugging Face checkpoint.
        out: The folder to write; with --hf, by default the model's name in lower case.
        source: The hub that --hf names a model of.
        dtype: Of the parameters written by --hf; by default, as they are stored.
        verify: Read the native folder back and compare every bit; also for one that exists already.
        packing: How --to-hf packs quantised layers; by default, as they came, or as GPTQ.
    """
    if (hf is None) == (to_hf is None):
        raise ValueError("give either --hf MODEL or --to-hf FOLDER")
    if to_hf is None and packing is not None:
        raise ValueError("--packing belongs to --to-hf")
    if to_hf is None:
        import convert  # takes a second

        convert.to_native(str(hf), out, source=source, dtype=dtype, verify=verify)
    elif out is None:
        raise ValueError("--to-hf needs --out, the folder to write")
    elif dtype or verify or source != "huggingface":
        raise ValueError("--dtype, --verify and --source belong to --hf, not to --to-hf")
    else:
        import convert

        convert.to_hf(to_hf, out, packing=packing)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing here needs an accelerator, or should hold one
    logging.disable()  # orbax logs the tracebacks of what it raises
    try:
        tyro.cli(main, prog="python -m convert")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
