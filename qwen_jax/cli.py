"""The installed command `qwen-jax`, and the whole life of any of its programs.

A wheel installs four top-level packages, qwen_jax, convert, train and serve, and this command.
`qwen-jax train` is `python -m train`: each program is a module with `command(arguments, prog)`.
Nothing here imports JAX; a program is imported when it is called.
"""

import contextlib
import importlib
import importlib.util
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qwen_jax.program import compiled, huge_pages, interruption, progress


@dataclass(frozen=True)
class Program:
    """One of the command's words."""

    module: str
    summary: str


OURS = ("qwen_jax", "convert", "train", "serve")  # packages
PROGRAMS = {
    "convert": Program("convert.__main__", "Convert a Hugging Face checkpoint, or back; quantise"),
    "generate": Program("qwen_jax.__main__", "Stream a model's answer to one prompt"),
    "chat": Program("serve.chat", "Chat in the terminal, with a model here or a server"),
    "train": Program("train.__main__", "Fine-tune: LoRA, Q-LoRA or all weights"),
    "serve": Program("serve.__main__", "Serve the OpenAI API and a chat page"),
    "bench": Program("serve.bench", "Load an OpenAI-compatible server and measure it"),
    "evaluate": Program("qwen_jax.evaluate.__main__", "Measure a model by the published tables"),
    "plan": Program("qwen_jax.plan.__main__", "Count what a model takes on devices"),
    "profile": Program("qwen_jax.profile.__main__", "Measure speed and memory of generation"),
    "warm": Program("qwen_jax.warm", "Compile a model's programs before anybody waits for them"),
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
        from qwen_jax.program import arguments as reading

        print(reading.version())
    elif word in PROGRAMS:
        if word == "train" and arguments is None:
            huge_pages.ask()
        run(lambda: load(word).command(rest, prog=f"qwen-jax {word}"))
    elif not word:
        print(usage(), file=sys.stderr)
        sys.exit(2)
    else:
        import difflib

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
    module = PROGRAMS[word].module
    package = module.partition(".")[0]
    ours, spec = Path(__file__).resolve().parents[1], importlib.util.find_spec(package)
    origin = "nowhere" if spec is None else str(spec.origin)
    if Path(origin).resolve().parent.parent != ours:
        raise ValueError(
            f"qwen-jax {word} needs the package {package} in {ours}, found it in {origin}; "
            "something else of that name is in the way: give qwen_jax an environment of its own"
        )
    return importlib.import_module(module)


def run(command: Callable[[], object]) -> None:
    """A program's whole life: Ctrl-C ends it in time, faults and warnings are one line each."""
    try:
        interruption.watch()
        compiled.keep()
        compiled.keep_executables()
        progress.begin()
        sys.unraisablehook = _interrupt_again
        warnings.showwarning = _warn  # type: ignore[assignment]
        command()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interruption.asked():
            interruption.end()
        try:
            _end(error)
        except BaseException as ending:
            if sys.modules.get("jax"):
                from qwen_jax import distributed

                distributed.leave(ending)
            raise


def _end(error: BaseException) -> NoReturn:
    """Wrong input, a full disk, too little memory (the last of JAX) are a line and a 1."""
    if isinstance(error, BrokenPipeError):  # the reader has enough; Python would flush into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    jax = sys.modules.get("jax")
    faults = (ValueError, OSError, *([jax.errors.JaxRuntimeError] if jax else []))
    if isinstance(error, faults):
        sys.exit(f"error: {error}")
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith(OURS):
        sys.exit(
            f"error: {error.name} is not installed, and qwen_jax needs it; install qwen_jax again, "
            "as docs/install.md says"
        )
    raise error


_warned: set[str] = set()


def _warn(message: Warning | str, *place: Any) -> None:
    """What a user should know is a line; what only a programmer can mend stays away."""
    if isinstance(message, UserWarning) and str(message) not in _warned:
        _warned.add(str(message))
        print(f"warning: {message}", file=sys.stderr, flush=True)


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
