"""What `generate` is told, and how tokens are chosen there and in the terminal chat."""

import sys
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import tyro

from qwen_jax.decoding.sampling import Sampling
from qwen_jax.program import limits

Number = Literal["float32", "bfloat16", "float16"]
_EACH = (tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT"))


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen; what is not given is the checkpoint's."""

    temperature: float | None = None
    """Temperature of sampling, 0 for the likeliest token; by default, the checkpoint's."""
    top_p: float | None = None
    """Share of probability that the likeliest tokens have together, which may be chosen."""
    top_k: int | None = None
    """Number of likeliest tokens that may be chosen; 0 for all."""
    repetition_penalty: float | None = None
    """Penalty on tokens that were there before, in the prompt too; 1 for none."""
    stop: Annotated[tuple[str, ...], *_EACH] = ()
    """Text that ends the answer and is cut from it; give one --stop for each."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; by default, the checkpoint's own limit, or 512."""

    def __post_init__(self) -> None:
        limits.expect(**vars(self))
        given = self.given()
        given.pop("max_new_tokens", None)
        Sampling(**given)  # raises ValueError

    def given(self) -> dict[str, Any]:
        """What the command line says of it."""
        values = {field.name: getattr(self, field.name) for field in fields(SamplingOptions)}
        return {name: value for name, value in values.items() if value not in (None, ())}


SAMPLING = " ".join(  # what a checkpoint's own Sampling is changed by
    field.name for field in fields(SamplingOptions) if field.name not in ("stop", "max_new_tokens")
)
GROUPS = {  # of --help
    "answer": f"system complete max_new_tokens {SAMPLING} stop seed draft_tokens timings",
    "model and memory": "adapter dtype cache_dtype attention",
    "device and process": "mesh_data mesh_fsdp mesh_tensor coordinator processes process",
}


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(SamplingOptions):
    """Stream a model's answer to a prompt."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Folder that `qwen-jax convert` wrote, or "demo"."""
    prompt: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT]")] = None
    """Question to answer; by default, standard input."""
    adapter: str | None = None
    """Folder of an adapter in PEFT's format, made for this model."""
    system: str | None = None
    """System prompt, where the model takes one."""
    complete: bool = False
    """Continuation of the prompt as plain text, as base models always do."""
    seed: int | None = None
    """Seed of the random numbers; the same seed gives the same answer."""
    dtype: Number | None = None
    """Type of the parameters; by default, as stored."""
    cache_dtype: Literal[Number, "int8"] | None = None
    """Type of cached keys and values; int8 halves their memory."""
    draft_tokens: int | None = None
    """Tokens looked up in the text so far and verified at once, which saves time and changes no
    answer; 0 for none; by default, 4 where that pays."""
    attention: Literal["triton", "mosaic", "llvm", "xla"] | None = None
    """Form of attention; by default, the device's kernel where it can run, otherwise XLA's."""
    timings: bool = False
    """Table of where the time went, at the end."""
    mesh_data: int = 1
    """Devices that hold copies of the model."""
    mesh_fsdp: int = 1
    """Devices that split the weights' width."""
    mesh_tensor: int | None = None
    """Devices that share each matrix product; by default, all that are left."""
    coordinator: str | None = None
    """HOST:PORT of process 0 in a run of several, or "auto" to ask the machines; by default, what
    the environment, Slurm or the TPU says."""
    processes: int | None = None
    """Number of processes in the run."""
    process: int | None = None
    """Number of this process, counted from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and not self.prompt:
            raise ValueError("the prompt is empty; give one as an argument or on standard input")
        self.refuse_idle(self.temperature)

    def refuse_idle(self, temperature: float | None) -> None:
        """Raise ValueError for options that change nothing at this temperature."""
        idle = [
            f"--{name}" for name in ("top-p", "top-k") if name.replace("-", "_") in self.given()
        ]
        if idle and temperature == 0:
            raise ValueError(
                f"{' and '.join(idle)} would change nothing at temperature 0, which takes the "
                "likeliest token; give --temperature too, above 0"
            )

    def with_prompt(self) -> "GenerateConfig":
        """The same, with the prompt that standard input has where none was given."""
        if self.prompt is not None:
            return self
        if sys.stdin.isatty():
            print("prompt, end with Ctrl-D:", end="", file=sys.stderr, flush=True)
        return replace(self, prompt=sys.stdin.read().rstrip("\n"))
