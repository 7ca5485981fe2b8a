"""The installed command `qwen-jax`, and the whole life of any of its programs.

A wheel installs four top-level packages, qwen_jax, convert, train and serve, and this command.
`qwen-jax train` is `python -m train`: each program is a module with `command(arguments, prog)`.
Nothing here imports JAX; a program is imported when it is called.
"""

import contextlib
import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Program:
    """One of the command's words."""

    module: str
    summary: str
    extra: str | None = None  # what pip installs for it


PROGRAMS = {
    "convert": Program("convert.__main__", "Convert a Hugging Face checkpoint, or back; quantise"),
    "generate": Program("qwen_jax.__main__", "Stream a model's answer to one prompt"),
    "chat": Program("serve.chat", "Chat in the terminal, with a model here or a server", "serve"),
    "train": Program("train.__main__", "Fine-tune: LoRA, Q-LoRA or all weights", "train"),
    "serve": Program("serve.__main__", "Serve the OpenAI API and a chat page", "serve"),
    "bench": Program("serve.bench", "Load an OpenAI-compatible server and measure it", "serve"),
    "evaluate": Program("qwen_jax.evaluate.__main__", "Measure a model by the published tables"),
    "plan": Program("qwen_jax.plan.__main__", "Count what a model takes on devices"),
    "profile": Program("qwen_jax.profile", "Measure speed and memory of generation"),
    "demo": Program("qwen_jax.demo", "Convert the bundled model and let it answer"),
}
USAGE = """usage: qwen-jax COMMAND [OPTIONS]

Qwen in pure JAX. Commands; each has a --help of its own:

{programs}

  --version   Print the version and exit
  --help      Print this and exit"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The installed command: its first argument names a program, the rest is the program's."""
    word, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if word in ("-h", "--help"):
        print(usage())
    elif word == "--version":
        print(f"qwen_jax {importlib.metadata.version('qwen_jax')}")
    elif word in PROGRAMS:
        run(lambda: load(word).command(rest, prog=f"qwen-jax {word}"))
    elif not word:
        print(usage(), file=sys.stderr)
        sys.exit(2)
    else:
        near = difflib.get_close_matches(word, PROGRAMS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(PROGRAMS)
        print(f"error: there is no command {word}; {meant}there are {known}", file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    lines = (f"  {word:<11} {program.summary}" for word, program in PROGRAMS.items())
    return USAGE.format(programs="\n".join(lines))


def load(word: str) -> Any:
    """The module of a program: this distribution's, whatever else has the name of its package."""
    program = PROGRAMS[word]
    package = program.module.partition(".")[0]
    ours, spec = Path(__file__).resolve().parents[1], importlib.util.find_spec(package)
    origin = "nowhere" if spec is None else str(spec.origin)
    if Path(origin).resolve().parent.parent != ours:
        raise ValueError(
            f"qwen-jax {word} needs the package {package} in {ours}, found it in {origin}; "
            "something else of that name is in the way: give qwen_jax an environment of its own"
        )
    try:
        return importlib.import_module(program.module)
    except ModuleNotFoundError as error:
        if program.extra is None:
            raise
        raise ValueError(
            f"qwen-jax {word} needs {error.name}, which is not installed; "
            f'pip install "qwen_jax[{program.extra}]"'
        ) from None


def run(command: Callable[[], object]) -> None:
    """A program's whole life: compiled code is kept for the next one, faults are one line."""
    _keep_compiled_code()
    sys.unraisablehook = _interrupt_again
    try:
        try:
            command()
        except BrokenPipeError:  # the reader has enough; Python would flush into the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except KeyboardInterrupt as interruption:
            print(str(interruption) or "\ninterrupted", file=sys.stderr)
            sys.exit(130)
        except _faults() as error:
            sys.exit(f"error: {error}")
    except BaseException as error:
        if joined := sys.modules.get("qwen_jax.distributed"):
            joined.leave(error)
        raise


def _keep_compiled_code() -> None:
    """Set what the user has not, for JAX that is imported already or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    settings = {
        "jax_compilation_cache_dir": str(cache / "qwen_jax" / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    for name, value in settings.items():
        if name.upper() in os.environ:
            continue
        if jax := sys.modules.get("jax"):
            jax.config.update(name, value)
        else:
            os.environ[name.upper()] = str(value)
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() not in ("false", "0"):
        os.environ.setdefault("QWEN_JAX_PROGRAMS", str(cache / "qwen_jax" / "programs"))


def _faults() -> tuple[type[Exception], ...]:
    """What a user can mend: wrong input, a full disk, too little memory (the last of JAX)."""
    jax = sys.modules.get("jax")
    return (
        (ValueError, OSError) if jax is None else (ValueError, OSError, jax.errors.JaxRuntimeError)
    )


def _interrupt_again(lost: Any) -> None:
    """Python drops a Ctrl-C that meets a callback of the garbage collector, and jax has one."""
    if lost.exc_type is KeyboardInterrupt:
        again = lambda: os.kill(os.getpid(), signal.SIGINT)
        with contextlib.suppress(RuntimeError):  # the interpreter is ending already
            threading.Timer(0.05, again).start()  # by then the callback is over
    else:
        sys.__unraisablehook__(lost)


if __name__ == "__main__":
    main()
