"""Scores that the makers of the original Qwen published, in percent, by suite and task.

A suite is a row of their tables: a checkpoint at one precision. From the README and the technical
memo of QwenLM/Qwen; "qwen-7b-v1.0" is the first release, of 2.2 trillion tokens. Chat scores are
those without examples. Tool use is of the set v20231206; agents, and which code ran of maths and
plots, are of the README of September 2023, with agents of the first release from the memo. VCSUM is
from the checkpoints' own pages.
"""

_BASE = ("mmlu", "ceval", "gsm8k", "math", "humaneval", "mbpp", "bbh", "cmmlu")
_CHAT = ("mmlu_chat", "ceval_chat", "gsm8k_chat", "humaneval_chat")
_LEVAL = tuple(f"leval_{n}" for n in ("coursera", "gsm", "quality", "tpo", "codeu", "sci_fi"))
_TOOLS = ("tool_selection", "tool_input", "tool_false_positive")
_CODE = tuple(
    f"interpreter_{n}" for n in ("math", "general_runs", "math_runs", "visualization_runs")
)
_WMT22 = ("wmt22_zh_en", "wmt22_en_zh")
_AGENT = tuple(f"agent_{m}_{n}" for m in ("run", "chat") for n in ("selection", "used", "code"))

Scores = dict[str, float]


def _row(tasks: tuple[str, ...], *scores: float | None) -> Scores:
    pairs = zip(tasks, scores, strict=True)
    return {task: score for task, score in pairs if score is not None}


SUITES: dict[str, Scores] = {
    "qwen-1.8b": _row(_BASE, 45.3, 56.1, 32.3, 2.3, 15.2, 14.2, 22.3, 52.1),
    "qwen-7b-v1.0": _row(_BASE, 56.7, 60.8, 51.6, 10.4, 24.4, 31.2, 40.6, 58.8)
    | _row(_WMT22, 24.3, 30.6),
    "qwen-7b": _row(_BASE, 58.2, 63.5, 51.7, 11.6, 29.9, 31.6, 45.0, 62.2),
    "qwen-14b": _row(_BASE, 66.3, 72.1, 61.3, 24.8, 32.3, 40.8, 53.4, 71.0),
    "qwen-72b": _row(_BASE, 77.4, 83.3, 78.9, 35.2, 35.4, 52.2, 67.7, 83.6),
    "qwen-1.8b-chat": _row(_CHAT, 43.3, 55.6, 33.7, 26.2)
    | _row(_TOOLS, 85.0, 83.9, 27.6)
    | _row(_CODE, 25.6, 65.5, None, None),
    "qwen-1.8b-chat-int8": _row(_CHAT, 43.1, 55.8, 33.0, 27.4),
    "qwen-1.8b-chat-int4": _row(_CHAT, 42.9, 52.8, 31.2, 25.0),
    "qwen-7b-chat-v1.0": _row(_CHAT, 53.9, 54.2, 41.1, 24.4)
    | _row(_AGENT[:3], 90.74, 92.59, 74.07),
    "qwen-7b-chat-v1.0-int4": _row(_CHAT, 52.6, 52.9, 38.1, 23.8),
    "qwen-7b-chat": _row(_CHAT, 55.8, 59.7, 50.3, 37.2)
    | _row(_TOOLS, 95.5, 90.0, 11.6)
    | _row(_CODE, 41.9, 67.2, 82.4, 64.4)
    | _row(_AGENT, 87.0, 87.0, 71.5, 94.7, 94.7, 85.1)
    | {"vcsum": 16.6},
    "qwen-7b-chat-int8": _row(_CHAT, 55.4, 59.4, 48.3, 34.8),
    "qwen-7b-chat-int4": _row(_CHAT, 55.1, 59.2, 49.7, 29.9),
    "qwen-14b-chat": _row(_CHAT, 64.6, 69.8, 60.1, 43.9)
    | _row(_TOOLS, 96.9, 91.7, 5.6)
    | _row(_CODE, 58.4, 65.5, 89.2, 84.1)
    | _row(_AGENT, 93.5, 94.4, 87.0, 97.9, 97.9, 95.5)
    | {"vcsum": 17.3},
    "qwen-14b-chat-int8": _row(_CHAT, 63.6, 68.6, 60.0, 48.2),
    "qwen-14b-chat-int4": _row(_CHAT, 63.3, 69.0, 59.8, 45.7),
    "qwen-72b-chat": _row(_CHAT, 74.3, 80.1, 76.4, 64.6)
    | _row(_TOOLS, 98.2, 92.7, 1.1)
    | _row(_CODE, 72.7, 82.8, None, None)
    | _row(_LEVAL, 58.13, 76.00, 77.22, 86.24, 6.66, 69.53),
    "qwen-72b-chat-int8": _row(_CHAT, 73.5, 80.1, 73.5, 62.2),
    "qwen-72b-chat-int4": _row(_CHAT, 73.4, 80.1, 75.3, 61.6),
}


def suite_of(name: str) -> str | None:
    """The suite that a checkpoint's folder or hub id names, if one does."""
    plain = name.rstrip("/").split("/")[-1].lower().replace("_", "-").replace("1-8b", "1.8b")
    return plain if plain in SUITES else None
