"""The log-likelihood of every choice after a question, as multiple-choice benchmarks measure it.

python examples/score.py [FOLDER]
"""

import sys

import jax
import jax.numpy as jnp

import qwen_jax

params = qwen_jax.load(sys.argv[1] if len(sys.argv) > 1 else "demo")
encode = params.assets.tokenizer.encode


def log_likelihood(context: str, continuation: str) -> float:
    """log p(continuation | context), the sum over its tokens."""
    before, after = encode(context, specials=True), encode(continuation)
    ids = jnp.array([[*before, *after]])
    log_probs = jax.nn.log_softmax(qwen_jax.logits(params, ids)[0, :-1])  # [T-1 V]: of the next
    chosen = jnp.take_along_axis(log_probs, ids[0, 1:, None], axis=-1)[:, 0]
    return float(chosen[-len(after) :].sum())


question = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat is qwen_jax?<|im_end|>\n<|im_start|>assistant\n"
)
choices = ("qwen_jax is Qwen in pure JAX", "qwen_jax is a kind of fish")
scores = {choice: log_likelihood(question, choice) for choice in choices}
for choice, score in scores.items():
    print(f"{score:8.2f}  {choice}")
print("likelier:", max(scores, key=scores.__getitem__))
