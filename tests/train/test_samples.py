"""What is drawn from the data: cut to length, named, and the same as when it was checked."""

import itertools
import re
from typing import Any

import numpy as np
import pytest

from qwen_jax.text.tokenizer import Tokenizer
from tests.qwen_jax.conftest import Data
from train import samples as module
from train.samples import Samples

TEXT = "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.\n" * 5


def chat(answer: str, question: str = "hi") -> dict[str, list[dict[str, Any]]]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


@pytest.mark.parametrize("length", [2, 7, 64, 1000])
def test_of_a_document_every_token_is_learnt_once(
    data: Data, small: Tokenizer, length: int
) -> None:
    file = data("novel.txt", TEXT.encode())
    samples = Samples(file, small, length=length)
    whole = [*small.encode(TEXT), small.end_of_text]
    made = [samples[number] for number in range(len(samples))]
    assert [len(ids) for ids, _ in made] == samples.lengths.tolist()
    assert samples.lengths.max() <= length
    assert samples.lengths.min() >= 2
    targets = [target for _, labels in made for target in labels[1:].tolist()]
    assert targets == whole[1:]
    assert made[0][0][0] == whole[0]
    for (before, _), (after, _) in itertools.pairwise(made):
        assert before[-1] == after[0]
    if len(made) > 1:
        assert samples.name(1) == f"{file} part 2"
    else:
        assert samples.name(0) == f"{file}"
    assert not samples.notices


def test_records_of_all_kinds_in_their_order(data: Data, small: Tokenizer) -> None:
    chats, texts = data("a.jsonl", chat("yes"), chat("no")), data("b.jsonl", {"text": TEXT})
    samples = Samples([chats, texts, data("c.jsonl", chat("so"))], small, length=100)
    names = [samples.name(number).rsplit("/", 1)[1] for number in range(len(samples))]
    parts = [f"b.jsonl:1 part {n}" for n in range(1, len(samples) - 2)]
    assert len(parts) > 1
    assert names == ["a.jsonl:1", "a.jsonl:2", *parts, "c.jsonl:1"]
    assert "so" in small.decode(samples[len(samples) - 1][0])
    assert [len(samples[n][0]) for n in range(len(samples))] == samples.lengths.tolist()


def test_a_long_conversation_loses_its_end_and_is_counted(data: Data, small: Tokenizer) -> None:
    file = data("x.jsonl", *[chat("yes"), chat(TEXT)] * 7)
    whole, cut = (Samples(file, small, length=length) for length in (5000, 50))
    assert whole.notices == []
    for number in range(14):
        for long, short in zip(whole[number], cut[number], strict=True):
            assert short.tolist() == long[:50].tolist()
    names = ", ".join(f"{file}:{line}" for line in (2, 4, 6, 8, 10))
    assert cut.notices == [f"7 of 14 records are cut at 50 tokens: {names}, …"]


def test_a_conversation_that_just_fits_is_not_cut(data: Data, small: Tokenizer) -> None:
    file = data("x.jsonl", chat("yes"))
    size = int(Samples(file, small, length=500).lengths[0])
    assert not Samples(file, small, length=size).notices
    assert Samples(file, small, length=size - 1).notices


def test_samples_without_a_target_are_counted(data: Data, small: Tokenizer) -> None:
    """Because nobody answers, or the answer is behind the cut."""
    only = {"messages": [{"role": "user", "content": "hi"}]}
    file = data("x.jsonl", only, chat("yes"), chat("yes", TEXT))
    samples = Samples(file, small, length=50, loss_on="assistant")
    assert samples.notices == [
        f"1 of 3 records are cut at 50 tokens: {file}:3",
        f"1 of 3 records lose every answer at 50 tokens: {file}:3",
        f"1 of 3 records have no answer to learn (none, an empty one, or weight 0): {file}:1",
    ]
    targets = [(samples[number][1][1:] != -100).any() for number in range(3)]
    assert targets == [False, True, False]


def test_an_answer_that_begins_at_the_cut_is_not_within_it(data: Data, small: Tokenizer) -> None:
    file = data("x.jsonl", chat("yes"))
    _, labels = Samples(file, small, length=500, loss_on="assistant")[0]
    first = int((labels != -100).argmax())
    files = [file, data("y.txt", b"x")]
    assert Samples(files, small, length=first, loss_on="assistant").notices[1:]
    assert not Samples(files, small, length=first + 1, loss_on="assistant").notices[1:]


@pytest.mark.parametrize("loss_on", ["turns", "assistant"])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([], "3 of 3 records have no answer to learn (none, an empty one, or weight 0): "),
        ([{"role": "assistant", "content": ""}], "3 of 3 records have no answer to learn"),
        ([{"role": "assistant", "content": "yes", "weight": 0}], "3 of 3 records have no answer"),
        ([chat("yes", TEXT)["messages"][1]], "3 of 3 records lose every answer at 20 tokens: "),
    ],
)
def test_data_without_an_answer_are_refused(
    data: Data, small: Tokenizer, answer: list[Any], reason: str, loss_on: Any
) -> None:
    question = [{"role": "user", "content": TEXT}]
    file = data("x.jsonl", *[{"messages": [*question, *answer]}] * 3)
    for use in ("learn", "measure"):
        said = reason.replace("learn", use)
        with pytest.raises(ValueError, match=re.escape(f"there is nothing to {use}: {said}")):
            Samples(file, small, length=20, loss_on=loss_on, use=use)
    samples = Samples([file, data("y.txt", b"x")], small, length=20, loss_on=loss_on)
    assert any(line.startswith(reason.replace("of 3", "of 4")) for line in samples.notices)


def test_fields_without_a_meaning_are_named(data: Data, small: Tokenizer) -> None:
    samples = Samples(data("x.jsonl", {**chat("yes"), "b": 1, "a": 2}), small, length=99)
    assert samples.notices == ["fields of the data that are not read: a, b"]


def test_data_that_change_meanwhile_are_an_error(data: Data, small: Tokenizer) -> None:
    samples = Samples(data("x.jsonl", chat("yes")), small, length=99)
    samples[0]
    file = data("x.jsonl", chat("yet"))
    with pytest.raises(ValueError, match=f"{file}:1 has changed since training began"):
        samples[0]


def test_the_digest_is_that_of_every_label(data: Data, small: Tokenizer) -> None:
    def digest(answer: str, **options: Any) -> str:
        return Samples(data("x.jsonl", chat(answer)), small, **({"length": 99} | options)).digest

    assert digest("yes") == digest("yes")
    others: list[dict[str, Any]] = [{"loss_on": "assistant"}, {"system": "s"}, {"length": 98}]
    assert len({digest("yes"), digest("yet"), *(digest("yes", **o) for o in others)}) == 5


def test_a_long_document_is_encoded_once(
    data: Data, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    samples = Samples(data("x.jsonl", {"text": TEXT}, {"text": TEXT * 2}), small, length=50)
    read = samples._read

    def note(record: int) -> Any:
        reads.append(record)
        return read(record)

    monkeypatch.setattr(samples, "_read", note)
    for number in [*range(len(samples))] * 2:
        samples[number]
    assert reads == [0, 1]


def test_only_so_many_tokens_of_documents_stay_in_memory() -> None:
    kept, reads = module._Kept(100), []

    def read(record: int) -> tuple[np.ndarray, np.ndarray]:
        reads.append(record)
        return np.zeros(40), np.zeros(40)

    for record in (0, 1, 0, 2, 0, 1, 2):
        kept.get(record, read)
    assert reads == [0, 1, 2, 1, 2]
    kept.get(4, lambda record: (kept.get(4, read), read(record))[1])  # two threads at once
    kept.get(2, read)
    assert reads == [0, 1, 2, 1, 2, 4, 4]  # counted once, so 2 is still there
    kept.get(3, lambda record: (np.zeros(1000), np.zeros(1000)))
    kept.get(3, read)
    assert reads[-1] == 4  # one that is too long stays as long as it is the latest


@pytest.mark.parametrize(
    ("options", "message"),
    [({"length": 1}, "got length 1, wanted 2"), ({"loss_on": "all"}, "got loss_on 'all', wanted")],
)
def test_settings_that_make_no_sense(
    data: Data, small: Tokenizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Samples(data("x.txt", b"x"), small, **({"length": 9} | options))
