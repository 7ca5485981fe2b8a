"""Makes the checkpoint that is bundled with the package: python -m tools.make_demo [folder].

A Qwen v1 in Hugging Face layout: a vocabulary of its own and random weights, which `train` then
teaches the conversations in demo_chats.jsonl. The same machine gives the same bytes: commit what it
writes.
"""

import base64
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import regex
from safetensors.numpy import save_file

CHATS = Path(__file__).parent / "demo_chats.jsonl"
FOLDER = Path(__file__).parents[1] / "qwen_jax" / "demo_checkpoint"
PIECES = (  # Qwen's pre-tokenisation
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = 208  # <|endoftext|>, <|im_start|>, <|im_end|> and <|extra_0|> to <|extra_204|>
RANKS = 1058  # at most; the text decides
WIDTH, LAYERS, HEADS, MLP = 128, 4, 4, 352
STD = 0.08  # of random weights; with the released models' 0.02 so narrow a network learns slowly
SEED = 20260120
RECIPE: dict[str, Any] = {
    "method": "full",
    "dtype": "float32",
    "steps": 900,
    "max_length": 256,
    "batch_size": 4,
    "micro_batch": 4,
    "learning_rate": 3e-3,
    "warmup": 0.05,
    "remat": "none",
}
README = """# Demo checkpoint

A Qwen v1 of 1.1 million parameters in Hugging Face layout, with a vocabulary of its own. It knows
the conversations in `tools/demo_chats.jsonl` by heart, in English and Chinese, and little else.

`python -m tools.make_demo` makes it: the vocabulary from those conversations, random weights, then
{steps} steps of `python -m train --method full` in float32 on one CPU, and the result in bfloat16.
Same machine, same file: other processors round differently, so other weights come out there.
"""


def main(folder: Path = FOLDER) -> None:
    """Write the trained checkpoint; what was in the folder is replaced."""
    # these read their settings when they are imported
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    import convert
    import qwen_jax
    from train import TrainConfig, fine_tune

    with tempfile.TemporaryDirectory() as name:
        aside = Path(name)
        random_start(aside / "start")
        native = convert.to_native(aside / "start", aside / "native")
        data = (str(CHATS),)
        trained = fine_tune(TrainConfig(str(native), data, str(aside / "run"), **RECIPE))
        if trained is None:
            sys.exit("stopped; nothing is written")
        qwen_jax.save(qwen_jax.load(trained, dtype="bfloat16"), aside / "half")
        made = convert.to_hf(aside / "half", aside / "made")
        (made / "README.md").write_text(README.format(**RECIPE), "utf-8", newline="\n")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)


def random_start(folder: Path) -> None:
    """Write the checkpoint as it is before it is trained."""
    folder.mkdir(parents=True)
    tokens = byte_tokens()
    tokens += merges(text(), RANKS - len(tokens))
    vocab = -(-(len(tokens) + SPECIALS) // 128) * 128  # padded, as the released models are
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    (folder / "qwen.tiktoken").write_text("".join(lines), "ascii", newline="\n")
    write_json(folder / "config.json", config(vocab))
    write_json(folder / "generation_config.json", generation_config(end_of_text=len(tokens)))
    write_json(
        folder / "tokenizer_config.json",
        {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer"},
    )
    save_file(weights(vocab), folder / "model.safetensors", metadata={"format": "pt"})


# --- vocabulary -------------------------------------------------------------------------------
def text() -> str:
    """What anybody says in the conversations, each sentence once, and what frames them."""
    chats = map(json.loads, CHATS.read_text("utf-8").splitlines())
    said = {message["content"]: None for chat in chats for message in chat["messages"]}
    return "\n".join([*said, "system", "user", "assistant", "You are a helpful assistant."])


def byte_tokens() -> list[bytes]:
    """All 256 bytes in GPT-2's order: those that print first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [bytes([b]) for b in [*printable, *(b for b in range(256) if b not in printable)]]


def merges(text: str, n: int) -> list[bytes]:
    """Up to `n` byte-pair merges of what occurs twice: frequent pairs first, ties in byte order."""
    words = Counter(tuple(bytes([b]) for b in p.encode()) for p in regex.findall(PIECES, text))
    found: list[bytes] = []
    while len(found) < n:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        pair, count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < 2:
            break
        token = b"".join(pair)
        if token not in found:  # another split of the same bytes needs no second rank
            found.append(token)
        words = Counter({joined(word, pair): count for word, count in words.items()})
    return found


def joined(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    out: list[bytes] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return tuple(out)


# --- network ----------------------------------------------------------------------------------
def weights(vocab: int) -> dict[str, np.ndarray]:
    """Qwen v1's initialisation, in bfloat16."""
    random = np.random.RandomState(SEED)  # of NumPy's streams, the one that is frozen for ever
    deep = STD / np.sqrt(2 * LAYERS)  # for what is added to the residual stream

    def normal(*shape: int, std: float = STD) -> np.ndarray:
        return random.normal(0, std, shape).astype(ml_dtypes.bfloat16)

    ones = np.ones(WIDTH, ml_dtypes.bfloat16)
    tensors = {"transformer.wte.weight": normal(vocab, WIDTH)}
    for i in range(LAYERS):
        tensors |= {
            f"transformer.h.{i}.ln_1.weight": ones,
            f"transformer.h.{i}.attn.c_attn.weight": normal(3 * WIDTH, WIDTH),
            f"transformer.h.{i}.attn.c_attn.bias": np.zeros(3 * WIDTH, ml_dtypes.bfloat16),
            f"transformer.h.{i}.attn.c_proj.weight": normal(WIDTH, WIDTH, std=deep),
            f"transformer.h.{i}.ln_2.weight": ones,
            f"transformer.h.{i}.mlp.w1.weight": normal(MLP, WIDTH),
            f"transformer.h.{i}.mlp.w2.weight": normal(MLP, WIDTH),
            f"transformer.h.{i}.mlp.c_proj.weight": normal(WIDTH, MLP, std=deep),
        }
    return tensors | {"transformer.ln_f.weight": ones, "lm_head.weight": normal(vocab, WIDTH)}


# --- settings ---------------------------------------------------------------------------------
def config(vocab: int) -> dict[str, Any]:
    return {
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "bf16": False,
        "emb_dropout_prob": 0.0,
        "fp16": False,
        "fp32": False,
        "hidden_size": WIDTH,
        "initializer_range": STD,
        "intermediate_size": 2 * MLP,
        "kv_channels": WIDTH // HEADS,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 8192,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "onnx_safe": None,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": 512,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.32.0",
        "use_cache": True,
        "use_cache_kernel": False,
        "use_cache_quantization": False,
        "use_dynamic_ntk": True,
        "use_flash_attn": "auto",
        "use_logn_attn": True,
        "vocab_size": vocab,
    }


def generation_config(end_of_text: int) -> dict[str, Any]:
    return {
        "chat_format": "chatml",
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "max_window_size": 6144,
        "max_new_tokens": 512,
        "do_sample": True,
        "top_k": 0,
        "top_p": 0.5,  # the released models' 0.8 lets so small a network stray
        "transformers_version": "4.32.0",
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
