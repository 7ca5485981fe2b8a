"""A running server through OpenAI's own client: an answer, a stream, JSON after a schema.

qwen-jax serve --model demo        # in another terminal
python examples/openai_client.py [http://localhost:8000]
"""

import json
import sys

import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "What is qwen_jax?"}]

answer = client.chat.completions.create(model=model, messages=messages, temperature=0)
print(answer.choices[0].message.content, answer.usage.completion_tokens, "tokens")

for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, seed=1):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

schema = {
    "type": "object",
    "properties": {"language": {"enum": ["English", "Chinese"]}, "sure": {"type": "boolean"}},
    "required": ["language", "sure"],
    "additionalProperties": False,
}
answer = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Which language is 你好? Answer in JSON."}],
    response_format={"type": "json_schema", "json_schema": {"name": "guess", "schema": schema}},
)
print(json.loads(answer.choices[0].message.content))
client.close()
