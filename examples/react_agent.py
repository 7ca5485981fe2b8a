"""An agent: the model asks for functions, this program runs them, until it has an answer.

    qwen-jax serve --model demo        # in another terminal
    python examples/react_agent.py [http://localhost:8000 [required]]

"required" makes the model call something first, which one as small as the demo would not do by
itself. For Qwen v1 the server writes and reads the ReAct form (Thought, Action,
Action Input, Observation), for later models <tool_call>; a client sees OpenAI's tool calls.
"""

import json
import sys

import openai

CITIES = {"Paris": 18, "Rome": 24}
LIMIT = 4  # calls before it gives up


def temperature(city: str) -> str:
    """How warm it is in a city, in degrees Celsius."""
    return f"{CITIES[city]} degrees Celsius"


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "temperature",
            "description": temperature.__doc__,
            "strict": True,  # a grammar lets arguments follow the schema and nothing else
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": list(CITIES)}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
FUNCTIONS = {"temperature": temperature}

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000"
first_choice = sys.argv[2] if len(sys.argv) > 2 else "auto"
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "How warm is it in Rome?"}]

for turn in range(LIMIT):
    choice = first_choice if turn == 0 else "auto"
    answer = client.chat.completions.create(
        model=model, messages=messages, tools=TOOLS, tool_choice=choice, temperature=0
    )
    message = answer.choices[0].message
    messages.append(message.model_dump(exclude_none=True))
    if not message.tool_calls:
        print("answer:", message.content)
        break
    for call in message.tool_calls:
        arguments = json.loads(call.function.arguments)
        result = FUNCTIONS[call.function.name](**arguments)
        print(f"{call.function.name}({arguments}) -> {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
else:
    print(f"no answer after {LIMIT} calls")
client.close()
