"""What requests to load and unload adapters may hold, as vLLM's clients send them."""

from typing import Annotated

from pydantic import Field

from serve.schemas import unasked
from serve.schemas.fields import Fields

_NAME = r"^[\w.:/@+-]+$"  # what a path, a label of a metric and a line of a log can hold


class LoadRequest(Fields):
    """An adapter to load: its name in requests, and its folder on the server."""

    idle = unasked.ADAPTER

    lora_name: Annotated[str, Field(min_length=1, max_length=200, pattern=_NAME)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
    load_inplace: bool = False  # in the place of the one that has the name


class UnloadRequest(Fields):
    """An adapter to take away."""

    labels = frozenset({"lora_int_id"})

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]
