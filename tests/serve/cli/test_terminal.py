import io
import random
import signal
from typing import Any

import pytest
from rich.console import Console

from serve.cli.terminal import Block, Growing, printable, settled

TEXT = """# One

two *and*
three

- a

- b
  - c

```py
x = 1
~~~

y = 2
```

1. d

> e

|f|g|
|-|-|
|h|i|

the end"""


def screen(**how: Any) -> Any:
    return Console(file=io.StringIO(), width=40, height=12, color_system=None, **how)


def test_blocks_are_finished_where_no_later_text_can_change_them() -> None:
    ends = {TEXT[: settled(TEXT[:at])] for at in range(len(TEXT) + 1)}
    begins = {TEXT[len(end) :].split("\n")[0] for end in ends}
    assert begins == {"# One", "two *and*", "```py", "> e", "|f|g|", "the end"}


def test_a_growing_answer_ends_as_if_it_came_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.cli.terminal.FRAME_SECONDS", 0)
    choice = random.Random(0)
    console, whole = screen(), screen()
    with Growing(console) as shown:
        end = 0
        while end < len(TEXT):
            end += choice.randint(1, 9)
            shown.update(TEXT[:end])
    whole.print(Block(TEXT))
    lines = lambda console: [x for x in console.file.getvalue().splitlines() if x.strip()]
    assert lines(console) == lines(whole)


def test_no_line_is_wider_or_block_higher_than_the_screen() -> None:
    console = screen()
    console.print(Block("```\n" + "\n".join(map(str, range(50))) + "\n```", most=10))
    lines = console.file.getvalue().splitlines()
    assert [line.strip() for line in lines] == [str(number) for number in range(40, 50)]
    assert all(line == line.rstrip() for line in lines)


def test_html_and_links_are_seen() -> None:
    console = screen(force_terminal=True)
    console.print(Block("<b>x</b> <!-- y -->\nz\n\n<div>\n\n[a](http://b.c/)"))
    shown = console.file.getvalue()
    assert shown.split("\n")[:4] == ["<b>x</b> <!-- y -->", "z", "", "<div>"]
    assert "http://b.c/" in shown
    assert "\x1b]8" not in shown  # a link whose address is hidden


def test_a_model_cannot_rule_the_terminal() -> None:
    rude = "a\x1b[2Jb\x07\x9b1mc\r\nd\re\x00\tf"
    assert printable(rude) == "a�[2Jb��1mc\nd�e�\tf"
    console = screen()
    console.print(Block(rude))
    console.print(Block(f"```\n{rude}\n```"))
    assert not {"\x1b", "\x07", "\x9b", "\x00"} & set(console.file.getvalue())


def test_an_interruption_waits_for_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    console = screen()
    shown = Growing(console)
    update = shown._live.update
    drawn = []

    def interrupted(*args: Any, **how: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        update(*args, **how)
        drawn.append(args)

    monkeypatch.setattr(shown._live, "update", interrupted)
    with pytest.raises(KeyboardInterrupt), shown:
        shown.update("said")
    assert drawn
    assert console.file.getvalue() == "said\n"
