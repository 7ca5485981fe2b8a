"""What requests to run the code of an answer may hold."""

from typing import Annotated

from pydantic import Field

from serve.schemas.fields import Fields

MOST = 2**16  # characters
_Text = Annotated[str, Field(max_length=MOST)]


class TurnRequest(Fields):
    """An answer so far, and what the model has added to it."""

    begun: _Text = ""
    reply: _Text
