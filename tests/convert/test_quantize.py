"""Making quantised checkpoints: GPTQ beats rounding, interrupted work goes on, reports are true."""

import copy
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import convert
from convert import QuantizeOptions, gptq
from convert import block as seen_by
from convert import quantize as quantizing
from convert.calibration import read_sheets
from qwen_jax.checkpoint import load
from qwen_jax.decoding import decode
from qwen_jax.nn import quant
from qwen_jax.nn.model import Linear, LinearLayer, Qwen
from qwen_jax.nn.quant import dequantize, quantize
from qwen_jax.nn.tree import named_layers, named_leaves
from qwen_jax.storage import native
from tests.assets import read_tokenizer
from tests.conftest import Golden
from tests.convert.test_quantised import kernels

LAYERS = ("attn.qkv", "attn.out", "mlp.gate", "mlp.up", "mlp.down")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few conversations, as for fine-tuning."""
    words = "low rank codes of a wide layer lose little when their inputs are known".split()
    random = np.random.default_rng(0)
    said = lambda: " ".join(random.choice(words, 30))
    turns = lambda: [{"from": "user", "value": said()}, {"from": "assistant", "value": said()}]
    file = tmp_path_factory.mktemp("texts") / "chats.json"
    file.write_text(json.dumps([{"id": "x", "conversations": turns()} for _ in range(8)]))
    return file


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Qwen:
    return load(convert.to_native("demo", tmp_path_factory.mktemp("plain") / "demo"))


class Witness(LinearLayer):
    """Notes what a layer gets."""

    def __init__(self, layer: Any, seen: Any) -> None:
        self.layer, self.seen = layer, seen

    def float32(self, x: Any) -> Any:
        self.seen.append(np.asarray(x))
        return self.layer.float32(x)


def test_stages_tell_what_layers_get(plain: Any) -> None:
    block = copy.deepcopy(plain.blocks[1])
    seen: list[np.ndarray] = []
    x = jax.random.normal(jax.random.key(0), (2, 24, plain.config.width))
    setting = seen_by.setting(x, jnp.array([24, 17]), plain.config)
    told = list(map(np.asarray, seen_by.stage_inputs(block, x, setting)))
    for stage in seen_by.STAGES:
        for layer in stage:
            seen_by.put(block, layer, Witness(seen_by.get(block, layer), seen))
    block(x, *setting)
    counts = [len(stage) for stage in seen_by.STAGES]
    wanted = [x for x, count in zip(told, counts, strict=True) for _ in range(count)]
    for got, want in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(got, want)


# --- the algorithm ----------------------------------------------------------------------------
def reference_gptq(
    kernel: np.ndarray, moments: np.ndarray, bits: int, group: int, symmetric: bool
) -> np.ndarray:
    """Column by column with the inverse itself, as in the paper's first form, float64."""
    w, inputs = kernel.astype(np.float64).copy(), kernel.shape[1]
    damped = moments + gptq.DAMP * np.diag(moments).mean() * np.eye(inputs)
    inverse, made = np.linalg.inv(damped), np.zeros_like(w)
    least, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for i in range(inputs):
        if i % group == 0:
            grid = quant.grid(jnp.asarray(w[:, i : i + group], jnp.float32), bits, symmetric)
            scale, zero = (np.asarray(0 if x is None else x, np.float64) for x in grid)
        code = np.clip(np.round(w[:, i] / scale) + zero, least, top)
        made[:, i] = scale * (code - zero)
        lost = (w[:, i] - made[:, i]) / inverse[i, i]
        w[:, i:] -= lost[:, None] * inverse[i, i:]
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return made


@pytest.mark.parametrize(
    ("group", "symmetric"), [(16, True), (16, False), (48, True), (None, False)]
)
def test_solve(group: int | None, symmetric: bool) -> None:
    random = np.random.default_rng(0)
    kernel = random.standard_normal((20, 48)).astype(np.float32)
    x = random.standard_normal((300, 48)) @ random.standard_normal((48, 48)) / 7
    moments = x.T @ x
    seen = jnp.asarray(moments, jnp.float32)
    made = gptq.solve(Linear(jnp.asarray(kernel), None), seen, 4, group, symmetric, False)
    wanted = reference_gptq(kernel, moments, 4, group or 48, symmetric)
    same = np.isclose(np.asarray(made.kernel), wanted, atol=1e-5)
    assert same.mean() > 0.98  # a number halfway between two codes may fall to either
    loss = lambda w: np.linalg.norm((w - kernel) @ x.T)
    nearest = quantize(Linear(jnp.asarray(kernel), None), 4, group, symmetric)
    assert loss(np.asarray(made.kernel)) < 0.8 * loss(np.asarray(nearest.kernel))
    assert (made.zeros is None) == symmetric


def test_act_order() -> None:
    """The heavy inputs come first: as the paper's first form on inputs in that order."""
    random = np.random.default_rng(0)
    kernel = random.standard_normal((20, 48)).astype(np.float32)
    x = random.standard_normal((300, 48)) @ random.standard_normal((48, 48)) / 7
    x *= np.exp(random.standard_normal(48) * 1.5)
    moments = x.T @ x
    seen = jnp.asarray(moments, jnp.float32)
    made = gptq.solve(Linear(jnp.asarray(kernel), None), seen, 4, 16, True, True)
    order = np.argsort(-np.diag(moments))
    np.testing.assert_array_equal(made.order, order)
    wanted = np.empty_like(kernel)
    wanted[:, order] = reference_gptq(kernel[:, order], moments[order][:, order], 4, 16, True)
    assert np.isclose(np.asarray(made.kernel), wanted, atol=1e-5).mean() > 0.98
    plain = gptq.solve(Linear(jnp.asarray(kernel), None), seen, 4, 16, True, False)
    loss = lambda layer: np.linalg.norm((np.asarray(layer.kernel) - kernel) @ x.T)
    assert loss(made) < loss(plain)


def test_inputs_that_are_always_zero() -> None:
    kernel = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    x = np.random.default_rng(1).standard_normal((100, 32)).astype(np.float32)
    x[:, 5] = 0
    made = gptq.solve(Linear(jnp.asarray(kernel), None), jnp.asarray(x.T @ x), 4, 16, True, False)
    assert np.isfinite(np.asarray(made.kernel)).all()
    assert (np.asarray(made.kernel)[:, 5] == 0).all()


# --- whole checkpoints ------------------------------------------------------------------------
@pytest.mark.parametrize(
    "settings",
    [
        QuantizeOptions("int8", None, True, True),
        QuantizeOptions("int4", 32, False, False),
        QuantizeOptions("int4", 16, True, True),
    ],
)
def test_to_nearest(
    settings: Any, plain: Qwen, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = convert.to_native("demo", tmp_path / "made", quantize=settings)
    assert "mlp.down" in capsys.readouterr().out
    params = load(folder)
    layers = named_layers(params, quant.QuantLinear)
    assert ("head" in layers) == settings.head
    source = plain.blocks[2].mlp.gate
    wanted = quantize(source, settings.bits, settings.group, settings.symmetric)
    got = quant.at_rest(layers["blocks.2.mlp.gate"])
    for name, leaf in named_leaves(wanted).items():
        np.testing.assert_array_equal(getattr(got, name), leaf)
    assert params.embed.dtype == plain.embed.dtype
    report = json.loads((folder / quantizing.REPORT).read_text())
    kernel = np.asarray(source.kernel, np.float32)
    share = np.sum((dequantize(wanted).kernel - kernel) ** 2) / np.sum(kernel**2)
    np.testing.assert_allclose(report["layers"]["blocks.2.mlp.gate"]["nearest"], share, rtol=1e-4)
    assert not (folder / "quantising").exists()


def test_gptq_beats_rounding(
    plain: Qwen, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On what every layer really gets; and what the report says of texts held out is true."""
    settings = QuantizeOptions("gptq", 32, True, False)
    folder = convert.to_native("demo", tmp_path / "made", quantize=settings, calibration=texts)
    report = json.loads((folder / quantizing.REPORT).read_text())
    assert len(report["layers"]) == 4 * len(LAYERS)
    for name, errors in report["layers"].items():
        assert 0 < errors["gptq"] < 0.8 * errors["nearest"], name
    sheets, held = read_sheets(texts, read_tokenizer(folder))
    targets = [np.where(s.judged, s.ids, -1)[:, 1:] for s in held]
    judged = sum(int((t >= 0).sum()) for t in targets)
    seen = sum(int(s.lengths.sum()) for s in sheets)
    assert report["tokens"] == {"calibration": seen, "judged": judged}
    for params, which in ((plain, "before"), (load(folder), "after")):
        wide = jax.tree.map(
            lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, params
        )
        loss = 0
        for sheet, target in zip(held, targets, strict=True):
            scores = np.asarray(jax.nn.log_softmax(decode.score(wide, sheet.ids)[:, :-1]))
            loss -= np.take_along_axis(scores, target[..., None], 2)[target >= 0].sum()
        np.testing.assert_allclose(np.exp(loss / judged), report["perplexity"][which], rtol=1e-4)
    assert "perplexity of" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_interrupted(
    method: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = QuantizeOptions(method, 32, False, False)
    make = lambda out: convert.to_native("demo", out, quantize=settings, calibration=texts)
    whole = make(tmp_path / "whole")
    real = native.write_piece
    written: list[str] = []

    def write(folder: Path, piece: str, arrays: dict[str, np.ndarray]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(piece)
        real(folder, piece, arrays)

    monkeypatch.setattr(native, "write_piece", write)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "made")
    written[:] = ["again"]

    def go_on(folder: Path, piece: str, arrays: dict[str, np.ndarray]) -> None:
        written.append(piece)
        real(folder, piece, arrays)

    monkeypatch.setattr(native, "write_piece", go_on)
    again = make(tmp_path / "made")
    assert "blocks.1" not in written
    assert "blocks.2" in written
    wanted = named_leaves(load(whole))
    for name, leaf in named_leaves(load(again)).items():
        np.testing.assert_array_equal(leaf, wanted[name])
    assert (again / quantizing.REPORT).read_text() == (whole / quantizing.REPORT).read_text()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_eight_bits_calibrated(method: str, texts: Path, tmp_path: Path) -> None:
    """They lose a hundredth of what four do, and less than rounding; others can have them."""
    make = lambda bits: convert.to_native(
        "demo",
        tmp_path / str(bits),
        quantize=QuantizeOptions(method, 32, True, False, calibrated_bits=bits),
        calibration=texts,
    )
    losses = [json.loads((make(bits) / quantizing.REPORT).read_text()) for bits in (8, 4)]
    assert [report["bits"] for report in losses] == [8, 4]
    total = lambda report, how: sum(loss[how] for loss in report["layers"].values())
    assert total(losses[0], method) < 0.01 * total(losses[1], method)
    assert total(losses[0], method) < total(losses[0], "nearest")
    said = there_and_back(tmp_path / "8")
    assert (said["quant_method"], said["bits"]) == ("gptq", 8)


def test_act_order_loads_and_goes_to_others(texts: Path, tmp_path: Path) -> None:
    settings = QuantizeOptions("gptq", 32, True, False, act_order=True)
    made = convert.to_native("demo", tmp_path / "made", quantize=settings, calibration=texts)
    said = there_and_back(made)
    assert (said["quant_method"], said["desc_act"]) == ("gptq", True)


def there_and_back(folder: Path, packing: str | None = None) -> dict[str, Any]:
    """In others' packing it is the same when it returns -> what it says there of its packing."""
    back = convert.to_hf(folder, folder.with_name("back"), packing=packing)
    again = load(convert.to_native(back, folder.with_name("again")))
    wanted = kernels(load(folder), "qwen")
    for name, array in kernels(again, "qwen").items():
        np.testing.assert_array_equal(array, wanted[name])
    assert "transformer.h.3.mlp.w1.qweight" in load_file(back / "model.safetensors")
    said: dict[str, Any] = json.loads((back / "config.json").read_text())["quantization_config"]
    return said


@pytest.mark.parametrize("packing", ["gptq", "awq"])
def test_to_hf_and_back(packing: str, tmp_path: Path) -> None:
    settings = QuantizeOptions("int4", 32, False, False)
    said = there_and_back(convert.to_native("demo", tmp_path / "made", quantize=settings), packing)
    assert (said["quant_method"], said["bits"], said["group_size"]) == (packing, 4, 32)


def test_faults(golden: Golden, texts: Path, tmp_path: Path) -> None:
    make = lambda method, group=16, source="demo", texts=texts, head=False: convert.to_native(
        source,
        tmp_path / "x",
        quantize=QuantizeOptions(method, group, True, head),
        calibration=texts,
    )
    with pytest.raises(ValueError, match=r"groups of 48 do not divide 128 inputs"):
        make("int4", 48)
    with pytest.raises(ValueError, match="gptq needs texts"):
        make("gptq", texts=None)
    with pytest.raises(ValueError, match="has no tokenizer"):
        make("gptq", source=golden("v1/base"))
    with pytest.raises(ValueError, match="is quantised already"):
        make("int4", source=golden("quant/gptq4"), texts=None)
    with pytest.raises(ValueError, match="the head is the embedding"):
        make("int8", None, golden("modern/qwen3"), None, head=True)
    assert not (tmp_path / "x").exists()
