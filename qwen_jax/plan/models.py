"""The sizes of every dense Qwen that was published, so that nothing has to be downloaded."""

from typing import Any

from qwen_jax.config import Config

_SMALL, _LARGE = 151936, 152064  # rows of the vocabulary
# name: (width, layers, heads, key/value heads, mlp, vocabulary, tied)
_V1 = {
    "Qwen-1.8B": (2048, 24, 16, 16, 5504, _SMALL, False),
    "Qwen-7B": (4096, 32, 32, 32, 11008, _SMALL, False),
    "Qwen-14B": (5120, 40, 40, 40, 13696, _LARGE, False),
    "Qwen-72B": (8192, 80, 64, 64, 24576, _LARGE, False),
}
_V1_5 = {
    "Qwen1.5-0.5B": (1024, 24, 16, 16, 2816, _SMALL, True),
    "Qwen1.5-1.8B": (2048, 24, 16, 16, 5504, _SMALL, False),
    "Qwen1.5-4B": (2560, 40, 20, 20, 6912, _SMALL, False),
    "Qwen1.5-7B": (4096, 32, 32, 32, 11008, _SMALL, False),
    "Qwen1.5-14B": (5120, 40, 40, 40, 13696, _LARGE, False),
    "Qwen1.5-32B": (5120, 64, 40, 8, 27392, _LARGE, False),
    "Qwen1.5-72B": (8192, 80, 64, 64, 24576, _LARGE, False),
    "Qwen1.5-110B": (8192, 80, 64, 8, 49152, _LARGE, False),
}
_V2 = {
    "Qwen2-0.5B": (896, 24, 14, 2, 4864, _SMALL, True),
    "Qwen2-1.5B": (1536, 28, 12, 2, 8960, _SMALL, True),
    "Qwen2-7B": (3584, 28, 28, 4, 18944, _LARGE, False),
    "Qwen2-72B": (8192, 80, 64, 8, 29568, _LARGE, False),
    "Qwen2.5-0.5B": (896, 24, 14, 2, 4864, _SMALL, True),
    "Qwen2.5-1.5B": (1536, 28, 12, 2, 8960, _SMALL, True),
    "Qwen2.5-3B": (2048, 36, 16, 2, 11008, _SMALL, True),
    "Qwen2.5-7B": (3584, 28, 28, 4, 18944, _LARGE, False),
    "Qwen2.5-14B": (5120, 48, 40, 8, 13824, _LARGE, False),
    "Qwen2.5-32B": (5120, 64, 40, 8, 27648, _LARGE, False),
    "Qwen2.5-72B": (8192, 80, 64, 8, 29568, _LARGE, False),
}
_V3 = {
    "Qwen3-0.6B": (1024, 28, 16, 8, 3072, _SMALL, True),
    "Qwen3-1.7B": (2048, 28, 16, 8, 6144, _SMALL, True),
    "Qwen3-4B": (2560, 36, 32, 8, 9728, _SMALL, True),
    "Qwen3-8B": (4096, 36, 32, 8, 12288, _SMALL, False),
    "Qwen3-14B": (5120, 40, 40, 8, 17408, _SMALL, False),
    "Qwen3-32B": (5120, 64, 64, 8, 25600, _SMALL, False),
}
SIZES = _V1 | _V1_5 | _V2 | _V3


def config(name: str) -> Config:
    """Of a published model, by its name on the hub with or without owner and ending."""
    plain = name.rstrip("/").split("/")[-1].lower().replace("_", ".")
    plain = plain.replace("-coder", "").replace("-math", "")
    matching = [size for size in SIZES if f"{plain}-".startswith(f"{size.lower()}-")]
    if plain.startswith("qwq-32b"):
        matching = ["Qwen2.5-32B"]
    if not matching:
        raise ValueError(
            f"got the model {name!r}, wanted one of {', '.join(SIZES)}, demo, or a folder with its "
            "config.json"
        )
    found = max(matching, key=len)
    width, layers, heads, kv_heads, mlp, vocab, tied = SIZES[found]
    features: dict[str, Any] = {"qkv_bias": found not in _V3, "qk_norm": found in _V3}
    return Config(
        vocab=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=128 if found in _V3 else width // heads,
        mlp=mlp,
        norm_eps=1e-6,
        tied=tied,
        rope_base=1e4 if found in _V1 and found != "Qwen-72B" else 1e6,
        ntk_length=None,
        logn_length=None,
        yarn=None,
        max_length=8192 if found in _V1 and found != "Qwen-72B" else 32768,
        init_std=0.02,
        **features,
    )
