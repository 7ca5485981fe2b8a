"""What requests to run the code of an answer may hold."""

from typing import Annotated

from pydantic import Field

from serve.schemas.fields import Fields

MOST = 2**16  # characters that a model adds
MOST_BEGUN = 2**18  # with what eight runs show


class TurnRequest(Fields):
    """An answer so far, and what the model has added to it."""

    begun: Annotated[str, Field(max_length=MOST_BEGUN)] = ""
    reply: Annotated[str, Field(max_length=MOST)]
