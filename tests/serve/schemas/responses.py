"""Requests for responses in which each field makes a difference; what asks for nothing."""

from typing import Any

from serve.schemas import unasked
from tests.serve.schemas.table import Table
from tests.serve.text.test_grammar import ODD
from tests.serve.text.test_tools import TIME, WEATHER

URL = "/v1/responses"
TOOLS = [{"type": "function", **function} for function in (WEATHER, TIME)]
HI = {"type": "message", "role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": "4"}
PART = {"type": "reasoning_text", "text": "hm"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [PART]}
BARE = {"type": "reasoning", "summary": []}
NAMED = {"type": "function", "name": "time"}
SPACE = {"type": "namespace", "name": "crm", "description": "All", "tools": TOOLS}
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [NAMED]}
FORM = {"type": "json_schema", "name": "x", "schema": ODD, "strict": False}
WORDS: Any = {"model": "tiny", "input": "hi", "seed": 1, "max_output_tokens": 200}
BASES: Any = {
    "text": (URL, WORDS),
    "items": (URL, WORDS | {"input": [HI, THOUGHT, CALL, OUTPUT]}),
    "unread": (URL, WORDS | {"input": [HI, BARE, CALL, OUTPUT]}),
    "tools": (URL, WORDS | {"tools": TOOLS}),
    "spaces": (URL, WORDS | {"tools": [SPACE]}),
    "named": (URL, WORDS | {"tools": TOOLS, "tool_choice": NAMED}),
    "allowed": (URL, WORDS | {"tools": TOOLS, "tool_choice": ALLOWED}),
    "options": (URL, WORDS | {"text": {}}),
    "effort": (URL, WORDS | {"reasoning": {}}),
    "format": (URL, WORDS | {"text": {"format": FORM}}),
}
USED: Any = {
    "InputMessage.role": ("items", "input.0.role", "developer"),
    "InputMessage.content": ("items", "input.0.content", [{"type": "input_text", "text": "bye"}]),
    "CalledFunction.call_id": ("items", "input.2.call_id", "b"),
    "CalledFunction.namespace": ("items", "input.2.namespace", "crm"),
    "CallOutput.call_id": ("items", "input.3.call_id", "b"),
    "CallOutput.output": ("items", "input.3.output", "5"),
    "Thought.content": ("items", "input.1.content", [{"type": "reasoning_text", "text": "ah"}]),
    "Thought.summary": ("unread", "input.1.summary", [{"type": "summary_text", "text": "ah"}]),
    "Thought.encrypted_content": ("unread", "input.1.encrypted_content", "YWg="),
    "FunctionTool.name": ("tools", "tools.0.name", "other"),
    "FunctionTool.parameters": ("tools", "tools.0.parameters", {"type": "object"}),
    "Namespace.name": ("spaces", "tools.0.name", "erp"),
    "Namespace.tools": ("spaces", "tools.0.tools.0.name", "other"),
    "NamedFunction.name": ("named", "tool_choice.name", "weather"),
    "AllowedTools.mode": ("allowed", "tool_choice.mode", "required"),
    "AllowedTools.tools": ("allowed", "tool_choice.tools.0.name", "weather"),
    "TextFormat.type": ("format", "text.format", {"type": "text"}),
    "TextFormat.schema_": ("format", "text.format.schema", {"type": "string"}),
    "TextFormat.strict": ("format", "text.format.strict", True),
    "TextOptions.format": ("text", "text", {"format": {"type": "json_object"}}),
    "Reasoning.effort": ("text", "reasoning", {"effort": "none"}),
    "ResponsesRequest.max_tokens": ("text", "max_output_tokens", 3),
    "ResponsesRequest.input": ("text", "input", "bye"),
    "ResponsesRequest.instructions": ("text", "instructions", "Be."),
    "ResponsesRequest.store": ("text", "store", False),
    "ResponsesRequest.metadata": ("text", "metadata", {"a": "b"}),
    "ResponsesRequest.include": ("text", "include", ["message.output_text.logprobs"]),
    "ResponsesRequest.reasoning": ("text", "reasoning", {"effort": "none"}),
    "ResponsesRequest.text": ("text", "text", {"format": {"type": "json_object"}}),
    "ResponsesRequest.tools": ("text", "tools", TOOLS),
    "ResponsesRequest.tool_choice": ("tools", "tool_choice", "none"),
    "ResponsesRequest.parallel_tool_calls": ("tools", "parallel_tool_calls", False),
    "ResponsesRequest.top_logprobs": ("text", "top_logprobs", 2),
    "ResponsesRequest.truncation": ("text", "truncation", "auto"),
}
# Another value is refused by the name of the field, or of what it is in.
FIXED: Any = {
    "InputMessage.type": ("items", "input.0.type", "computer_call"),
    "CalledFunction.type": ("items", "input.2.type", "mcp_call"),
    "CallOutput.type": ("items", "input.3.type", "shell_call_output"),
    "Thought.type": ("items", "input.1.type", "compaction"),
    "FunctionTool.type": ("tools", "tools.0.type", "web_search"),
    "Namespace.type": ("spaces", "tools.0.type", "mcp"),
    "NamedFunction.type": ("named", "tool_choice.type", "custom"),
    "AllowedTools.type": ("allowed", "tool_choice.type", "mcp"),
    "PaddingOptions.include_usage": ("text", "stream_options", {"include_usage": True}),
    "PaddingOptions.continuous_usage_stats": (
        "text",
        "stream_options",
        {"continuous_usage_stats": True},
    ),
    "ResponsesRequest.stream_options": ("text", "stream_options", {"include_usage": True}),
    "ResponsesRequest.n": ("text", "n", 2),
    "ResponsesRequest.return_token_ids": ("text", "return_token_ids", True),
}
LABELS: Any = {
    "Namespace.description": ("spaces", "tools.0.description", "Others"),
    "TextFormat.name": ("format", "text.format.name", "y"),
    "TextFormat.description": ("format", "text.format.description", "y"),
}


TABLE = Table(
    "responses",
    BASES,
    USED,
    FIXED,
    LABELS,
    # in tests/serve/dialects: what they name must have been answered before
    elsewhere={"ItemReference.type", "ItemReference.id", "ResponsesRequest.previous_response_id"},
    refused={"TextFormat.strict"},
    beside=("tools",),
    renamed={"max_tokens", "n", "stream_options", "return_token_ids"},
    unasked={
        "text": (("",), unasked.RESPONSES_LABELS, unasked.RESPONSES),
        "items": (("input.0.", "input.2.", "input.3."), unasked.ITEM_LABELS, unasked.ITEM),
        "tools": (("tools.0.",), unasked.TOOL_LABELS, unasked.FUNCTION_TOOL),
        "options": (("text.",), (), unasked.TEXT_OPTIONS),
        "effort": (("reasoning.",), (), unasked.REASONING),
    },
)
