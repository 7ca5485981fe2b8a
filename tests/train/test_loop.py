"""A run in this process, on eight devices: what is measured, saved, skipped and refused."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import qwen_jax
import train
from qwen_jax import checkpoint
from qwen_jax.bundled import native_folder
from tests.assets import read_tokenizer, tokenizer_of
from tests.train.runs import chats, log, losses, small
from train import loop, loss_scale, run
from train.batches import Batches
from train.samples import Samples
from train.settings import TrainConfig
from train.stop import Stop


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """stop_after(5): a signal comes while step 5 is made; None: none does."""

    def set_up(step: int | None) -> None:
        asked = lambda self, next_step: step is not None and next_step > step
        monkeypatch.setattr(Stop, "reached", asked)

    return set_up


def mean_loss(data: str, length: int) -> float:
    """Of the base model, a sample at a time, from the logits that generation uses."""
    params = qwen_jax.load("demo", dtype="float32")
    tokenizer = tokenizer_of(params)
    samples = Samples((data,), tokenizer, length=length)
    total = count = 0
    for ids, labels in (samples[number] for number in range(len(samples))):
        scores = np.asarray(qwen_jax.logits(params, [ids.tolist()])[0], np.float64)
        chosen = np.log(np.exp(scores).sum(-1))[:-1] - scores[np.arange(len(ids) - 1), ids[1:]]
        learnt = labels[1:] >= 0
        total, count = total + chosen[learnt].sum(), count + learnt.sum()
    return total / count


def test_a_run_and_its_second_call(
    tmp_path: Path,
    stop_after: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped, it goes on on another mesh; finished, it says so; all that it should is there."""
    whole = small(tmp_path, steps=12)
    other = tmp_path / "other"
    other.mkdir()
    held_out = chats(other / "held-out.json", 5)
    parts = small(other, steps=12, eval_data=(held_out,), eval_every=4, save_every=4)
    assert train.fine_tune(whole) == tmp_path / "out" / "adapter"
    stop_after(6)
    assert train.fine_tune(parts) is None
    assert "stopped after step 6 of 12, and saved" in capsys.readouterr().err
    stop_after(None)
    moved = dataclasses.replace(parts, mesh_data=2, mesh_tensor=4, micro_batch=4)
    assert train.fine_tune(moved) == other / "out" / "adapter"
    assert "going on after step 6 of 12 steps" in capsys.readouterr().err
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-5)
    assert losses(parts)[:6] == losses(whole)[:6]
    assert [r["step"] for r in log(parts) if "held_out_loss" in r] == [4, 8, 12]
    assert all(
        math.isclose(r["held_out_perplexity"], math.exp(r["held_out_loss"]))
        for r in log(parts)[3::4]
    )

    untimed = [record["step"] for record in log(parts) if record["seconds"] is None]
    assert untimed == [1, 4, 5, 7, 8, 9, 12]  # compiled, measured or saved

    left = {path.name for path in (other / "out").iterdir()}
    assert left == {
        "adapter", "checkpoints", "log.jsonl", "loss.png", "settings.json", "tensorboard"
    }  # fmt: skip
    assert json.loads((other / "out" / "settings.json").read_text())["mesh_tensor"] == 4
    qwen_jax.load("demo", adapter=other / "out" / "adapter")

    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("a finished run loads nothing"))
    assert train.fine_tune(parts) == other / "out" / "adapter"
    assert "this run is finished: " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"other settings.*\n  rank was 4, now it is 8"):
        train.fine_tune(dataclasses.replace(parts, rank=8))


def test_held_out_loss_and_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over all targets of all samples; the best checkpoint is what comes out."""
    data = chats(tmp_path / "held-out.json", 5)
    often = {"eval_data": (data,), "save_every": 1, "keep": 1, "schedule": "constant"}
    two = small(tmp_path, steps=2, out=str(tmp_path / "two"), **often)
    three = small(tmp_path, steps=3, out=str(tmp_path / "three"), keep_best=True, **often)
    train.fine_tune(two)
    before = log(two)[0]  # the first step's learning rate is 0
    assert before["held_out_loss"] == pytest.approx(mean_loss(data, 64), rel=1e-5)
    measured = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(loop.Loop, "_measure", lambda self, batches: next(measured))
    train.fine_tune(three)
    assert sorted(p.name for p in (tmp_path / "three" / "checkpoints").iterdir()) == ["2", "3"]
    wanted, got = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("two", "three")
    )
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(got[name], tensor, err_msg=name)


def test_without_finite_gradients_it_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 1 learns at rate 0, step 2 destroys the adapters, and no step after it can be made."""
    settings = small(tmp_path, learning_rate=1e30, steps=20, save_every=2, max_failures=3)
    with pytest.raises(train.NotFinite) as caught:
        train.fine_tune(settings)
    heading, *blamed = str(caught.value).split("\n  ")
    assert heading.startswith(
        "3 steps in a row had no finite gradient and changed nothing; step 4 is saved. Look at"
    )
    assert "--learning-rate" in heading
    assert [line.partition(": ")[0] for line in blamed] == ["step 3", "step 4", "step 5"]
    samples = Samples(settings.data, read_tokenizer(native_folder()), length=64)
    batches = Batches(samples, batch=8, steps=20)
    named = [tuple(line.partition(": ")[2].split(", ")) for line in blamed]
    assert named == [batches[step - 1].names for step in (3, 4, 5)]
    assert [record["skipped"] for record in log(settings)] == [0, 0, 1, 2, 3]
    assert [record["loss"] is None for record in log(settings)] == [False, False, True, True, True]
    assert "step 4 had no finite gradient" in capsys.readouterr().err
    folder = Path(settings.out)
    assert (folder / "checkpoints" / "2").is_dir()
    assert not (folder / "adapter").exists()
    assert (folder / "loss.png").is_file()


def test_full_fine_tuning_gives_a_network(tmp_path: Path) -> None:
    settings = small(tmp_path, method="full", rank=64, steps=3, mesh_tensor=2, dtype=None)
    result = train.fine_tune(settings)
    assert result == tmp_path / "out" / "model"
    params = qwen_jax.load(result)
    before = qwen_jax.load("demo")
    assert params.embed.dtype == before.embed.dtype == jnp.bfloat16  # the masters have float32
    assert bool(jnp.any(params.embed != before.embed))


def test_a_float16_run_goes_on_with_its_scale(
    tmp_path: Path, stop_after: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2^16 fits: it begins higher, and grows after two updates, the first before the stop."""
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**17)
    monkeypatch.setattr(loss_scale, "INTERVAL", 2)
    settings = small(tmp_path, method="full", rank=64, dtype="float16", steps=6, max_failures=1)
    for step in (2, None):
        stop_after(step)
        train.fine_tune(settings)
    found = [(math.log2(record["loss_scale"]), record["skipped"]) for record in log(settings)]
    assert found == [(17, 1), (16, 0), (16, 0), (17, 1), (16, 0), (16, 0)]


def judged(settings: TrainConfig, **values: float) -> str:
    """What is said of step 9, the fourth that changed nothing."""
    feed = SimpleNamespace(names=lambda step: (f"chat {step}",))
    made: Any = SimpleNamespace(settings=settings, feed=feed, saved=5)
    made._blame = functools.partial(loop.Loop._blame, made)
    try:
        loop.Loop._judge(made, 9, {"skipped": 4, "loss": 1.0} | values)
    except train.NotFinite as error:
        return str(error)
    return ""


def test_float16_ends_at_the_least_scale(tmp_path: Path) -> None:
    """Or, as any run, when the loss is not finite, which no scale can mend."""
    settings = small(tmp_path, max_failures=2)
    assert judged(settings, loss_scale=2.0) == ""
    wanted = (
        "step 9 had no finite gradient at loss scale 1, the least there is; float16 has diverged, "
        "where bfloat16 may not; step 5 is saved. Look at their samples, or begin again with a "
        "lower --learning-rate and another --out:\n  step 8: chat 8\n  step 9: chat 9"
    )
    assert judged(settings, loss_scale=1.0) == wanted
    assert "4 steps in a row had no" in judged(settings, loss_scale=2.0, loss=math.inf)


# --- refused before anything takes long --------------------------------------------------------
@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("the model was loaded"))


def test_wrong_data(tmp_path: Path, unloaded: None) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": 5}]}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:1"):
        train.fine_tune(small(tmp_path, data=(str(bad),)))
    with pytest.raises(ValueError, match=r"bad\.jsonl:1"):
        train.fine_tune(small(tmp_path, eval_data=(str(bad),)))
    assert not (tmp_path / "out").exists()


def test_wrong_model(tmp_path: Path, unloaded: None) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder nothing"):
        train.fine_tune(small(tmp_path, model="nothing"))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else(tmp_path: Path, unloaded: None) -> None:
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"out/adapter is there, but no .*settings\.json"):
        train.fine_tune(small(tmp_path))


def test_what_was_refused_can_be_put_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings are other runs only once something is saved."""
    with pytest.raises(ValueError, match="nosuch"):
        train.fine_tune(small(tmp_path, targets=("nosuch",)))
    assert (tmp_path / "out" / "settings.json").is_file()
    reached: dict[str, Any] = {}
    monkeypatch.setattr(run, "_train", lambda settings, *_: reached.update(vars(settings)))
    train.fine_tune(small(tmp_path, targets=("c_attn",)))
    assert reached["targets"] == ("c_attn",)


@pytest.mark.parametrize(("made", "place"), [(3, {"step": 2}), (2, {"step": 3}), (3, [3])])
def test_a_checkpoint_of_another_step_is_refused(tmp_path: Path, made: int, place: Any) -> None:
    """One that was renamed, or whose place in the data is another."""
    found = SimpleNamespace(step=np.int32(made)), place
    checkpoints: Any = SimpleNamespace(
        latest=lambda: 3, restore=lambda step, like: found, folder=tmp_path
    )
    trainer: Any = SimpleNamespace(forget=lambda: None, abstract=lambda shape: (None, None, None))
    feed: Any = SimpleNamespace(shape=(1, 1, 1))
    with pytest.raises(ValueError, match="3 is damaged: it is not of step 3; delete it"):
        loop.Loop(small(tmp_path), trainer, feed, None, checkpoints)
