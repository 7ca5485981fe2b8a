"""The command line: --hf MODEL --out FOLDER, and back: --to-hf FOLDER --out BACK."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from qwen_jax import model_folder
from qwen_jax.cli import run
from qwen_jax.files import atomic, sizes
from qwen_jax.program import imports, interruption, limits
from qwen_jax.storage.native_layout import MANIFEST

GROUPS = {  # of --help
    "Hugging Face to native": "hf source dtype verify",
    "quantising": "quantize bits group_size asymmetric act_order quantize_head calibration",
    "native to Hugging Face": "to_hf adapter packing",
}


def main(
    hf: str | None = None,
    to_hf: str | None = None,
    out: str | None = None,
    source: Literal["huggingface", "modelscope"] = "huggingface",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    verify: bool = False,
    adapter: str | None = None,
    packing: Literal["gptq", "awq"] | None = None,
    quantize: Literal["int8", "int4", "gptq", "awq"] | None = None,
    bits: Literal[4, 8] | None = None,
    group_size: int | None = None,
    asymmetric: bool = False,
    act_order: bool = False,
    quantize_head: bool = False,
    calibration: str | None = None,
    revision: str | None = None,
    extra_vocab_file: str | None = None,
    shard_size: str | None = None,
) -> None:
    """Convert a Qwen checkpoint from Hugging Face's format to qwen_jax's, or back.

    Args:
        hf: Model to convert: a hub id such as Qwen/Qwen-14B-Chat, a folder, or "demo".
        to_hf: Native folder, or "demo", to write back as a Hugging Face checkpoint.
        out: Folder to write; with --hf, by default the model's name in lower case.
        source: Hub that --hf names a model of.
        dtype: Type of the parameters written by --hf; by default, as they are stored.
        verify: Comparison of every bit after reading the native folder back; also for one that
            exists already.
        adapter: Folder of an adapter in PEFT's format to merge into what --to-hf writes.
        packing: Format in which --to-hf packs quantised layers; by default, as they came, or GPTQ.
        quantize: Quantisation of --hf: int8 per channel, int4 in groups, or calibrated, by gptq or
            awq.
        bits: Bits of a weight by gptq or awq, by default 4.
        group_size: Inputs that share a scale: 128 by default, all of them for int8; -1: all.
        asymmetric: Zero point of its own for every group.
        act_order: Groups of gptq by the energy of their inputs.
        quantize_head: Quantisation of the output head too, to int8.
        calibration: File of conversations or plain text, as for training: the texts for gptq,
            awq and the report.
        revision: Branch, tag or commit of the model on the hub.
        extra_vocab_file: File of more tokens for an original Qwen, lines of base64 and id.
        shard_size: Most bytes of a file that --to-hf writes, as 5GB; by default, the original's
            files.
    """
    if (hf is None) == (to_hf is None):
        raise ValueError("give either --hf MODEL or --to-hf FOLDER")
    if to_hf is None and adapter is not None:
        raise ValueError("--adapter belongs to --to-hf; qwen_jax.load reads adapters as they are")
    if to_hf is None and (packing is not None or shard_size is not None):
        raise ValueError("--packing and --shard-size belong to --to-hf")
    if quantize is None and (group_size is not None or asymmetric or quantize_head or calibration):
        raise ValueError(
            "--group-size, --asymmetric, --quantize-head and --calibration belong to --quantize"
        )
    if group_size is not None and group_size != -1 and not 1 <= group_size <= 2**20:
        raise ValueError(f"--group-size is {group_size}, wanted 1 to {2**20}, or -1 for all")
    if quantize is not None and verify:
        raise ValueError("--verify compares with the source, from which --quantize differs")
    if act_order and quantize != "gptq":
        raise ValueError("--act-order belongs to --quantize gptq")
    if bits is not None and quantize not in ("gptq", "awq"):
        raise ValueError("--bits belongs to --quantize gptq and awq; int8 and int4 say theirs")
    if quantize in ("gptq", "awq") and calibration is None:
        raise ValueError(f"--quantize {quantize} needs --calibration FILE, texts of its kind")
    limits.expect(adapter=adapter, calibration=calibration, extra_vocab_file=extra_vocab_file)
    if to_hf is None:
        _expect_source(str(hf), out, source, revision, verify)
    elif out is None:
        raise ValueError("--to-hf needs --out, the folder to write")
    elif dtype or verify or quantize or source != "huggingface" or revision or extra_vocab_file:
        raise ValueError(
            "--dtype, --verify, --quantize, --source, --revision and --extra-vocab-file belong to "
            "--hf, not to --to-hf"
        )
    else:
        model_folder.expect(to_hf)
        atomic.expect_free(Path(out))
    largest = None if shard_size is None else sizes.parse(shard_size)
    interruption.advice = "the same command goes on from here" if to_hf is None else ""
    with imports.of_jax():
        import convert.export
        import convert.native
        import convert.quantize

    if to_hf is None:
        group = group_size or (-1 if quantize == "int8" else 128)
        settings = None
        if quantize is not None:
            settings = convert.QuantizeOptions(
                quantize,
                None if group == -1 else group,
                not asymmetric,
                quantize_head,
                act_order,
                bits or 4,
            )
        made = convert.to_native(
            str(hf),
            out,
            source,
            dtype,
            verify,
            settings,
            calibration,
            revision=revision,
            extra_vocab_file=extra_vocab_file,
        )
        model = f"./{made}" if str(made) == "demo" else str(made)  # demo alone is the bundled one
        print(f"next: qwen-jax generate {shlex.quote(model)} 'Hello'")
    else:
        assert out is not None
        made = convert.to_hf(to_hf, out, adapter, packing, largest)
        print(f"next: transformers.AutoModelForCausalLM.from_pretrained({str(made)!r})")


def _expect_source(
    hf: str, out: str | None, source: str, revision: str | None, verify: bool
) -> None:
    """Refuse a model that nobody has, and a folder to write that is there."""
    from convert.source import expect

    expect(hf, source, revision)
    made = model_folder.default_out(hf) if out is None else Path(out)
    if not (verify and (made / MANIFEST).is_file()):
        atomic.expect_free(made)


def command(arguments: Sequence[str] | None = None, prog: str = "python -m convert") -> None:
    import logging
    import os

    from qwen_jax.program import arguments as reading  # late: from here on Ctrl-C is heard

    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing here needs an accelerator, or should hold one
    logging.disable()  # orbax logs the tracebacks of what it raises
    reading.read(main, prog, arguments, GROUPS)


if __name__ == "__main__":
    run(command)
