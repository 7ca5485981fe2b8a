"""Several processes as one run: what they know together."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_jax.distributed import gather, share, told_by_first
from qwen_jax.evaluate import kept
from qwen_jax.text.tokenizer import Tokenizer
from tests.processes import joining
from train.batches import Batches
from train.samples import Samples

ROOT = Path(__file__).parents[2]

# --- what they know together -----------------------------------------------------------------
SCRIPT = (
    joining(devices=1)
    + """
import json
from qwen_jax.text.tokenizer import Tokenizer
from pathlib import Path
from tests.qwen_jax.test_distributed import answered, known, refused, told
from qwen_jax.distributed import gather, told_by_first
from qwen_jax.data.records import Records
from train.samples import Samples
assert gather(b"" if rank else "é".encode()) == ["é".encode(), b""]
assert told_by_first(lambda: ["é", rank]) == ["é", 0]
disk = Path(folder) / ("none" if rank else "evaluation")
tokenizer, reads = Tokenizer.load(folder + "/small"), []
read = Records.__getitem__
Records.__getitem__ = lambda records, number: reads.append(number) or read(records, number)
Samples(folder + "/good.jsonl", tokenizer, length=60)
Records.__getitem__ = read
print(json.dumps({"known": known(folder + "/good.jsonl", tokenizer), "reads": sorted(reads),
    "few": known(folder + "/few.jsonl", tokenizer)[1],
    "bad": told(folder + "/bad.jsonl", tokenizer), "none": told(folder + "/none.txt", tokenizer),
    "answered": answered(disk), "refused": refused(disk),
    "differs": told(folder + "/" + str(rank) + ".txt", tokenizer)}))
"""
)


def known(data: Any, tokenizer: Tokenizer) -> Any:
    samples = Samples(data, tokenizer, length=60)
    batch = Batches(samples, batch=2, epochs=1)[0]
    return samples.digest, samples.lengths.tolist(), samples.notices, batch.tokens.tolist()


def told(data: Any, tokenizer: Tokenizer) -> Any:
    with pytest.raises(ValueError) as error:
        known(data, tokenizer)
    return str(error.value)


def answered(folder: Path) -> Any:
    """What an evaluation that goes on knows; process 0 alone has the disk."""
    told_by_first(lambda: kept.claim(folder, {"model": "a"}))
    with kept.Samples(folder, "task", 3) as samples:
        right = {index: sample["correct"] for index, sample in samples.known.items()}
        samples.add(2, {"correct": 0.0})
    samples.finish()
    return sorted(right.items())


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        told_by_first(lambda: kept.claim(folder, {"model": "b"}))
    return str(error.value)


ANSWER = {"role": "assistant", "content": "yes"}


def item(text: object) -> Any:
    return json.dumps({"messages": [{"role": "user", "content": text}, ANSWER]}) + "\n"


def test_two_processes(tmp_path: Path, small: Tokenizer, small_folder: Path) -> None:
    (tmp_path / "small").symlink_to(small_folder)
    texts = ["the dog " * n for n in range(11)]
    (tmp_path / "good.jsonl").write_text("".join(map(item, texts)))
    (tmp_path / "few.jsonl").write_text(item("x"))
    (tmp_path / "bad.jsonl").write_text("".join(map(item, ["x"] * 30 + [7] * 30)))
    (tmp_path / "0.txt").write_text("one")
    (tmp_path / "1.txt").write_text("other")
    kept.claim(tmp_path / "evaluation", {"model": "a"})
    progress = tmp_path / "evaluation/progress/task.jsonl"
    progress.write_text('[1, {"correct": 1.0}]\n[0, {"correct": 0.5}]\n[2, {"corr')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), port, str(tmp_path)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=90)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    alone = {
        "known": list(known(tmp_path / "good.jsonl", small)),
        "few": known(tmp_path / "few.jsonl", small)[1],
        "bad": told(tmp_path / "bad.jsonl", small),
        "none": told(tmp_path / "none.txt", small),
        "differs": "the processes of this run see different data; give all of them the same",
    }
    first, second = (one.pop("refused") for one in found)
    assert first.endswith("choose another --output, or delete it")
    assert second == f"process 0 says: {first}"
    assert (tmp_path / "evaluation/samples/task.jsonl").read_text().count("\n") == 3
    assert not (tmp_path / "none").exists()
    assert [one.pop("answered") for one in found] == 2 * [[[0, 0.5], [1, 1.0]]]
    assert [one.pop("reads") for one in found] == [[*range(6)], [*range(6, 11)]]
    assert found == [alone, alone]
    assert "30 faults" in alone["bad"]
    assert "and 10 more" in alone["bad"]


def test_a_process_alone() -> None:
    assert share(7) == range(7)
    assert gather(b"x") == [b"x"]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_are_the_whole_in_order(
    monkeypatch: pytest.MonkeyPatch, count: Any, processes: Any
) -> None:
    numbers: list[int] = []
    for rank in range(processes):
        monkeypatch.setattr("jax.process_count", lambda: processes)
        monkeypatch.setattr("jax.process_index", lambda rank=rank: rank)
        numbers += share(count)
    assert numbers == [*range(count)]
