"""The plan against what the compilers said, and against the product's own arrays."""

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from qwen_jax.plan import compiled, models
from qwen_jax.plan.__main__ import command
from qwen_jax.plan.chips import parse, split
from qwen_jax.plan.estimate import Job, count
from qwen_jax.program import progress

RESULTS = Path(__file__).parents[3] / "benchmarks/results"
COMPILED = [
    case
    for name in ("aot_gpu", "aot_tpu", "plans_gpu", "plans_tpu")
    for case in json.loads((RESULTS / f"{name}.json").read_text())["results"]
    if case.get("work") != "attention"  # of a layer alone
]


@pytest.mark.parametrize("case", COMPILED, ids=lambda case: str(case["case"]))
def test_memory_is_what_the_compiler_gives(case: dict[str, Any]) -> None:
    data, fsdp, tensor = (case["mesh"].get(axis, 1) for axis in ("data", "fsdp", "tensor"))
    job = Job(
        models.config(case["model"]),
        case["topology"],
        data,
        fsdp,
        tensor,
        precision=case.get("precision", "bfloat16"),
        cache_dtype=case.get("cache_dtype", "bfloat16"),
        context=case["length"],
        batch=case.get("slots") or case["rows"] * data * fsdp,
        work=case.get("method", "generate"),
        remat=case.get("remat", "full"),
    )
    found, peak = count(job), case["bytes"]["peak"]
    if case.get("work") == "step":  # a plan has room for the prefill, too, which takes more
        assert 0.9 * peak < found.total
    else:
        assert found.total == pytest.approx(peak, rel=0.1)
    if "slots" in case:
        assert found.weights == case["weights"]
        assert found.cache == pytest.approx(case["cache"], rel=0.001)


def test_the_commands_own_compilations() -> None:
    kept = json.loads((RESULTS / "plan_compiled.json").read_text())
    rows = kept["generating"] + kept["training"]
    assert len({row["case"] for row in rows}) == 12
    assert [row["case"] for row in rows if abs(row["planned"] / row["compiled"] - 1) > 0.1] == []


def test_a_child_is_told_the_whole_job() -> None:
    for name in models.SIZES:
        config = models.config(name)
        job = Job(config, "v5e:2x2", 1, 2, 2, "int8", "int8", 64, 3, "lora", "dots")
        assert compiled.told(json.dumps(asdict(job))) == job


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="here the compiler is there")
def test_a_compiler_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot compile for v6e:2x2: .*(TPU|tpu)"):
        command("--model Qwen-1.8B --mesh v6e:2x2 --compile".split())


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    command([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_72b_int8_on_a_slice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(progress, "_write", told.append)
    monkeypatch.setattr(progress, "LINE_AFTER", 0.01)
    asked = "--model Qwen-72B --mesh v5e:4x8 --precision int8 --context 32768 --batch 16".split()
    found = plan(capsys, *asked)
    assert any(line.startswith("counting: ") for line in told)  # it takes seconds
    assert not found["fits"]
    assert found["total"] == sum(
        found[name] for name in ("weights", "cache", "activations", "optimizer")
    )
    # 80 layers x keys and values x 2 heads of 128 a device x 2 bytes, for every token
    assert found["cache"] == 80 * 2 * 2 * 128 * 2 * 32768 * 16
    asked[-1] = str(found["most_batch"])
    assert plan(capsys, *asked)["fits"]
    asked[-1] = str(found["most_batch"] + 1)
    assert not plan(capsys, *asked)["fits"]


def test_heads_that_do_not_divide(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, *"--model Qwen/Qwen-14B-Chat --mesh v5e:4x4".split())
    assert "40 key/value heads do not divide by tensor 16" in found["undivided"][0]
    assert found["weights"] == pytest.approx(2 * 14.17e9 / 16, rel=0.01)
    assert found["cache"] == 40 * 2 * 3 * 128 * 2 * 8192  # 3 of 48 heads, 8 of them zeros
    assert found["smallest"] == "v5e:2x2"


def test_the_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    command("--model qwen2.5-7b-instruct --mesh h200".split())
    out = capsys.readouterr().out
    assert "weights         15.23" in out
    assert "fits" in out
    assert "limit, decode tokens per second: 3" in out


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qwen_jax.bundled import CHECKPOINT

    found = plan(capsys, "--model", str(CHECKPOINT), "--mesh", "v5e:1x1")
    assert found["fits"]


@pytest.mark.parametrize("name", models.SIZES)
def test_parameters_are_those_of_the_name(name: str) -> None:
    size = float(name.rsplit("-", 1)[1].removesuffix("B"))
    job = Job(
        models.config(name), "h200", 1, 1, 1, "bfloat16", "bfloat16", 1, 1, "generate", "full"
    )
    assert count(job).weights / 2e9 == pytest.approx(size, rel=0.2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model Qwen-9B --mesh v5e:4x8", "got the model 'Qwen-9B'"),
        ("--model Qwen-7B --mesh v9:4", "got the mesh 'v9:4'"),
        ("--model Qwen-7B --mesh v5e:4x9x2", "slices of v5e: 1x1, 2x2, .*, 16x16$"),
        ("--model Qwen-7B --mesh v6e:32", "slices of v6e: 1x1, "),
        ("--model Qwen-7B --mesh v5p:8x4x4", "and any 4Ax4Bx4C, A <= B <= C, up to 16x16x24"),
        ("--model Qwen-7B --mesh v4:4x8x20", "slices of v4: .* up to 12x16x16"),
        ("--model Qwen-7B --mesh v5e:2x2 --mesh-tensor 3", "makes 3 devices"),
        ("--model Qwen-7B --mesh v5e:2x2 --batch 0", "--batch is 0"),
        ("--model Qwen-7B --mesh h100 --compile", "--compile knows h200 and TPUs"),
    ],
)
def test_what_is_refused(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(words.split())


def test_slices() -> None:
    assert parse("V5E:4x8") == ("v5e", 32)
    assert parse("h200") == ("h200", 1)
    assert parse("h100:24") == ("h100", 24)
    assert parse("v5p:8x8x12") == ("v5p", 768)
    assert split("v5p:4x4x4", 4, 1, None) == (4, 1, 16)
