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
    adapter: str | None = None,
    packing: Literal["gptq", "awq"] | None = None,
    quantize: Literal["int8", "int4", "gptq"] | None = None,
    group_size: int | None = None,
    asymmetric: bool = False,
    quantize_head: bool = False,
    calibration: str | None = None,
) -> None:
    """Convert a Qwen checkpoint from Hugging Face's format to qwen_jax's, or back.

    Args:
        hf: A model to convert: a hub id such as Qwen/Qwen-14B-Chat, a folder, or "demo".
        to_hf: A native folder to write back as a Hugging Face checkpoint.
        out: The folder to write; with --hf, by default the model's name in lower case.
        source: The hub that --hf names a model of.
        dtype: Of the parameters written by --hf; by default, as they are stored.
        verify: Read the native folder back and compare every bit; also for one that exists already.
        adapter: A folder in PEFT's format to merge into the weights that --to-hf writes.
        packing: How --to-hf packs quantised layers; by default, as they came, or as GPTQ.
        quantize: Make --hf smaller: int8 per channel, int4 in groups, or gptq, int4 calibrated.
        group_size: Inputs that share a scale: 128 by default, all of them for int8; -1: all.
        asymmetric: Give every group a zero point of its own.
        quantize_head: Make the output head int8 too.
        calibration: Texts for gptq and for the report: a file of conversations or of plain text, as
            for training.
    """
    if (hf is None) == (to_hf is None):
        raise ValueError("give either --hf MODEL or --to-hf FOLDER")
    if to_hf is None and adapter is not None:
        raise ValueError("--adapter belongs to --to-hf; qwen_jax.load reads adapters as they are")
    if to_hf is None and packing is not None:
        raise ValueError("--packing belongs to --to-hf")
    if quantize is None and (group_size or asymmetric or quantize_head or calibration):
        raise ValueError(
            "--group-size, --asymmetric, --quantize-head and --calibration belong to --quantize"
        )
    if to_hf is None:
        import convert  # takes a second

        group = group_size or (-1 if quantize == "int8" else 128)
        settings = None
        if quantize is not None:
            settings = convert.QuantizeOptions(
                quantize, None if group == -1 else group, not asymmetric, quantize_head
            )
        convert.to_native(str(hf), out, source, dtype, verify, settings, calibration)
    elif out is None:
        raise ValueError("--to-hf needs --out, the folder to write")
    elif dtype or verify or quantize or source != "huggingface":
        raise ValueError(
            "--dtype, --verify, --quantize and --source belong to --hf, not to --to-hf"
        )
    else:
        import convert

        convert.to_hf(to_hf, out, adapter, packing)


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
