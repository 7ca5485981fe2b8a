"""The measurements of an accelerator run on a CPU from end to end, and go on where they ended."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accelerator import kept, report
from benchmarks.accelerator.__main__ import main
from benchmarks.accelerator.kept import UNFINISHED, Kept, SkippedError, run
from benchmarks.accelerator.pieces import pieces
from benchmarks.accelerator.sizes import SIZES

TINY = SIZES["tiny"]


def measure(folder: Path, *names: str) -> dict[str, Any]:
    """Every piece's cases, none of which failed; the last one by the command."""
    known = pieces(TINY, folder)
    for name in names[:-1]:
        assert run(Kept(folder, name), known[name](), minutes=9) == 0
    main(names[-1:], "tiny", folder)
    found = json.loads((folder / "accelerator.json").read_text())["pieces"]
    assert list(found) == list(known)
    assert report.faults({"pieces": found}, names) == []
    return {name: found[name] for name in names}


def test_every_piece_runs(tmp_path: Path) -> None:
    """But for the server; what cannot run says why."""
    names = [name for name in pieces(TINY, tmp_path) if name not in ("load", "server")]
    found = measure(tmp_path, *names)
    timed = {name for name, cases in found.items() if any("share" in c for c in cases.values())}
    assert timed - {"transformers"} == {
        name for name in names if name.startswith(("decode", "prefill", "lora"))
    }
    assert all(case["good"] for piece in ("goldens", "kernels") for case in found[piece].values())
    assert all(
        "is not installed" in case.get("skipped", "") or case["tokens_a_second"] > 0
        for case in found["transformers"].values()
    )
    assert "of the limit" in report.summary({"pieces": found})
    assert (tmp_path / "accelerator.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_is_saved_loaded_and_served(tmp_path: Path) -> None:
    found = measure(tmp_path, "load", "server")
    assert all(case["gigabytes_a_second"] >= 0 for case in found["load"].values())
    assert found["server"]["bfloat16"]["clients"]["2"]["output_throughput"] > 0


def test_a_piece_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(threading.Timer, "start", lambda self: None)

    def case(name: str, **found: Any) -> kept.Case:
        def measure() -> dict[str, Any]:
            called.append(name)
            clock[0] += 50  # seconds
            if name == "large":
                raise SkippedError("takes 40 GB, the device has 16")
            if name == "broken":
                raise ZeroDivisionError("no steps")
            return found

        return measure

    cases = {name: case(name, value=1) for name in ("first", "large", "broken", "last")}
    begun = Kept(tmp_path, "piece")
    begun.begin("first")  # and is killed
    assert run(Kept(tmp_path, "piece"), cases, minutes=9) == 0
    assert called == ["large", "broken", "last"]
    found = json.loads((tmp_path / "piece.json").read_text())["cases"]
    assert found["first"]["skipped"].startswith("an earlier try of it did not end in time")
    assert found["large"] == {"skipped": "takes 40 GB, the device has 16"}
    assert found["broken"] == {"failed": "ZeroDivisionError: no steps"}
    assert found["last"] == {"value": 1}
    assert report.faults({"pieces": {"piece": found}}, ["piece"]) == [
        "piece: broken: ZeroDivisionError: no steps"
    ]

    assert run(Kept(tmp_path, "long"), cases, minutes=1) == UNFINISHED  # the next takes as long
    assert called[3:] == ["first"]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no piece decode; there are ceilings, goldens"):
        main(("decode",), "tiny", tmp_path)
    with pytest.raises(ValueError, match="--minutes is 0, wanted more than 0"):
        main((), "tiny", tmp_path, minutes=0)
