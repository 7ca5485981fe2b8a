"""What a server is started with."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from qwen_jax.program import rendezvous
from qwen_jax.program.limits import MAX_DRAFT_TOKENS

Number = Literal["float32", "bfloat16", "float16"]
Task = Literal["generate", "embed", "rerank"]
_HOST = re.compile(r"\*|[\w.-]+|\[?[0-9A-Fa-f:.]+\]?")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/A-Z]+")
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?) ?([kKMGT]?i?)B?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_NAMES = (tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME"))
_FOLDERS = (tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FOLDER"))
_EACH = (tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=FOLDER"))


GROUPS = {  # of --help, as docs/serving.md has them
    "model and memory": """model name task adapter adapter_folder adapter_ranks max_adapters dtype
        cache_dtype""",
    "slot": "slots max_length chunk step_tokens draft_tokens queue prefix_reuse",
    "access": """host port api_keys admin tls_certificate tls_key cors allowed_host
        run_generated_code log_prompts""",
    "limit": """max_connections max_body max_choices header_seconds body_seconds write_seconds
        idle_seconds request_seconds drain_seconds""",
    "device and process": "mesh_data mesh_fsdp mesh_tensor coordinator processes process",
}


@dataclass(frozen=True)
class ServeConfig:
    """Serve a model: the OpenAI API at /v1, a chat page at /."""

    model: str = "demo"
    """Folder that `qwen-jax convert` wrote, or "demo"."""
    name: Annotated[tuple[str, ...], *_NAMES] = ()
    """Name of the model in requests; by default, its folder's; give one --name for each."""
    task: Task | None = None
    """What the model is for: by default, to embed where it came for that, else to generate."""
    adapter: Annotated[tuple[str, ...], *_EACH] = ()
    """Name of an adapter in requests and its PEFT folder; give one --adapter for each."""
    adapter_folder: Annotated[tuple[Path, ...], *_FOLDERS] = ()
    """Folder from which clients may load adapters while the server runs; give one for each."""
    adapter_ranks: int = 64
    """With --adapter-folder: ranks of all adapters together, for which room is made."""
    max_adapters: int = 8
    """With --adapter-folder: most adapters at once."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""

    slots: int = 16
    """Most answers in a step; memory is taken by the tokens there are, not by slots."""
    cache_memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """Memory for keys and values on each device, such as 2GiB; by default, what is left."""
    max_length: int | None = None
    """Most tokens of a prompt and its answer; by default the checkpoint's, if they fit."""
    chunk: int = 512
    """Most tokens of a prompt between two steps of the answers under way; a power of two."""
    step_tokens: int = 4
    """Tokens that each answer gains between two looks of the host."""
    draft_tokens: int | None = None
    """Tokens looked up in an answer's own text and verified beside each of them, which changes no
    answer; 0 for none; by default, 4, and 0 on a CPU."""
    queue: int = 256
    """Requests that may wait for a slot; more are refused with 429."""
    prefix_reuse: bool = True
    """Reuse of the beginnings of prompts, kept from earlier ones."""
    dtype: Number | None = None
    """Type of the parameters; by default, as stored."""
    cache_dtype: Literal[Number, "int8"] | None = None
    """Type of cached keys and values; int8 halves their memory."""
    attention: Literal["triton", "mosaic", "llvm", "xla"] | None = None
    """Form of attention; by default, the device's kernel where it can run, otherwise XLA's."""
    mesh_data: int = 1
    """Devices that split the slots."""
    mesh_fsdp: int = 1
    """Devices that split the slots and the weights' width."""
    mesh_tensor: int | None = None
    """Devices that share each matrix product; by default, all that are left."""

    api_keys: Path | None = None
    """File of keys, one a line, each after a name of its owner; without it anyone may ask."""
    admin: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME…")] = ()
    """Owners of keys who may load and unload adapters; * is everybody, also without keys."""
    tls_certificate: Path | None = None
    """PEM file of the certificate; with it the server speaks HTTPS."""
    tls_key: Path | None = None
    """PEM file of the certificate's private key."""
    cors: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ORIGIN…")] = ()
    """Origins whose web pages may call the API; by default, only the server's own page."""

    allowed_host: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME…")] = ()
    """Names beside localhost and --host by which the server is reached without keys; * is any."""

    max_connections: int | None = None
    """Connections at once; by default 1024, twice what may run and wait if that is more."""
    max_body: int = 4 * 2**20
    """Bytes of a request's body."""
    max_choices: int = 64
    """Answers that one request may ask for, n times its prompts."""
    header_seconds: float = 10.0
    """Time a client has for a request's head."""
    body_seconds: float = 30.0
    """Time a client has for a request's body."""
    write_seconds: float = 30.0
    """Time a client has to take what was written to it."""
    idle_seconds: float = 30.0
    """Time a connection is kept for its next request."""
    request_seconds: float = 600.0
    """Time an answer may take."""
    drain_seconds: float = 30.0
    """Time that requests under way have after SIGTERM."""
    memory_bytes: int = 64 * 2**20
    """Bytes of responses that are kept for `previous_response_id`; 0 keeps none."""
    memory_seconds: float = 3600.0
    """Time that each of them is kept."""
    run_generated_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Consent to run the Python that models write on this machine, walled in, for whoever may ask;
    without --api-keys only with a loopback --host."""
    log_prompts: bool = False
    """Prompts in the log; otherwise it holds no text of users."""

    coordinator: str | None = None
    """HOST:PORT of process 0 in a run of several, or "auto" to ask the machines; by default, what
    the environment, Slurm or the TPU says."""
    processes: int | None = None
    """Number of processes in the run."""
    process: int | None = None
    """Number of this process, counted from 0."""

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
        if self.cache_memory is not None and not _SIZE.fullmatch(self.cache_memory):
            problems.append(f"cache_memory is {self.cache_memory!r}, wanted a size such as 2GiB")
        if self.draft_tokens is not None and not 0 <= self.draft_tokens <= MAX_DRAFT_TOKENS:
            problems.append(f"draft_tokens is {self.draft_tokens}, wanted 0 to {MAX_DRAFT_TOKENS}")
        if self.max_length is not None and not 16 <= self.max_length <= 2**24:
            problems.append(f"max_length is {self.max_length}, wanted 16 to {2**24}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            problems.append("tls_certificate and tls_key belong together, got one of them")
        open_to_others = self.cors or self.allowed_host or not _is_loopback(self.host)
        if self.run_generated_code and self.api_keys is None and open_to_others:
            problems.append(
                "run_generated_code lets whoever may ask run programs on this machine; without "
                "--api-keys it needs a loopback --host, no --cors and no --allowed-host"
            )
        if self.max_connections is not None and not 1 <= self.max_connections <= 10**6:
            problems.append(f"max_connections is {self.max_connections}, wanted 1 to {10**6}")
        problems += [
            f"allowed_host is {one!r}, wanted a name without scheme and port"
            for one in self.allowed_host
            if not _HOST.fullmatch(one)
        ]
        problems += [
            f"cors is {one!r}, wanted an origin: https://example.org, without a path"
            for one in self.cors
            if not _ORIGIN.fullmatch(one)
        ]
        problems += rendezvous.option_problems(self.coordinator, self.processes, self.process)
        if self.mesh_tensor is not None and self.mesh_tensor < 1:
            problems.append(f"mesh_tensor is {self.mesh_tensor}, wanted 1 or more")
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
    def cache_bytes(self) -> int | None:
        """The memory for keys and values that was asked for."""
        if self.cache_memory is None:
            return None
        number, unit = _SIZE.fullmatch(self.cache_memory).groups()  # type: ignore[union-attr]
        base = 1024 if unit.endswith("i") else 1000
        return int(float(number) * base ** _POWERS[unit.removesuffix("i").lower()])

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
        for folder in self.adapter_folder:
            if not folder.is_dir():
                yield f"adapter_folder: there is no folder {folder}"
        if self.adapter_folder and not self.admin:
            yield "adapter_folder needs --admin, which says who may load adapters"
        if self.admin and not self.adapter_folder:
            yield f"admin is {self.admin}, which needs --adapter-folder"
        if self.adapter_folder and len(self.adapter) > self.max_adapters:
            yield f"max_adapters is {self.max_adapters}, there are {len(self.adapter)} at once"
        if "*" not in self.admin and self.admin and self.api_keys is None:
            yield f"admin is {self.admin}, owners of keys, which needs --api-keys; * is everybody"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("port", 0, 65535),
    ("slots", 1, 4096),
    ("chunk", 16, 2048),
    ("step_tokens", 1, 64),
    ("queue", 1, 100_000),
    ("adapter_ranks", 1, 2**16),
    ("max_adapters", 1, 4096),
    ("mesh_data", 1, 4096),
    ("mesh_fsdp", 1, 4096),
    ("max_body", 1024, 2**30),
    ("max_choices", 1, 4096),
    ("memory_bytes", 0, 2**40),
    ("memory_seconds", 0.1, 10**7),
    ("header_seconds", 0.1, 3600),
    ("body_seconds", 0.1, 3600),
    ("write_seconds", 0.1, 3600),
    ("idle_seconds", 0.1, 3600),
    ("request_seconds", 0.1, 86400),
    ("drain_seconds", 0, 3600),
)
