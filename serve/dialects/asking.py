"""What a dialect asks, as the body of a chat that asks the same."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from serve.api import chat
from serve.api.choices import Choice
from serve.http.errors import ApiError, invalid
from serve.schemas.requests import ChatRequest
from serve.service import Model

_SYSTEM = ("system", "developer")


def checked(body: dict[str, Any]) -> ChatRequest:
    """The chat; raises a 400 in the names of its fields."""
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise invalid(error) from None


def asked(model: Model, tenant: str, body: dict[str, Any], most: int) -> list[Choice]:
    """What the engine is asked for."""
    return chat.prepared(model, tenant, checked(body), most)


def asked_truncated(model: Model, tenant: str, body: dict[str, Any], most: int) -> list[Choice]:
    """The same without the oldest turns, where there are too many for the window."""
    messages: Sequence[dict[str, Any]] = body["messages"]
    system = [message for message in messages if message["role"] in _SYSTEM]
    said = [message for message in messages if message["role"] not in _SYSTEM]
    starts = [place for place, message in enumerate(said) if message["role"] == "user"] or [0]

    def without(turns: int) -> list[Choice] | None:
        kept = said[starts[turns] :] if turns else said
        try:
            return asked(model, tenant, body | {"messages": [*system, *kept]}, most)
        except ApiError as error:
            if error.code != "context_length_exceeded" or turns == len(starts) - 1:
                raise
            return None

    found, least, largest = without(0), 1, len(starts) - 1
    if found is not None:
        return found
    while least < largest:
        middle = (least + largest) // 2
        if without(middle) is None:
            least = middle + 1
        else:
            largest = middle
    found = without(least)
    assert found is not None
    return found
