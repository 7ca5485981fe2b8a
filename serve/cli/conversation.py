"""A conversation in a terminal: its commands, and how answers grow on it."""

import ast
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from qwen_jax import model_folder
from qwen_jax.program import imports, interruption, progress
from qwen_jax.program.limits import MAX_SEED
from qwen_jax.sandbox import program as walls
from serve.cli.client import Answer, Remote, Source
from serve.cli.interpreted import Interpreted
from serve.cli.settings import ChatConfig
from serve.cli.terminal import THEME, Block, Growing, printable

SETTINGS = (
    "temperature top_k top_p min_p repetition_penalty presence_penalty frequency_penalty "
    "min_tokens stop max_new_tokens"
).split()
KEYS = "Enter sends, Alt+Enter or Ctrl+J begins a new line, Ctrl-C stops an answer, Ctrl-D exits."


class Chat:
    """A conversation on a console; `read` gives the user's next line, or raises EOFError."""

    def __init__(
        self,
        source: Source,
        console: Console,
        read: Callable[[], str],
        system: str | None = None,
        seed: int = 1234,
        interpreter: Source | None = None,
    ):
        self.interpreter = interpreter  # where answers with code come from
        self.source, self.console, self.read = source, console, read
        self.system, self.seed = system, seed
        self.history: list[tuple[str, str]] = []
        self.changes: dict[str, Any] = {}
        self.over = False

    def change(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """All settings after these are changed, too; ValueError, and none is, if they are wrong."""
        changed = {**self.changes, **changes}
        settings = self.source.settings(changed)
        self.changes = changed
        return settings

    def run(self) -> None:
        """Talk until the user leaves."""
        self._greet()
        while not self.over:
            try:
                line = self.read()
            except KeyboardInterrupt:
                self._say("Ctrl-D or :exit ends the conversation")
                continue
            except EOFError:
                return
            try:
                self._do(line)
            except KeyboardInterrupt:
                self._say("interrupted")
            except (ValueError, OSError, RuntimeError) as error:  # the last: out of memory
                self._complain(str(error))

    def _do(self, line: str) -> None:
        if any("\ud800" <= char <= "\udfff" for char in line):
            raise ValueError("the message has half of a character; the terminal is not in UTF-8")
        word, _, rest = line.strip().partition(" ")
        if line.startswith(":") and word[1:].replace("-", "").isalpha() and word.islower():
            if word[1:] not in COMMANDS:
                raise ValueError(f"there is no command {word}; :help lists them, a space sends it")
            command = COMMANDS[word[1:]]
            if rest.strip() and command not in TAKE_WORDS:
                raise ValueError(f"got {rest.strip()!r} behind {word}, which takes nothing")
            command(self, rest.strip())
        elif word:
            self._ask(line.strip())
        else:
            raise ValueError("the message is empty")

    def _ask(self, query: str, source: Source | None = None) -> None:
        """Show an answer as it grows. What an interruption leaves of it is part of the history."""
        began, first, answer = time.monotonic(), 0.0, Answer()
        try:
            self.console.print()
            with interruption.caught(), Growing(self.console) as shown:
                growing = (source or self.source).answer(
                    query, self.history, self.system, self.seed, self.changes
                )
                for answer in growing:
                    first = first or time.monotonic()
                    shown.update(answer.text)
            ended = f"{answer.tokens} tokens"
            if answer.finish_reason != "stop":
                ended += f", ended by {answer.finish_reason}"
        except KeyboardInterrupt:
            ended = "stopped; what is shown is kept" if answer.text else "stopped"
        if answer.text:
            self.history.append((query, answer.text.strip()))
        seconds = time.monotonic() - first
        rate = f", {(answer.tokens - 1) / seconds:.1f} a second" if answer.tokens > 1 else ""
        self._say(f"{ended}; the first after {first - began:.2f} s{rate}" if first else ended)

    def _greet(self) -> None:
        title = Text.assemble(("Qwen", "bold magenta"), "  ", printable(self.source.name))
        self.console.print(title, Text(f":help lists the commands. {KEYS}", "dim"), "", sep="\n")

    def _say(self, text: str) -> None:
        self.console.print(Text(f"[{printable(text)}]", "dim"), "", sep="\n")

    def _complain(self, text: str) -> None:
        self.console.print(Text(f"error: {printable(text)}", "red"), "", sep="\n")

    # --- commands --------------------------------------------------------------------------------

    def help(self, _: str) -> None:
        """show this help"""
        table = Table.grid(padding=(0, 3))
        for command in dict.fromkeys(COMMANDS.values()):
            names = [f":{name}" for name, one in COMMANDS.items() if one is command]
            table.add_row(Text(" ".join(names), "cyan"), Text(str(command.__doc__)))
        self.console.print(table, Text(KEYS, "dim"), "", sep="\n")

    def code(self, text: str) -> None:
        """ask with Python that the model may run: :code How much is 7**77?"""
        if self.interpreter is None:
            raise ValueError(
                ":code runs programs that the model writes; read what it does not protect from "
                "in docs/chat.md, then start with --run-generated-code"
            )
        if not text:
            raise ValueError("the question is empty; :code How much is 7**77?")
        self._ask(text, self.interpreter)

    def exit(self, _: str) -> None:
        """leave"""
        self.over = True

    def clear(self, _: str) -> None:
        """clear the screen"""
        self.console.clear()
        self._greet()

    def clear_history(self, _: str) -> None:
        """forget the conversation"""
        count = len(self.history)
        self.history.clear()
        self._say(f"{count} turns forgotten")

    def show_history(self, _: str) -> None:
        """show the conversation"""
        self.console.print(Rule(f"History ({len(self.history)})", style="dim"))
        for number, (query, reply) in enumerate(self.history):
            self.console.print(Text(f"User[{number}]: ", "bold") + Text(printable(query)))
            self.console.print(Text(f"Qwen[{number}]:", "bold magenta"))
            self.console.print(Block(reply))
        self.console.print(Rule(style="dim"))

    def show_seed(self, text: str) -> None:
        """show the seed of the answers; :seed 7 sets it"""
        if text:
            if not re.fullmatch("[0-9]{1,19}", text) or int(text) > MAX_SEED:
                raise ValueError(
                    f"got the seed {text[:40]!r}, wanted a whole number 0 to {MAX_SEED}"
                )
            self.seed = int(text)
        self._say(f"seed {self.seed}")

    def conf(self, text: str) -> None:
        """show the settings; :conf temperature=0.5 top_k=20 changes some"""
        try:
            pairs = shlex.split(text)
        except ValueError:
            raise ValueError(f"got {text!r}, in which a quotation mark has no second") from None
        settings = self.change(dict(_setting(pair) for pair in pairs))
        table = Table.grid(padding=(0, 3))
        for name in SETTINGS:
            value = settings.get(name, "the server's default")
            mine = "bold" if name in self.changes else "dim"
            table.add_row(name, Text(printable(str(value)), mine))
        self.console.print(table, "", sep="\n")

    def reset_conf(self, _: str) -> None:
        """take back all changes of settings"""
        self.changes = {}
        self._say("the settings are the model's again")

    def show_system(self, text: str) -> None:
        """show the system prompt; :system Be brief. sets it, :system - takes it back"""
        if text:
            self.system = None if text == "-" else text
        self._say("the model's own system prompt" if self.system is None else self.system)


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    **dict.fromkeys(("help", "h"), Chat.help),
    **dict.fromkeys(("exit", "quit", "q"), Chat.exit),
    **dict.fromkeys(("clear", "cl"), Chat.clear),
    **dict.fromkeys(("clear-history", "clear-his", "clh"), Chat.clear_history),
    **dict.fromkeys(("history", "his"), Chat.show_history),
    "code": Chat.code,
    "seed": Chat.show_seed,
    "conf": Chat.conf,
    "reset-conf": Chat.reset_conf,
    "system": Chat.show_system,
}
TAKE_WORDS = (Chat.code, Chat.show_seed, Chat.conf, Chat.show_system)


def _setting(pair: str) -> tuple[str, Any]:
    """name=value, where the value is a number, a text or a list of texts."""
    name, equals, value = pair.partition("=")
    if not equals or name not in SETTINGS:
        raise ValueError(f"got {pair!r}, wanted name=value with one of {', '.join(SETTINGS)}")
    try:
        made = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if name != "stop" or not value or value[0] in "[(":
            raise ValueError(f"got {value!r} for {name}, wanted a number or a list") from None
        made = value
    return name, (made,) if name == "stop" and isinstance(made, str) else made


def reader() -> Callable[[], str]:
    """Read from the terminal: several lines, with the history of earlier sessions."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "qwen_jax"
    state.mkdir(parents=True, exist_ok=True)
    file = state / "chat_history"
    file.touch(mode=0o600)  # nobody else's business
    session: PromptSession[str] = PromptSession(
        history=FileHistory(file), key_bindings=keys, multiline=True
    )
    return lambda: session.prompt([("ansicyan bold", "User> ")], prompt_continuation="      ")


def converse(settings: ChatConfig) -> None:
    """Talk until the user leaves."""
    console = Console(theme=THEME, highlight=False)
    if not (sys.stdin.isatty() and console.is_terminal):
        raise ValueError("chat needs a terminal; for a pipe use qwen-jax generate MODEL")
    model = settings.model
    if settings.url is not None:
        source: Source = Remote(settings.url, model)
    else:
        assert model is not None
        model_folder.expect(model)
        model_folder.begin_reading(model)
        with imports.of_jax():
            from qwen_jax.checkpoint import load
            from serve.cli.local import Local
        with progress.working(f"loading {model}"):
            params = load(model, dtype=settings.dtype)
            source = Local(params, model, settings.cache_dtype, settings.draft_tokens)
    interpreter = Interpreted(source) if settings.run_generated_code else None
    if interpreter and (unkept := walls.missing()):
        console.print(Text(f"code runs without a part of its walls: {unkept}", "red"))
    talk = Chat(source, console, reader(), settings.system, settings.seed, interpreter)
    talk.change(settings.given())
    talk.run()
