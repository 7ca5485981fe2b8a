"""What a checkpoint holds beside its arrays."""

from dataclasses import dataclass
from pathlib import Path

from qwen_jax.decoding.generation_config import Defaults
from qwen_jax.storage.pooling_config import Pooling
from qwen_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Assets:
    """Beside the arrays, found by `load`. Compared by identity: it is static under jit."""

    folder: Path
    model_type: str
    tokenizer: Tokenizer | None
    defaults: Defaults
    pooling: Pooling | None = None  # of a checkpoint that makes vectors of texts
    extra: Path | None = None  # a vocabulary that lies elsewhere
