"""Several users' questions answered together, then one of the conversations goes on.

python examples/batch_chat.py [FOLDER]
"""

import sys

import qwen_jax

params = qwen_jax.load(sys.argv[1] if len(sys.argv) > 1 else "demo")
questions = ["Who are you?", "你好", "What is LoRA?"]

# An answer depends on its own question and seed alone, not on its neighbours.
replies, histories = qwen_jax.chat(params, questions, seed=[1, 2, 3], max_new_tokens=64)
for question, reply in zip(questions, replies, strict=True):
    print(f"{question}\n  {reply}")

reply, history = qwen_jax.chat(params, "Thank you!", histories[0], seed=1, max_new_tokens=64)
print(f"{history[-1][0]}\n  {reply}")
