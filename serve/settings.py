"""What a server is started with."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Number = Literal["float32", "bfloat16", "float16"]
_NAMES = (tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME"))
_EACH = (tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=FOLDER"))


@dataclass(frozen=True)
class ServeConfig:
    """Serve a model: the OpenAI API at /v1, a chat page at /."""

    model: str = "demo"
    """What `python -m convert` wrote, or "demo"."""
    name: Annotated[tuple[str, ...], *_NAMES] = ()
    """What requests call the model; by default, its folder's name; a --name for each."""
    adapter: Annotated[tuple[str, ...], *_EACH] = ()
    """A PEFT folder and what requests call it; give one --adapter for each."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 for every network."""
    port: int = 8000
    """The port; 0 takes a free one."""

    slots: int = 16
    """Requests that are answered at once."""
    max_length: int | None = None
    """Tokens of prompt and answer together; by default the checkpoint's, as far as memory goes."""
    chunk: int = 128
    """Most tokens of a prompt between two steps of the answers under way; a power of two."""
    step_tokens: int = 4
    """Tokens that each answer gains between two looks of the host."""
    queue: int = 256
    """Requests that may wait for a slot; more are refused with 429."""
    prefix_reuse: bool = True
    """Keep the beginnings of prompts and use them again."""
    dtype: Number | None = None
    """Of the parameters; by default, as stored."""
    cache_dtype: Literal[Number, "int8"] | None = None
    """Of keys and values; int8 halves their memory."""
    data: int = 1
    """Devices that split the slots."""
    fsdp: int = 1
    """Devices that split the slots and the weights' width."""

    api_keys: Path | None = None
    """A file of keys, one a line, each after a name of its owner; without it anyone may ask."""
    tls_certificate: Path | None = None
    """A PEM file; with it the server speaks HTTPS."""
    tls_key: Path | None = None
    """The certificate's private key."""
    cors: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ORIGIN…")] = ()
    """Origins whose web pages may call the API; by default, only the server's own page."""

    max_body: int = 4 * 2**20
    """Bytes of a request's body."""
    max_choices: int = 64
    """Answers that one request may ask for, n times its prompts."""
    header_seconds: float = 10.0
    """Time a client has for a request's head."""
    body_seconds: float = 30.0
    """Time a client has for a request's body."""
    request_seconds: float = 600.0
    """Time an answer may take."""
    drain_seconds: float = 30.0
    """Time that requests under way have after SIGTERM."""
    log_prompts: bool = False
    """Write prompts to the log; otherwise it holds no text of users."""

    coordinator: str | None = None
    """HOST:PORT of process 0, in a run of several; "auto" where the machines know, as TPUs do."""
    processes: int | None = None
    """How many they are."""
    process: int | None = None
    """Which of them this is."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, wanted {least} to {most}"
            for name, least, most in _RANGES
            if not least <= getattr(self, name) <= most
        ]
        if self.chunk & (self.chunk - 1):
            problems.append(f"chunk is {self.chunk}, wanted a power of two")
        if not all(self.name) or len(set(self.name)) < len(self.name):
            problems.append(f"name is {self.name}, wanted names that differ, none empty")
        problems += self._adapter_problems()
        if self.max_length is not None and not 16 <= self.max_length <= 2**24:
            problems.append(f"max_length is {self.max_length}, wanted 16 to {2**24}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            problems.append("tls_certificate and tls_key belong together, got one of them")
        joining = [self.processes is not None, self.process is not None]
        if any(joining) != (self.coordinator not in (None, "auto")) or len({*joining}) > 1:
            problems.append("coordinator HOST:PORT, processes and process belong together")
        for file in (self.api_keys, self.tls_certificate, self.tls_key):
            if file is not None and not file.is_file():
                problems.append(f"{file} is not a file")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def served_name(self) -> str:
        """What requests call the model."""
        return self.name[0] if self.name else Path(self.model).name

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""
        return self.name[1:]

    @property
    def adapters(self) -> dict[str, Path]:
        """The folders of the adapters by the names requests give them."""
        return {name: Path(path) for name, _, path in (one.partition("=") for one in self.adapter)}

    def _adapter_problems(self) -> Iterator[str]:
        names = [self.served_name, *self.aliases]
        for one in self.adapter:
            name, _, path = one.partition("=")
            if not (name and path):
                yield f"adapter is {one!r}, wanted NAME=FOLDER"
            elif name in names:
                yield f"adapter {name!r} has the name of another model; give it one of its own"
            elif not Path(path).is_dir():
                yield f"adapter {name!r}: there is no folder {path}"
            names.append(name)


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("port", 0, 65535),
    ("slots", 1, 4096),
    ("chunk", 16, 2048),
    ("step_tokens", 1, 64),
    ("queue", 1, 100_000),
    ("data", 1, 4096),
    ("fsdp", 1, 4096),
    ("max_body", 1024, 2**30),
    ("max_choices", 1, 4096),
    ("header_seconds", 0.1, 3600),
    ("body_seconds", 0.1, 3600),
    ("request_seconds", 0.1, 86400),
    ("drain_seconds", 0, 3600),
)
