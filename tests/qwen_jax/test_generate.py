"""The public way in: text in, text out; ids in, ids out; and what cannot be is said."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from qwen_jax import Sampling, generate, logits, stream
from qwen_jax.decoding import decode
from qwen_jax.nn.model import Qwen
from qwen_jax.text.tokenizer import Tokenizer
from tests.conftest import Golden
from tests.qwen_jax.memorised_model import converted, memorised_model, with_defaults
from tests.qwen_jax.networks import GREEDY

SAID = "We🙂 quick brown fox"
WARM = Sampling(temperature=2.0)
ROWS = [[5, 6, 7], list(range(40, 55)), [9]]
NEW = 32  # new tokens of most answers here, so that few programs are compiled


@pytest.fixture(scope="module")
def base(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Qwen:
    """A network with attention, without a tokenizer."""
    return converted(golden("v1/base"), tmp_path_factory.mktemp("base") / "native")


@pytest.fixture(scope="module")
def talker(small: Tokenizer) -> Qwen:
    ends = [small.specials["<|im_end|>"], small.specials["<|endoftext|>"]]
    return memorised_model(small, f"\n{SAID}<|im_end|>", eos_token_id=ends, max_new_tokens=NEW)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of the programs compiled inside."""
    names, inside = [], True

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        if inside and event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    inside = False


# --- what comes back -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["v1/base", "modern/qwen2_gqa"])
def test_greedy_of_the_originals(golden: Golden, base: Qwen, tmp_path: Path, name: str) -> None:
    """Of rows of any length; as generation_config.json says where that is greedy."""
    params = base if name == "v1/base" else converted(golden(name), tmp_path / "native")
    wanted = load_file(golden(name) / "golden.safetensors")
    masks = wanted["batch_attention_mask"].astype(bool)
    rows = [ids[mask] for ids, mask in zip(wanted["batch_input_ids"], masks, strict=True)]
    new = wanted["batch_greedy"][:, masks.shape[1] :].tolist()
    sampling = GREEDY if name == "v1/base" else None
    assert generate(params, rows, sampling, max_new_tokens=len(new[0])) == new
    ends = with_defaults(params, eos_ids=((new[1][5],),))
    new[1] = new[1][: new[1].index(new[1][5]) + 1]
    assert generate(ends, rows, sampling, max_new_tokens=len(new[0]))[1] == new[1]


def test_text_gives_text_and_ids_give_ids(talker: Qwen, small: Tokenizer) -> None:
    ids = small.encode("\n")
    new = small.encode(SAID + "<|im_end|>", specials=True)
    assert generate(talker, "\n") == SAID
    assert generate(talker, ["\n", "\n"]) == [SAID, SAID]
    assert generate(talker, ["\n"]) == [SAID]
    assert generate(talker, ids) == new
    assert generate(talker, [ids, ids]) == [new, new]
    assert generate(talker, (tuple(ids),)) == [new]


def test_control_tokens_in_a_prompt_count(small: Tokenizer) -> None:
    ends = {"eos_token_id": 402, "max_new_tokens": NEW}
    params = memorised_model(small, "<|im_start|>quick<|im_end|>", **ends)
    assert generate(params, "fox<|im_start|>") == "quick"


def test_arrays_are_prompts(talker: Qwen, small: Tokenizer) -> None:
    ids = small.encode("fox\n")
    row = generate(talker, ids)
    arrays: list[Any] = [np.asarray(ids, np.uint16), jnp.asarray(ids)]
    for array in arrays:
        assert {type(id) for id in generate(talker, array)} == {int}
        assert [generate(talker, array)] == generate(talker, array[None]) == [row]
        assert generate(talker, [array, ids]) == [row, row]


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_neighbours_change_nothing(base: Qwen, sampling: Any) -> None:
    seeds = [3, 4, 2**40]
    draw: Any = lambda ask, seed: generate(base, ask, sampling, max_new_tokens=NEW, seed=seed)
    together = draw(ROWS, seeds)
    assert together == [draw(row, seed) for row, seed in zip(ROWS, seeds, strict=True)]
    assert len(set(map(tuple, together))) == 3


def test_seeds(talker: Qwen) -> None:
    hot = Sampling(temperature=50)
    draw = lambda **how: generate(talker, "fox", hot, **how)
    assert draw(seed=1) == draw(seed=np.int64(1)) != draw(seed=2)
    assert draw() != draw()
    one, other = generate(talker, ["fox"] * 2, hot)
    assert one != other  # fresh seeds are fresh for every prompt
    assert generate(talker, ["fox"] * 2, hot, seed=1) == [draw(seed=1)] * 2


def test_every_prompt_has_its_sampling(talker: Qwen) -> None:
    biased = Sampling(temperature=0, logit_bias={7: 1e4})
    assert generate(talker, ["\n", "\n"], [GREEDY, biased]) == [SAID, "(" * NEW]
    assert generate(talker, ["\n", "\n"], [biased, GREEDY]) == ["(" * NEW, SAID]


def test_how_many_tokens(talker: Qwen) -> None:
    assert len(generate(talker, [0])) == NEW  # as generation_config.json says
    assert len(generate(talker, [0], max_new_tokens=NEW - 9)) == NEW - 9
    with pytest.raises(UserWarning, match=f"take {1 + 512} tokens"):  # before any work is done
        generate(with_defaults(talker, max_new_tokens=None), [0])


def test_the_training_length_is_a_warning(talker: Qwen, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*arguments: Any) -> None:
        raise InterruptedError  # it takes long

    monkeypatch.setattr(decode, "start", begin)
    longest = talker.config.max_length - NEW
    with pytest.raises(InterruptedError):
        generate(talker, [0] * longest)
    with pytest.raises(UserWarning, match="may take 513 tokens, this checkpoint is made for 512"):
        generate(talker, [[0], [0] * (longest + 1)])


# --- stop strings --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("brown", "We🙂 quick "),  # over three tokens
        ("ic", "We🙂 qu"),  # in one token
        ("🙂", "We"),  # four tokens of a byte each
        (["fox", "own"], "We🙂 quick br"),
        ("fox!", SAID),
    ],
)
def test_stop_strings_are_cut(talker: Qwen, small: Tokenizer, stop: Any, text: str) -> None:
    """From the text; of the ids, the token that completes one is the last."""
    assert generate(talker, "\n", stop=stop) == text
    assert "".join(stream(talker, "\n", stop=stop)) == text
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    assert generate(talker, "\n", Sampling(temperature=0, stop=stops)) == text
    assert generate(talker, "\n", Sampling(temperature=0, stop=("never",)), stop=stop) == text
    if stop == "ic":
        assert generate(talker, small.encode("\n"), stop=stop) == small.encode("We🙂 quick")


def test_a_stop_string_ends_its_row_alone(talker: Qwen) -> None:
    """The host hears of it every 16 tokens; the other row goes on for longer."""
    assert generate(talker, ["\n", "!"], stop="quick") == ["We🙂 ", "!" * NEW]
    samplings = [GREEDY, Sampling(temperature=0, stop=("!!!",))]
    assert generate(talker, ["\n", "!"], samplings) == [SAID, ""]


def test_stop_strings_need_a_tokenizer(base: Qwen) -> None:
    with pytest.raises(ValueError, match="no tokenizer for stop strings; use stop_ids"):
        generate(base, [1], GREEDY, stop="x", max_new_tokens=NEW)


# --- streams -------------------------------------------------------------------------------------
def test_a_stream_is_the_answer_in_pieces(talker: Qwen) -> None:
    assert "".join(stream(talker, "\n")) == SAID
    how: dict[str, Any] = {"sampling": Sampling(temperature=50, ignore_eos=True), "seed": 5}
    pieces = list(stream(talker, [7], **how))
    assert [len(piece) for piece in pieces] == [1, 16, 15]
    assert [id for piece in pieces for id in piece] == generate(talker, [7], **how)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_stream_shows_whole_characters(talker: Qwen, small: Tokenizer, cut: int) -> None:
    """The host looks after one token, a quarter of 🙂; the answer ends after `cut` of them."""
    assert next(stream(talker, "We")) == SAID[2:]
    end = Sampling(temperature=0, stop_ids=((small.encode("🙂")[cut - 1],),))
    assert "".join(stream(talker, "We", end)) == ("🙂" if cut == 4 else "\ufffd")


def test_a_stream_may_be_left(talker: Qwen) -> None:
    answer: Any = stream(talker, "\n")
    assert next(answer) == "We"
    answer.close()
    assert list(answer) == []
    assert "".join(stream(talker, "\n")) == SAID


def test_a_stream_takes_one_prompt(talker: Qwen) -> None:
    with pytest.raises(ValueError, match="stream takes one prompt, got a list of 1; use generate"):
        next(stream(talker, ["\n"]))  # type: ignore[list-item]


# --- logits --------------------------------------------------------------------------------------
def test_logits(golden: Golden, base: Qwen) -> None:
    wanted = load_file(golden("v1/base") / "golden.safetensors")
    ids = wanted["input_ids"]
    scores = logits(base, ids)
    assert (scores.shape, scores.dtype) == (wanted["logits"].shape, jnp.float32)
    np.testing.assert_allclose(scores, wanted["logits"], atol=2e-4)
    short = 15
    assert decode.bucket(short) != decode.bucket(ids.shape[1])
    np.testing.assert_allclose(logits(base, ids[0, :short].tolist()), scores[:1, :short], atol=1e-4)


# --- programs ------------------------------------------------------------------------------------
def test_nothing_compiles_again(talker: Qwen) -> None:
    """Another prompt of the same bucket, other sampling values, another seed, other stops."""
    ask = lambda prompt, **how: generate(talker, [prompt, "!"], **how)
    with compilations() as first:
        jax.jit(lambda x: x + 1)(1)
    assert first  # the counter counts
    ask("fox", max_new_tokens=20, seed=1, stop=["ck", "!!"])
    ask("fox", sampling=GREEDY, max_new_tokens=20, seed=1)
    list(stream(talker, "fox", max_new_tokens=16))
    with compilations() as more:
        ask("fox quick brown", max_new_tokens=25, seed=2, stop=["ow", "x"])
        sampling = Sampling(0.5, 3, 0.9, 0.01, 1.1, 0.1, 0.2, {7: 1.0}, 2, (), ((5, 6),), True)
        ask("quick", sampling=sampling, max_new_tokens=30)
        ask("quick", sampling=[GREEDY, sampling], max_new_tokens=17, seed=[1, 2])
        for count in (9, 11, 13, 30):  # the short streams need no programs of their own
            list(stream(talker, "\n", max_new_tokens=count))
    assert more == []


# --- what cannot be ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "got an empty prompt"),
        ([""], "got an empty prompt"),
        ([], "got nothing, wanted a text, a list of ids, or a list of either"),
        ([[1], []], "got an empty prompt"),
        (np.zeros((2, 0), np.int32), "got an empty prompt"),
        (["a", [1]], "got a mixture, wanted a text, a list of ids"),
        ([1, "a"], "got a mixture"),
        ([[1], 2], "got a mixture"),
        ([1, -1], "got ids from -1 to 1, wanted 0 to 415"),
        ([[1], [7, 416]], "got ids from 7 to 416, wanted 0 to 415"),
        ([1, True], "got True among the ids"),
        ([1.0, 2.0], "got 1.0 among the ids"),
        ([[1, "2"]], "got '2' among the ids"),
        (np.asarray([True]), "got True among the ids"),
        (np.asarray([[0.5]]), "got 0.5 among the ids"),
    ],
)
def test_impossible_prompts(talker: Qwen, prompt: Any, message: str) -> None:
    for use in (generate, logits):
        with pytest.raises(ValueError, match=message):
            use(talker, prompt)


def test_texts_of_different_lengths_have_no_logits_together(talker: Qwen) -> None:
    with pytest.raises(ValueError, match=r"texts of \[1, 2\] ids; give texts of one length"):
        logits(talker, [[1], [1, 2]])


def test_text_needs_a_tokenizer(base: Qwen) -> None:
    for use in (generate, logits, lambda *given: next(stream(*given))):
        with pytest.raises(ValueError, match="no tokenizer; give the prompt as a list of ids"):
            use(base, "hello")


@pytest.mark.parametrize("count", [0, -1, True, False, 2.5, "7", 2**31, float("inf")])
def test_impossible_budgets(base: Qwen, count: Any) -> None:
    with pytest.raises(ValueError, match="wanted 1 to 1073741824"):
        generate(base, [1], GREEDY, max_new_tokens=count)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"seed": [1]}, "got 1 values for seed, there are 2 prompts"),
        ({"seed": [1, 2.5]}, "got seed 2.5, wanted"),
        ({"seed": [1, -1]}, f"got seed -1, wanted 0 to {2**63 - 1}"),
        ({"seed": True}, "got seed True, wanted"),
        ({"sampling": [GREEDY] * 3}, "got 3 values for sampling, there are 2 prompts"),
        ({"sampling": []}, "got 0 values for sampling, there are 2 prompts"),
        *[({"sampling": wrong}, "wanted Sampling") for wrong in ({"top_k": 1}, 0.7)],
        ({"stop": ""}, "stop is .*expected a tuple of non-empty strings"),
        ({"stop": [1]}, "stop is .*expected a tuple of non-empty strings"),
        ({"sampling": Sampling(logit_bias={416: 1.0})}, r"logit_bias has ids \[416\], this model"),
        ({"sampling": Sampling(logprobs=1)}, "no logprobs; see .*completion"),
        ({"sampling": [GREEDY, Sampling(logprobs=1)]}, "no logprobs"),
    ],
)
def test_impossible_wishes(talker: Qwen, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(talker, ["a", "b"], **how)
