"""How an adapter was made: what PEFT's adapter_config.json says.

https://huggingface.co/docs/peft/package_reference/lora
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_jax.files.strict_json import StrictObject

FILE = "adapter_config.json"
# they describe the training that made an adapter, or settle what another key switches on
HARMLESS = """auto_mapping corda_config eva_config inference_mode loftq_config lora_ga_config
    megatron_core peft_version qalora_group_size runtime_config""".split()
# other arithmetic, or tensors that we have no place for
OFF = """alora_invocation_tokens arrow_config ensure_weight_tying fan_in_fan_out kasa_config
    layer_replication lora_bias megatron_config monteclora_config target_parameters
    trainable_token_indices use_bdlora use_dora use_qalora velora_config""".split()
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # they leave the base as it was
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

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of a module's two matrices is multiplied with."""
        alpha, rank = _by_pattern(self.alpha_pattern, module, self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def saves(self, module: str) -> bool:
        return any(ends(name, module) for name in self.modules_to_save)

    def adapts(self, module: str) -> bool:
        """Whether a linear module of a block is a target."""
        if self.saves(module):
            return False
        if isinstance(self.targets, str):
            everything = self.targets.lower() == "all-linear"
            return everything or re.fullmatch(self.targets, module) is not None
        return any(ends(name, module) for name in self.targets)

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


def _by_pattern(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """The number of the first expression that matches, as PEFT looks them up."""
    matches = (number for key, number in pattern.items() if re.match(_expression(key), module))
    return next(matches, default)


def _expression(key: str) -> str:
    return rf"(.*\.)?({key})$"


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
    start = reader.take("init_lora_weights", default=True)
    if start not in STARTS:
        reader.problems.append(
            f"init_lora_weights is {start!r}, which changed the base's weights too; save the "
            "adapter as a plain one (PEFT: path_initial_model_for_weight_conversion)"
        )
    chosen = [reader.take(k, default=None) for k in CHOICES]
    targets = _texts(reader, "target_modules", or_one=True)
    made = LoraConfig(
        rank=reader.size("r"),
        alpha=reader.number("lora_alpha"),
        targets=modules if any(chosen) or not targets else targets,
        dropout=_dropout(reader),
        rslora=reader.flag("use_rslora", default=False),
        rank_pattern=_pattern(reader, "rank_pattern", int),
        alpha_pattern=_pattern(reader, "alpha_pattern", int | float),
        modules_to_save=tuple(_texts(reader, "modules_to_save")),
        base=_note(reader, "base_model_name_or_path"),
        revision=_note(reader, "revision"),
        task=_note(reader, "task_type"),
    )
    off = [key for key, value in reader.left.items() if value in (None, False, "", [], {})]
    reader.finish([*HARMLESS, *off])
    return made


def _texts(reader: StrictObject, name: str, or_one: bool = False) -> tuple[str, ...] | str:
    value = reader.take(name, default=[])
    if or_one and isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        reader.problems.append(f"{name} is {value!r:.99}, expected a list of names")
        return ()
    return tuple(value)


def _note(reader: StrictObject, name: str) -> str | None:
    value = reader.take(name, default=None)
    if value is not None and not isinstance(value, str):
        reader.problems.append(f"{name} is {value!r:.99}, expected a text")
    return value


def _dropout(reader: StrictObject) -> float:
    value = reader.take("lora_dropout", default=0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        reader.problems.append(
            f"lora_dropout is {value!r:.99}, expected a number from 0 to below 1"
        )
        return 0.0
    return float(value)


def _pattern(reader: StrictObject, name: str, kind: Any) -> dict[str, Any]:
    value = reader.take(name, default={})
    if not isinstance(value, dict):
        reader.problems.append(f"{name} is {value!r:.99}, expected an object")
        return {}
    for key, number in value.items():
        if isinstance(number, bool) or not isinstance(number, kind) or not 0 < number < 1e30:
            reader.problems.append(f"{name} gives {key} the number {number!r:.99}")
        try:
            re.compile(_expression(key))
        except re.error as error:
            reader.problems.append(f"{name} has {key!r:.99}, no regular expression: {error}")
        if re.search(r"\)[*+{]", key):  # (a+)+ would keep us busy for years
            reader.problems.append(f"{name} has {key!r:.99}; repeated groups are not supported")
    return value
