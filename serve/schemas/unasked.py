"""Fields of other servers and of OpenAI's own, and the values of them that ask for nothing.

Clients send whatever their server knows, mostly at its default. What is listed here changes no
answer; any other value of these fields would, and is refused by name.
"""

from collections.abc import Mapping
from typing import Any

Idle = Mapping[str, tuple[Any, ...]]

# Names for a request, or notes on how to keep, find or bill it: any value will do.
LABELS = frozenset(
    # OpenAI
    "user store metadata service_tier safety_identifier prompt_cache_key prompt_cache_retention "
    # vLLM, SGLang
    "request_id rid custom_labels log_metrics guided_decoding_backend add_special_tokens "
    # gateways: Ollama's and OpenRouter's own housekeeping; caching marks of Anthropic's clients
    "keep_alive usage cache_control cache_prompt".split()
)

_OPENAI: Idle = {
    "model": ("",),
    "best_of": (1,),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "stop": ("", []),
}
_VLLM: Idle = {
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "truncate_prompt_tokens": (-1,),
    "return_tokens_as_token_ids": (False,),
    "include_reasoning": (True,),
    "documents": ([],),
    "bad_words": ([],),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "vllm_xargs": ({},),
    "cache_salt": ("",),
}
_SGLANG: Idle = {
    "no_stop_trim": (False,),
    "separate_reasoning": (True,),
    "stream_reasoning": (True,),
    "return_hidden_states": (False,),
    "return_routed_experts": (False,),
    "return_cached_tokens_details": (False,),
    "return_prompt_token_ids": (False,),
    "return_meta_info": (False,),
    "use_audio_in_video": (False,),
    "stop_regex": ("", []),
}
_LLAMA_CPP: Idle = {
    "n_keep": (0,),
    "n_probs": (0,),
    "min_keep": (0,),
    "id_slot": (-1,),
    "mirostat": (0,),
    "mirostat_tau": (5,),
    "mirostat_eta": (0.1,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "repeat_penalty": (1,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "dynatemp_exponent": (1,),
    "grammar": ("",),
    "t_max_predict_ms": (0,),
    "timings_per_token": (False,),
    "post_sampling_probs": (False,),
    "return_progress": (False,),
}
_GATEWAYS: Idle = {  # DashScope, DeepSeek, OpenRouter, Mistral, Hugging Face
    "enable_search": (False,),
    "incremental_output": (True,),
    "result_format": ("message",),
    "vl_high_resolution_images": (False,),
    "safe_prompt": (False,),
    "transforms": ([],),
    "plugins": ([],),
    "watermark": (False,),
}
REQUEST: Idle = {**_OPENAI, **_VLLM, **_SGLANG, **_LLAMA_CPP, **_GATEWAYS}

# Of messages: what clients make of an answer, and send back with it.
MESSAGE_LABELS = frozenset("parsed provider_specific_fields cache_control id status index".split())
MESSAGE: Idle = {
    "annotations": ([],),
    "refusal": ("",),
    "tool_calls": ([],),
    "name": ("",),
    "images": ([],),
    "thinking_blocks": ([],),
    "reasoning_details": ([],),
    "tool_call_id": ("",),
    "partial": (False,),
    "prefix": (False,),
}
CALL_LABELS = frozenset({"index", "cache_control", "provider_specific_fields"})
FUNCTION_CALL_LABELS = frozenset({"parsed_arguments"})
TOOL_LABELS = frozenset({"cache_control"})
PART_LABELS = frozenset({"cache_control"})
PART: Idle = {"annotations": ([],), "logprobs": ([],)}
STREAM_LABELS = frozenset({"include_obfuscation"})  # it pads events against who listens in
# Of /tokenize; no Qwen adds any special tokens.
TOKENIZE_LABELS = frozenset({"add_special_tokens"})
DETOKENIZE: Idle = {"model": ("",)}
TOKENIZE: Idle = {**DETOKENIZE, "mm_processor_kwargs": ({},), "tools": ([],)}

STRUCTURED_OUTPUTS: Idle = {
    "disable_fallback": (False,),
    "disable_any_whitespace": (False,),
    "disable_additional_properties": (False,),
    "json_object": (False,),
}

# Of the Responses API: no built-in tool is called, nothing is read twice or made elsewhere.
RESPONSES_LABELS = frozenset({"max_tool_calls", "prompt_cache_options", "client_metadata"})
RESPONSES: Idle = {
    **REQUEST,
    "background": (False,),
    "include": ([],),
    "context_management": ([],),
}
ITEM_LABELS = frozenset("id status phase provider_specific_fields".split())
ITEM: Idle = {"async": (False,), "caller": ({"type": "direct"},)}
FUNCTION_TOOL: Idle = {
    "defer_loading": (False,),
    "async": (False,),
    "allowed_callers": (["direct"],),
}
TEXT_OPTIONS: Idle = {"verbosity": ("medium",)}
REASONING: Idle = {
    "summary": ("auto",),
    "generate_summary": ("auto",),
    "context": ("auto",),
    "mode": ("standard",),
}

# Of the Messages API
TURNS_LABELS = LABELS | {"container", "diagnostics", "inference_geo", "user_profile_id"}
TURNS: Idle = {
    **REQUEST,
    "speed": ("standard",),
    "mcp_servers": ([],),
    "context_management": ({}, {"edits": []}),
}
BLOCK_LABELS = frozenset({"cache_control", "signature", "is_error"})
BLOCK: Idle = {"citations": ([],), "caller": ({"type": "direct"},)}
CUSTOM_TOOL: Idle = {
    "defer_loading": (False,),
    "eager_input_streaming": (True, False),
    "allowed_callers": (["direct"],),
    "input_examples": ([],),
}
THINKING_LABELS = frozenset({"budget_tokens"})
THINKING: Idle = {"display": ("summarized",)}

# Of text-generation-inference
GENERATE: Idle = {**REQUEST, "best_of": (0, 1), "stop": ([],)}
STREAM: Idle = {"stream": (False,)}

# Of embeddings: vLLM's, and text-embeddings-inference's
EMBEDDINGS: Idle = {
    "priority": (0,),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "use_activation": (True,),
    "normalize": (True,),
}
EMBED: Idle = {"truncation_direction": ("right", "Right"), "encoding_format": ("float",)}

# Of rerank: Cohere's, Jina's, vLLM's and text-embeddings-inference's
RERANK: Idle = {
    "truncation_direction": ("right", "Right"),
    "priority": (0,),
    "rank_fields": (["text"],),
    "max_chunks_per_doc": (1, 10),
    "truncation": (True,),
    "truncate_prompt_tokens": (-1,),
    "use_activation": (True,),
}

# of loading an adapter: vLLM's and SGLang's
ADAPTER: Idle = {"is_3d_lora_weight": (False,), "pinned": (False,)}
