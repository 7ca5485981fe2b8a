"""How Qwen3-Reranker is asked whether a document answers a query: its next word is yes or no.

https://huggingface.co/Qwen/Qwen3-Reranker-0.6B
"""

from qwen_jax.text.tokenizer import Tokenizer

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_TASK = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
_BEFORE = f"<|im_start|>system\n{_TASK}<|im_end|>\n<|im_start|>user\n"
_BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def question(tokenizer: Tokenizer, query: str, instruction: str = INSTRUCTION) -> list[int]:
    """Ids of all that comes before a document; control tokens in texts do not count."""
    asked = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>:"
    return [*tokenizer.encode(_BEFORE, specials=True), *tokenizer.encode(asked)]


def behind(tokenizer: Tokenizer) -> list[int]:
    """Ids of all that comes behind a document."""
    return tokenizer.encode(_BEHIND, specials=True)


def answers(tokenizer: Tokenizer) -> list[int]:
    """The ids of no and yes; raises ValueError where one is not a token, or there is no ChatML."""
    found = [tokenizer.encode(word) for word in ("no", "yes")]
    needed = {"<|im_start|>", "<|im_end|>"} - tokenizer.specials.keys()
    if needed or any(len(ids) != 1 for ids in found):
        raise ValueError(
            "this vocabulary cannot be asked as Qwen3-Reranker is: it needs <|im_start|>, "
            "<|im_end|>, and yes and no as tokens"
        )
    return [id for (id,) in found]
