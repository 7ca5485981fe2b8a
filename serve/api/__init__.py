"""OpenAI's HTTP API, and what llama.cpp, vLLM and the original Qwen add to it."""
