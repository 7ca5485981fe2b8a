"""How a checkpoint makes vectors of texts: what sentence-transformers' files beside it say.

    modules.json              what a text passes: the network, pooling, perhaps normalising
    1_Pooling/config.json     which hidden states become its vector
    config_sentence_transformers.json   texts that go before others, by name: "query"
https://sbert.net/docs
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qwen_jax.files import strict_json
from qwen_jax.files.problems import Problems
from qwen_jax.files.strict_json import ANYTHING, FLAG, TEXT, StrictObject, shown, tabled

MODULES, POOLING = "modules.json", "1_Pooling/config.json"
PROMPTS = "config_sentence_transformers.json"
FILES = (MODULES, POOLING, PROMPTS)


@dataclass(frozen=True)
class Pooling:
    """A text's vector is the last hidden state of its last token."""

    normalize: bool
    prompts: Mapping[str, str] = field(default_factory=dict)


def read(folder: Path) -> Pooling | None:
    """None where a checkpoint is not made for vectors. Raises ValueError for other ways to pool."""
    if not (folder / MODULES).is_file():
        return None
    content = strict_json.decode(strict_json.read_bytes(folder / MODULES))
    listed = content if isinstance(content, list) else []
    modules = StrictObject(MODULES, {"modules": {str(n): one for n, one in enumerate(listed)}})
    kinds = [one.take(TEXT, "type").rpartition(".")[2] for _, one in modules.each("modules")]
    problems = Problems(modules.problems)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        problems.add(
            f"{MODULES}: got {shown(kinds)}, wanted Transformer, Pooling and perhaps Normalize"
        )
    file = StrictObject.of(folder / POOLING)
    mode = file.take(ANYTHING, "pooling_mode", default=None)
    if mode is None:  # older: a switch for each
        prefix = "pooling_mode_"
        modes = [name for name in file.left if name.startswith(prefix)]
        mode = [name.removeprefix(prefix) for name in modes if file.take(FLAG, name)]
    if mode not in ("lasttoken", ["lasttoken"]):
        file.wrong("pooling_mode", mode, "lasttoken, which is all that is done here")
    problems.add(*file.problems)
    prompts = StrictObject.of(folder / PROMPTS)
    texts = prompts.take(tabled(TEXT), "prompts", default={})
    problems.add(*prompts.problems)
    problems.stop(f"{folder} makes vectors in a way that is not supported")
    return Pooling("Normalize" in kinds, texts)
