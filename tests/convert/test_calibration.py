"""What calibrates and what judges: every format that training reads, and where faults lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.calibration import HELD, LENGTH, ROWS, Sheet, read_sheets
from qwen_jax.bundled import CHECKPOINT
from qwen_jax.text import chatml
from qwen_jax.text.tokenizer import Tokenizer
from tests.assets import read_tokenizer
from tools.make_demo import CHATS


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return read_tokenizer(CHECKPOINT)


def chats(*pairs: tuple[str, str]) -> list[list[dict[str, Any]]]:
    turns = lambda ask, answer: [("user", ask), ("assistant", answer)]
    return [[{"role": r, "content": c} for r, c in turns(*pair)] for pair in pairs]


def rows(sheets: list[Sheet]) -> list[tuple[list[Any], np.ndarray]]:
    """(ids, judged) of every row, without what is padded."""
    return [
        (sheet.ids[n, :length].tolist(), sheet.judged[n, :length])
        for sheet in sheets
        for n, length in enumerate(sheet.lengths)
    ]


def test_formats_agree(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A row is the prompt as the model gets it, and the answer, which alone is judged."""
    talk = chats(("Hello!", "Good day."), ("Who?", "A model, and a small one."))
    lines, items = tmp_path / "chats.jsonl", tmp_path / "chats.json"
    lines.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in talk))
    turns = [[{"from": m["role"], "value": m["content"]} for m in chat] for chat in talk]
    items.write_text(json.dumps([{"conversations": chat} for chat in turns]))
    found = [
        rows([*seen, *held]) for seen, held in (read_sheets(f, tokenizer) for f in (lines, items))
    ]
    expected = {}
    for chat in talk:
        prompt = chatml.render(tokenizer, chat[:1])
        answer = tokenizer.encode(chat[1]["content"] + "<|im_end|>", specials=True)
        answer += tokenizer.encode("\n")
        expected[tuple(prompt + answer)] = [False] * len(prompt) + [True] * len(answer)
    for each in found:
        assert {tuple(ids): judged.tolist() for ids, judged in each} == expected


def test_what_judges_does_not_calibrate(tokenizer: Tokenizer) -> None:
    seen, held = (rows(sheets) for sheets in read_sheets(CHATS, tokenizer))
    assert len(held) == -(-(len(seen) + len(held)) // HELD)
    assert {tuple(ids) for ids, _ in held}.isdisjoint(tuple(ids) for ids, _ in seen)
    again = [rows(sheets) for sheets in read_sheets(CHATS, tokenizer)]
    assert [ids for ids, _ in again[0]] == [ids for ids, _ in seen]


def test_sheets_are_small_and_of_few_shapes(tokenizer: Tokenizer) -> None:
    seen, held = read_sheets(CHATS, tokenizer)
    shapes = {sheet.ids.shape for sheet in [*seen, *held]}
    assert len(shapes) < 8
    for sheet in seen:
        assert sheet.ids.shape == sheet.judged.shape
        assert sheet.ids.size <= 1024
        assert not sheet.judged[np.arange(sheet.ids.shape[1]) >= sheet.lengths[:, None]].any()


def test_texts_are_cut_and_conversations_are_shortened(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = " ".join(map(str, range(ROWS * LENGTH)))
    file = tmp_path / "text.txt"
    file.write_text(text)
    seen, held = (rows(sheets) for sheets in read_sheets(file, tokenizer))
    assert (len(seen) + len(held), len(held)) == (ROWS, ROWS // HELD)
    assert all(len(ids) == LENGTH and judged.all() for ids, judged in seen)
    ids = tokenizer.encode(text[: 4 * LENGTH])
    assert ids[:LENGTH] == held[0][0]
    long = tmp_path / "long.jsonl"
    talk = chats(("a", text[: 4 * LENGTH]), ("b", text[: 4 * LENGTH]))
    long.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in talk))
    found = [len(ids) for sheets in read_sheets(long, tokenizer) for ids, _ in rows(sheets)]
    assert found == [LENGTH] * 2


@pytest.fixture(scope="module")
def long() -> str:
    """A line with more text than is drawn."""
    return json.dumps({"text": " ".join(map(str, range(ROWS * LENGTH)))}) + "\n"


def test_no_more_is_drawn_than_there_is_room_for(
    long: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "1 2 3 " * 300}) + "\n" + long)
    found = [len(ids) for sheets in read_sheets(file, tokenizer) for ids, _ in rows(sheets)]
    assert sum(found) == ROWS * LENGTH


@pytest.mark.parametrize("first", [True, False])
def test_faults_that_are_not_drawn(
    first: bool, long: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": 1}\n' + long if first else long + '{"text": 1}\n')
    with pytest.raises(ValueError, match=rf"a\.jsonl:{1 if first else 2}: text: got a number"):
        read_sheets(file, tokenizer)


GOOD = json.dumps({"messages": chats(("a", "b"))[0]})


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        (
            "a.jsonl",
            GOOD + '\n{"messages": [{"role": "bot"}]}\n',
            r"a\.jsonl:2: messages\[0\]\.role",
        ),
        ("a.jsonl", GOOD + "\n{\n" + GOOD, r"a\.jsonl:2: not JSON"),
        ("a.json", "{}", r"a\.json:1: got no fields"),
        ("a.json", '[{"x": 1}]', r"a\.json\[0\] \(line 1\): got 'x'"),
        ("a.json", "{", "nothing was quantised:.*not JSON"),
        ("a.csv", "a", "got a name in '.csv'"),
        ("a.jsonl", GOOD, "is too short"),
        ("a.txt", "few words", "is too short"),
        (
            "a.jsonl",
            GOOD[:-1] + ', "tools": [{"name": "f"}]}',
            r"a\.jsonl:1: tools needs a chat template",
        ),
    ],
)
def test_faults(name: str, text: str, match: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"(?s){match}"):
        read_sheets(tmp_path / name, tokenizer)


def test_every_fault_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[]\n".replace("[]", "{}") * 3)
    with pytest.raises(ValueError, match="3 faults"):
        read_sheets(tmp_path / "a.jsonl", tokenizer)
    with pytest.raises(ValueError, match="No such file"):
        read_sheets(tmp_path / "none.jsonl", tokenizer)
