"""Messages in which each field makes a difference; what asks for nothing."""

from typing import Any

from serve.schemas import unasked
from tests.serve.schemas.table import Table
from tests.serve.text.test_tools import TIME, WEATHER

URL, COUNT = "/v1/messages", "/v1/messages/count_tokens"
TOOLS = [
    {{"parameters": "input_schema"}.get(name, name): function[name] for name in function}
    for function in (WEATHER, TIME)
]
HI = {"role": "user", "content": "hi"}
SAID = [
    {"type": "thinking", "thinking": "hm", "signature": "x"},
    {"type": "text", "text": "so"},
    {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
]
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": "4"}
FIVE = {"type": "text", "text": "5"}
TURNS = [HI, {"role": "assistant", "content": SAID}, {"role": "user", "content": [RESULT]}]
FORM = {"type": "json_schema", "schema": {"type": "object"}}
WORDS: Any = {"model": "tiny", "max_tokens": 200, "seed": 1, "messages": [HI]}
BASES: Any = {
    "text": (URL, WORDS),
    "count": (COUNT, {"model": "tiny", "messages": [HI]}),
    "turns": (URL, WORDS | {"messages": TURNS}),
    "tools": (URL, WORDS | {"tools": TOOLS}),
    "chosen": (URL, WORDS | {"tools": TOOLS, "tool_choice": {"type": "auto"}}),
    "named": (URL, WORDS | {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "time"}}),
    "thinking": (URL, WORDS | {"thinking": {"type": "disabled"}}),
    "format": (URL, WORDS | {"output_config": {"format": FORM}}),
}
USED: Any = {
    "TextBlock.text": ("turns", "messages.1.content.1.text", "bye"),
    "ThinkingBlock.thinking": ("turns", "messages.1.content.0.thinking", "ah"),
    "ToolUseBlock.id": ("turns", "messages.1.content.2.id", "b"),
    "ToolUseBlock.name": ("turns", "messages.1.content.2.name", "g"),
    "ToolUseBlock.input": ("turns", "messages.1.content.2.input", {"x": 2}),
    "ToolResultBlock.tool_use_id": ("turns", "messages.2.content.0.tool_use_id", "b"),
    "ToolResultBlock.content": ("turns", "messages.2.content.0.content", [FIVE]),
    "Turn.role": ("turns", "messages.0.role", "system"),
    "Turn.content": ("turns", "messages.0.content", "bye"),
    "CustomTool.name": ("tools", "tools.0.name", "other"),
    "CustomTool.description": ("tools", "tools.0.description", "other"),
    "CustomTool.input_schema": ("tools", "tools.0.input_schema", {"type": "object"}),
    "CustomTool.strict": ("tools", "tools.0.strict", True),
    "ToolChoice.type": ("chosen", "tool_choice.type", "none"),
    "ToolChoice.name": ("named", "tool_choice.name", "weather"),
    "ToolChoice.disable_parallel_tool_use": (
        "chosen", "tool_choice.disable_parallel_tool_use", True
    ),
    "Thinking.type": ("thinking", "thinking.type", "adaptive"),
    "OutputFormat.schema_": ("format", "output_config.format.schema", {"type": "string"}),
    "OutputConfig.format": ("format", "output_config", {}),
    "TurnsFields.system": ("text count", "system", [{"type": "text", "text": "Be."}]),
    "TurnsFields.messages": ("text count", "messages.0.content", "bye"),
    "TurnsFields.tools": ("text count", "tools", TOOLS),
    "TurnsFields.tool_choice": ("tools", "tool_choice", {"type": "none"}),
    "TurnsFields.thinking": ("text count", "thinking", {"type": "disabled"}),
    "TurnsFields.output_config": ("text", "output_config", {"format": FORM}),
    "TurnsFields.output_format": ("text", "output_format", FORM),
    "CountRequest.model": ("count", "model", "other"),
    "MessagesRequest.max_tokens": ("text", "max_tokens", 3),
    "MessagesRequest.stop": ("text", "stop_sequences", ["l"]),
}  # fmt: skip
FIXED: Any = {
    "TextBlock.type": ("turns", "messages.1.content.1.type", "image"),
    "ThinkingBlock.type": ("turns", "messages.1.content.0.type", "redacted_thinking"),
    "ToolUseBlock.type": ("turns", "messages.1.content.2.type", "server_tool_use"),
    "ToolResultBlock.type": ("turns", "messages.2.content.0.type", "web_search_tool_result"),
    "CustomTool.type": ("tools", "tools.0.type", "bash_20250124"),
    "OutputFormat.type": ("format", "output_config.format.type", "regex"),
    "MessagesRequest.n": ("text", "n", 2),
    "MessagesRequest.return_token_ids": ("text", "return_token_ids", True),
    "MessagesRequest.stream_options": ("text", "stream_options", {}),
}
LABELS: Any = {"OutputConfig.effort": ("format", "output_config.effort", "high")}
BLOCKS = tuple(f"messages.{place}." for place in ("1.content.1", "1.content.2", "2.content.0"))
TABLE = Table(
    "messages",
    BASES,
    USED,
    FIXED,
    LABELS,
    renamed={
        "max_tokens",
        "n",
        "stream_options",
        "stop",
        "return_token_ids",
        "include_stop_str_in_output",
    },
    unasked={
        "text": (("",), unasked.TURNS_LABELS - unasked.LABELS, unasked.TURNS),
        "turns": (BLOCKS, unasked.BLOCK_LABELS, unasked.BLOCK),
        "tools": (("tools.0.",), unasked.BLOCK_LABELS, unasked.CUSTOM_TOOL),
        "thinking": (("thinking.",), unasked.THINKING_LABELS, unasked.THINKING),
    },
)
