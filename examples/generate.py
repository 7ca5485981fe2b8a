"""Continue a text, once with the checkpoint's own sampling and once greedily.

python examples/generate.py [FOLDER]
"""

import dataclasses
import sys

import qwen_jax

params = qwen_jax.load(sys.argv[1] if len(sys.argv) > 1 else "demo")

# `generate` continues plain text, in which control tokens count. What a chat model was trained on
# is ChatML; `qwen_jax.chat` writes it for you (batch_chat.py), a base model takes any text.
prompt = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
)

print(qwen_jax.generate(params, prompt, max_new_tokens=32, stop="<|im_end|>", seed=1))

greedy = qwen_jax.Sampling(temperature=0)
print(qwen_jax.generate(params, prompt, greedy, max_new_tokens=32, stop="<|im_end|>"))

# To change one setting, start from the checkpoint's.
cooler = dataclasses.replace(params.assets.defaults.sampling, temperature=0.3)
print(qwen_jax.generate(params, prompt, cooler, max_new_tokens=32, stop="<|im_end|>", seed=1))
