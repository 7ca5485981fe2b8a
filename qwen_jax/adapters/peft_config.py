"""How an adapter was made: what PEFT's adapter_config.json says.

https://huggingface.co/docs/peft/package_reference/lora
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from qwen_jax.files.strict_json import (
    ANYTHING,
    FLAG,
    FRACTION,
    POSITIVE,
    SIZE,
    TEXT,
    Kind,
    StrictObject,
    either,
    listed,
    shown,
    tabled,
)
from qwen_jax.sandbox.process import ask

T = TypeVar("T")
FILE = "adapter_config.json"
# they describe the training that made an adapter, or settle what another key switches on
HARMLESS = """auto_mapping corda_config eva_config inference_mode loftq_config lora_ga_config
    megatron_core peft_version qalora_group_size runtime_config""".split()
# other arithmetic, or tensors that we have no place for
OFF = """alora_invocation_tokens arrow_config ensure_weight_tying fan_in_fan_out kasa_config
    layer_replication lora_bias megatron_config monteclora_config target_parameters
    trainable_token_indices use_bdlora use_dora use_qalora velora_config""".split()
STARTS = ("gaussian", "eva", "orthogonal")  # they leave the base as it was
DROPOUT = Kind("a number from 0 to below 1", lambda v: FRACTION.holds(v) and v < 1, 0.0)
CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")  # among the targets


@dataclass(frozen=True)
class LoraConfig:
    """How an adapter adds to a network; modules go by Hugging Face's names.

    targets: names of modules, or their ends ("c_attn"); a text is a regular expression, or
    "all-linear". rank_pattern, alpha_pattern: other numbers for the modules that a regular
    expression matches, whole or from a dot on. modules_to_save: trained whole, so the adapter
    holds their tensors. base, revision and task are notes for those who load it.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] | str
    dropout: float = 0.0
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()
    base: str | None = None
    revision: str | None = None
    task: str | None = "CAUSAL_LM"

    def ranks(self, modules: Iterable[str]) -> dict[str, int]:
        return _by_pattern(self.rank_pattern, modules, self.rank)

    def scales(self, modules: Iterable[str]) -> dict[str, float]:
        """What the product of each module's two matrices is multiplied with."""
        ranks = self.ranks(modules)
        alphas = _by_pattern(self.alpha_pattern, ranks, self.alpha)
        divided = lambda rank: math.sqrt(rank) if self.rslora else rank
        return {module: alphas[module] / divided(rank) for module, rank in ranks.items()}

    def saves(self, module: str) -> bool:
        return any(ends(name, module) for name in self.modules_to_save)

    def adapted(self, modules: Iterable[str]) -> list[str]:
        """Those linear modules of blocks that are targets."""
        free, targets = [module for module in modules if not self.saves(module)], self.targets
        if not isinstance(targets, str):
            return [module for module in free if any(ends(name, module) for name in targets)]
        if targets.lower() == "all-linear":
            return free
        found = _first_matches([targets], free, "fullmatch")
        return [module for module in free if found[module] is not None]

    def to_json(self) -> dict[str, Any]:
        """Keys that every release of PEFT knows."""
        listed = lambda names: names if isinstance(names, str) else sorted(names)
        return {
            "alpha_pattern": dict(self.alpha_pattern),
            "base_model_name_or_path": self.base,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "lora_alpha": int(self.alpha) if self.alpha == int(self.alpha) else self.alpha,
            "lora_dropout": self.dropout,
            "modules_to_save": list(self.modules_to_save) or None,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": dict(self.rank_pattern),
            "revision": self.revision,
            "target_modules": listed(self.targets),
            "task_type": self.task,
            "use_rslora": self.rslora,
        }


def ends(name: str, module: str) -> bool:
    return module == name or module.endswith("." + name)


def _by_pattern(pattern: Mapping[str, T], modules: Iterable[str], default: T) -> dict[str, T]:
    """Each module's number: that of the first expression that matches, as PEFT looks them up."""
    numbers = list(pattern.values())
    found = _first_matches([rf"(.*\.)?({key})$" for key in pattern], modules, "match")
    return {name: default if at is None else numbers[at] for name, at in found.items()}


def _first_matches(
    expressions: list[str], modules: Iterable[str], how: Literal["match", "fullmatch"]
) -> dict[str, int | None]:
    """The number of the first expression that matches each; a few characters can take years."""
    names = list(modules)
    found = ask("first_matches", expressions, names, how) if expressions else [None] * len(names)
    return dict(zip(names, found, strict=True))


def read_settings(content: Mapping[str, Any], modules: tuple[str, ...]) -> LoraConfig:
    """What an adapter_config.json says; modules: those whose matrices lie beside it.

    What CHOICES say need not be understood: what they chose is there.
    Raises ValueError with everything that is wrong or that we do not do.
    """
    reader = StrictObject(FILE, content)
    reader.require("peft_type", "LORA")
    reader.require("bias", "none")
    for key in OFF:
        reader.require(key, False, None, [], {})
    start = reader.take(ANYTHING, "init_lora_weights", default=True)
    if start is not True and start is not False and start not in STARTS:
        reader.problems.append(
            f"init_lora_weights is {shown(start)}, which changed the base's weights too; save the "
            "adapter as a plain one (PEFT: path_initial_model_for_weight_conversion)"
        )
    chosen = [reader.take(ANYTHING, k, default=None) for k in CHOICES]
    targets: Any = reader.take(either(listed(TEXT), TEXT), "target_modules", default=[])
    made = LoraConfig(
        rank=reader.take(SIZE, "r"),
        alpha=float(reader.take(POSITIVE, "lora_alpha")),
        targets=modules if any(chosen) or not targets else _named(targets),
        dropout=float(reader.take(DROPOUT, "lora_dropout", default=0.0)),
        rslora=reader.take(FLAG, "use_rslora", default=False),
        rank_pattern=_pattern(reader, "rank_pattern", SIZE, modules),
        alpha_pattern=_pattern(reader, "alpha_pattern", POSITIVE, modules),
        modules_to_save=tuple(reader.take(listed(TEXT), "modules_to_save", default=[])),
        base=reader.take(TEXT, "base_model_name_or_path", default=None),
        revision=reader.take(TEXT, "revision", default=None),
        task=reader.take(TEXT, "task_type", default=None),
    )
    empty = [key for key, value in reader.left.items() if value in ("", [], {})]
    reader.finish([*HARMLESS, *empty])
    return made


def _named(targets: list[str] | str) -> tuple[str, ...] | str:
    return targets if isinstance(targets, str) else tuple(targets)


def _pattern(
    reader: StrictObject, name: str, kind: Kind[Any], modules: tuple[str, ...]
) -> dict[str, Any]:
    numbers = reader.take(tabled(kind), name, default={})
    try:
        _by_pattern(numbers, modules, None)
    except ValueError as error:
        reader.problems.append(f"{name} cannot be used: {error}")
    return numbers
