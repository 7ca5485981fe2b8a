"""Qwen in pure JAX: convert a checkpoint, run it sharded, fine-tune it, serve it.

>>> import qwen_jax
>>> params = qwen_jax.load("qwen-7b-chat")
>>> reply, history = qwen_jax.chat(params, "你好")
"""

from qwen_jax.checkpoint import load, save
from qwen_jax.config import Config
from qwen_jax.decoding.sampling import Sampling
from qwen_jax.generate import chat, generate, logits, stream

__all__ = ["Config", "Sampling", "chat", "generate", "load", "logits", "save", "stream"]
