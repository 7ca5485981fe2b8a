"""Requests of text-generation-inference in which each field makes a difference."""

from typing import Any

from serve.schemas import unasked
from tests.serve.schemas.table import Table

URL = "/generate"
ASK: Any = {"inputs": "hi", "parameters": {"max_new_tokens": 30, "seed": 1, "do_sample": True}}
DETAILS = ASK | {"parameters": ASK["parameters"] | {"details": True}}
BASES: Any = {
    "text": (URL, ASK),
    "greedy": (URL, {"inputs": "hi", "parameters": {"max_new_tokens": 30, "seed": 1}}),
    "details": (URL, DETAILS),
    "stream": ("/generate_stream", ASK),
}
USED: Any = {
    "GenerateRequest.inputs": ("text stream", "inputs", "bye"),
    "GenerateRequest.parameters": ("text", "parameters", {"max_new_tokens": 3}),
    "Parameters.max_tokens": ("text stream", "parameters.max_new_tokens", 3),
    "Parameters.adapter_id": ("text", "parameters.adapter_id", "other"),
    "Parameters.do_sample": ("v1 text", "parameters.do_sample", False),
    "Parameters.details": ("text", "parameters.details", True),
    "Parameters.decoder_input_details": ("details", "parameters.decoder_input_details", True),
    "Parameters.top_n_tokens": ("details stream", "parameters.top_n_tokens", 1),
    "Parameters.return_full_text": ("text", "parameters.return_full_text", True),
    "Parameters.truncate": ("text", "parameters.truncate", 1),
    "Parameters.grammar": ("text", "parameters.grammar", {"type": "regex", "value": "a"}),
}
FIXED: Any = {
    "Parameters.model": ("text", "parameters.model", "x"),
    "Parameters.stream": ("text", "parameters.stream", True),
    "Parameters.stream_options": ("text", "parameters.stream_options", {}),
    "Parameters.n": ("text", "parameters.n", 2),
    "Parameters.return_token_ids": ("text", "parameters.return_token_ids", True),
    "StreamRequest.stream": ("stream", "stream", 7),
}
TABLE = Table(
    "generate",
    BASES,
    USED,
    FIXED,
    {},
    prefix="parameters.",
    renamed={
        *("max_tokens", "model", "n", "return_token_ids", "stream_options"),
        *("ignore_eos", "include_stop_str_in_output"),
    },
    unasked={
        "stream": (("",), (), unasked.STREAM),
        "greedy": (("parameters.",), (), {"watermark": (False,), "typical_p": (1,)}),
    },
)
