"""An answer piece by piece, as it is written.

python examples/stream.py [FOLDER]
"""

import sys

import qwen_jax

params = qwen_jax.load(sys.argv[1] if len(sys.argv) > 1 else "demo")
shown = 0
for answer in qwen_jax.stream_chat(params, "What can I do with qwen_jax?", seed=1):
    print(answer.text[shown:], end="", flush=True)  # the whole answer so far: print what is new
    shown = len(answer.text)
print(f"\n[{len(answer.tokens)} tokens, finished by {answer.finish_reason}]")
