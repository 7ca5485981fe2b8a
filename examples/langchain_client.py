"""A running server through LangChain: an answer, and one with a structure.

pip install langchain-openai
qwen-jax serve --model demo        # in another terminal
python examples/langchain_client.py [http://localhost:8000 [MODEL]]
"""

import sys
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Guess(BaseModel):
    """Which language a text is in."""

    language: Literal["English", "Chinese"]
    sure: bool


url, model = [*sys.argv[1:], *("http://localhost:8000", "demo")[len(sys.argv) - 1 :]]
chat = ChatOpenAI(base_url=f"{url}/v1", model=model, api_key="none", temperature=0)

print(chat.invoke("What is qwen_jax?").content)
print(chat.with_structured_output(Guess, strict=True).invoke("Which language is 你好?"))
