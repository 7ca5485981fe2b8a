"""LoRA on a few conversations, and the adapter beside the model it was made for.

python examples/finetune.py [FOLDER]
"""

import json
import sys
import tempfile
from pathlib import Path

import qwen_jax
import train

model = sys.argv[1] if len(sys.argv) > 1 else "demo"
questions = ("What is your name?", "Who are you?", "Tell me your name.", "你是谁？")
chats = [
    {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "I am Ada."},
        ]
    }
    for question in questions
]

with tempfile.TemporaryDirectory() as folder:
    data, run = Path(folder) / "chats.jsonl", Path(folder) / "run"
    data.write_text("\n".join(json.dumps(chat) for chat in chats), "utf-8")
    train.fine_tune(
        train.TrainConfig(
            model=model,
            data=(str(data),),
            out=str(run),
            loss_on="assistant",
            steps=16,
            batch_size=16,
            max_length=64,
            pack=False,
            rank=8,
            learning_rate=1e-2,
            dropout=0.0,
        )
    )
    params = qwen_jax.load(model, adapter=run / "adapter")  # the folder opens in PEFT too

greedy = qwen_jax.Sampling(temperature=0)
reply, _ = qwen_jax.chat(params, "Who are you?", sampling=greedy, max_new_tokens=16)
print(f"\n{reply}")
