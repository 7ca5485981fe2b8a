"""What a model says, as the parts of a message."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Call:
    """A function that the model wants called; arguments as it wrote them."""

    name: str = ""
    arguments: str = ""


@dataclass
class Message:
    """A message, or what one gained."""

    content: str = ""
    reasoning: str = ""  # what it thought before
    calls: dict[int, Call] = field(default_factory=dict)  # by their index in the message

    def add(self, gained: "Message") -> None:
        self.content += gained.content
        self.reasoning += gained.reasoning
        for index, call in gained.calls.items():
            known = self.calls.setdefault(index, Call())
            known.name += call.name
            known.arguments += call.arguments


class Gathered:
    """A whole message from what it gains, however often; `Message.add` copies what is there."""

    def __init__(self) -> None:
        self._gained: list[Message] = []

    def add(self, gained: Message) -> None:
        if gained.content or gained.reasoning or gained.calls:
            self._gained.append(gained)

    def message(self) -> Message:
        whole = Message(
            "".join(gained.content for gained in self._gained),
            "".join(gained.reasoning for gained in self._gained),
        )
        arguments: dict[int, list[str]] = {}
        for gained in self._gained:
            for index, call in gained.calls.items():
                whole.calls.setdefault(index, Call()).name += call.name
                arguments.setdefault(index, []).append(call.arguments)
        for index, parts in arguments.items():
            whole.calls[index].arguments = "".join(parts)
        return whole


class Parser:
    """Text in as it is generated, what the message gains out. Here all text is content."""

    done = False  # the message is whole, whatever the model would add
    thinking = False  # what comes is no answer yet

    def push(self, text: str) -> Message:
        return Message(text)

    def finish(self) -> Message:
        """What is left once the text has ended."""
        return Message()


def held_back(text: str, markers: Sequence[str]) -> int:
    """How many characters at the end of text may be the beginning of a marker."""
    for length in range(min(len(text), max(map(len, markers)) - 1), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0
